"""From what a user names to what is stored: a folder, a file, or a model on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.assembling.extending import BY_NAME
from andes_sdk.errors import CheckpointError
from andes_sdk.hookspecs import OPENERS
from andes_sdk.plan import Plan, PluginPlan
from andes_sdk.storage.hub import download
from andes_sdk.storage.packing.header import is_artefact
from andes_sdk.storage.stored import Folder, PackedFile, Random, Stored

HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""`owner/name`, or `owner/name@revision`."""


def open_stored(source: str | Path) -> Stored:
    """What is stored under a path or an id of the Hub; no weight is read.

    Args:
        source: a checkpoint folder, a packed file, a file of a suffix that a plugin opens, or, as text and if there
            is no such path, `owner/name[@revision]`, which is fetched into the Hub's cache.

    Raises:
        CheckpointError: it is none of these, cannot be read or fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return Folder.open(path)
    if not path.exists() and isinstance(source, str) and (match := HUB.fullmatch(source)):
        return Folder.open(download(match["name"], match["revision"]))
    suffix, known = path.suffix.removeprefix(".").lower(), extensions(OPENERS)
    if path.is_file() and (is_artefact(path) or suffix == "andes"):
        return PackedFile.open(path)
    if not path.is_file() or suffix not in known:
        why = "it is a file of no kind that is known here" if path.exists() else "there is no such file or folder"
        others = f" a file that a plugin opens ({', '.join(f'.{s}' for s in sorted(known))})," if known else ""
        raise CheckpointError(
            "is no model that can be opened",
            who=str(source),
            why=why,
            fix="give a checkpoint folder (with andes.json or config.json), a packed file (`andes pack`),"
            f"{others} or owner/name[@revision] on the Hugging Face Hub",
        )
    items = load_extension(OPENERS, suffix)(path)
    plugins = tuple(PluginPlan(name=n, options=o, distribution=BY_NAME) for item in items for n, o in item.items())
    return Random(Plan(plugins=plugins))
