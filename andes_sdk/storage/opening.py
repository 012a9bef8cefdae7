"""From what a user names to what is stored: a folder, a file, or a model on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.assembling.extending import BY_NAME
from andes_sdk.errors import AndesError, CheckpointError
from andes_sdk.files import at_home
from andes_sdk.hookspecs import MODELS, OPENERS
from andes_sdk.plan import Plan, PluginPlan
from andes_sdk.storage.hub import download
from andes_sdk.storage.stored import Folder, Opener, Random, Stored

HUB = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
"""`owner/name`, or `owner/name@revision`."""


def open_stored(source: str | Path) -> Stored:
    """What is stored under a path or an id of the Hub; no weight is read.

    Args:
        source: a checkpoint folder, a file that a plugin opens (packed, GGUF …), or, as text and if there is no such
            path, the name of an installed model, or `owner/name[@revision]`, which is fetched into the Hub's cache.

    Raises:
        CheckpointError: it is none of these, cannot be read or fetched.
    """
    path = at_home(source, "source")
    if os.path.isdir(path):  # of a name that cannot be, such as one that is too long, `Path` raises
        return Folder.open(path)
    if not os.path.exists(path) and source in extensions(MODELS):
        return open_stored(Path(load_extension(MODELS, str(source))()))
    if not os.path.exists(path) and isinstance(source, str) and (match := HUB.fullmatch(source)):
        return Folder.open(download(match["name"], match["revision"]))
    opener = _opener(path) if os.path.isfile(path) else None
    if opener is None:
        why = "it is a file of no known kind" if os.path.exists(path) else "there is no such file or folder"
        kinds = ", ".join(f".{suffix}" for suffix in extensions(OPENERS)) or "no such plugin is installed"
        fix = f"give a checkpoint folder (with andes.json or config.json), a file that a plugin opens ({kinds}), "
        fix += f"an installed model ({', '.join(extensions(MODELS)) or 'none'}), or owner/name[@revision] on the Hub"
        raise CheckpointError("is no model that can be opened", who=str(source), why=why, fix=fix)
    opened = opener.open_file(path)
    if not isinstance(opened, Sequence):
        return opened
    plugins = tuple(PluginPlan(name=n, options=o, distribution=BY_NAME) for item in opened for n, o in item.items())
    return Random(Plan(plugins=plugins))


def _opener(path: Path) -> Opener | None:
    """What opens a file, by its first bytes, or else by its suffix."""
    own, openers, broken = path.suffix.removeprefix(".").lower(), dict[str, Opener](), dict[str, AndesError]()
    for suffix in extensions(OPENERS):
        try:
            openers[suffix] = cast("Opener", load_extension(OPENERS, suffix))
        except AndesError as error:  # one that is broken stops no other kind of file
            broken[suffix] = error
    try:
        with open(path, "rb") as file:
            start = file.read(max((len(o.MAGIC) for o in openers.values()), default=0))
    except OSError as error:
        raise CheckpointError("cannot be read", who=str(path), why=str(error), fix="check its permissions") from error
    told = next((o for o in openers.values() if start.startswith(o.MAGIC)), None)
    if told is None and own in broken:
        raise broken[own]
    return told or openers.get(own)
