"""What a checkpoint says of itself: `andes.json`, or the published `config.json`; from either, a plan."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from andes_sdk.assembling.extending import BY_NAME
from andes_sdk.config import CONVERTER, reasons
from andes_sdk.errors import CheckpointError
from andes_sdk.files import confined, regular
from andes_sdk.plan import Plan, PluginPlan
from andes_sdk.storage.checkpoint.files import layout, read_json
from andes_sdk.storage.checkpoint.published import layout_of

MANIFEST = "andes.json"
CONFIG = "config.json"
PUBLISHED = "published"
FORMAT = 1


@frozen(kw_only=True)
class Manifest:
    """The content of `andes.json`.

    Attributes:
        plan: what the saved pipeline was made of; options that hold on one machine only are left out.
        dtype: precision of the weights.
        parameters: tied ones counted once.
        files: every other file -> its sha256.
        tensors: tensor -> weight file.
        published: for weights from a published checkpoint, its assignment of tensors to files and its index metadata.
    """

    plan: Plan
    dtype: str
    parameters: int
    files: Mapping[str, str]
    tensors: Mapping[str, str]
    published: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """JSON that carries its own checksum."""
        body = {
            "format": FORMAT, "plan": self.plan.to_dict(), "dtype": self.dtype, "parameters": self.parameters,
            "files": dict(self.files), "tensors": dict(self.tensors), "published": self.published,
        }  # fmt: skip
        return json.dumps({**body, "checksum": _checksum(body)}, indent=1, ensure_ascii=False)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `andes.json`.

        Raises:
            CheckpointError: damaged, edited by hand, or of a later version. PlanError: its plan is none.
        """
        path = folder / MANIFEST
        body = read_json(path)
        version = body.get("format")
        if type(version) is int and version > FORMAT:
            what = f"was written in format {version}, this andes_sdk reads {FORMAT}"
            raise CheckpointError(what, who=str(path), fix="upgrade andes-sdk")
        if body.pop("checksum", None) != _checksum(body):
            fix = "restore it; to change options, pass `plugins=[{name: {option: value}}]`"
            raise CheckpointError("was damaged or edited", who=str(path), why="its checksum differs", fix=fix)
        plan, _ = Plan.from_dict(body.pop("plan", None)), body.pop("format", None)
        try:
            read: Manifest = CONVERTER.structure({**body, "plan": plan.to_dict()}, cls)
            tensors = (read.published or {}).get("tensors", {})
            names = [*read.files, *read.tensors.values(), *CONVERTER.structure(tensors, dict[str, str]).values()]
        except Exception as error:
            why = "; ".join(reasons(error, MANIFEST))
            raise CheckpointError("is not what `save_pretrained` writes", who=str(path), why=why) from None
        if outside := [name for name in names if not confined(name)]:
            raise CheckpointError("names a file outside its folder", who=str(path), why=repr(outside[0]))
        return read


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """One sentence for each file that is absent or differs from its checksum."""
    problems = []
    for name, expected in manifest.files.items():
        try:
            if sha256(folder / name) != expected:
                problems.append(f"{name}: damaged, its sha256 is not the one in {MANIFEST}")
        except OSError as error:
            problems.append(f"{name}: {error.strerror or error}")
    return problems


def stored_plan(folder: str | Path) -> Plan:
    """Plan of a checkpoint, in the precision that is stored.

    The folder exists, is of a known layout, and has all its weight files. No weight is read.

    Raises:
        CheckpointError: with the reason.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        what = "is a file, not a checkpoint folder" if os.path.exists(folder) else "no such folder"
        raise CheckpointError(what, who=str(folder), fix="give the folder of a checkpoint")
    try:
        plan, dtype = _describe(folder)
        layout(folder)
    except OSError as error:
        raise CheckpointError("cannot be read", who=str(folder), why=str(error), fix="check its permissions") from None
    return evolve(plan, device="cpu", dtype=dtype)


def _describe(folder: Path) -> tuple[Plan, str]:
    """Plan and dtype of a checkpoint."""
    if (folder / MANIFEST).is_file():
        manifest = Manifest.read(folder)
        return manifest.plan, manifest.dtype
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        published = layout_of(config, who=str(folder / CONFIG))
        items = published.plugin_items(config, who=str(folder / CONFIG))
        plugins = tuple(PluginPlan(name=n, options=o, distribution=BY_NAME) for item in items for n, o in item.items())
        return Plan(plugins=plugins), published.dtype(config, who=str(folder / CONFIG))
    what = "is no checkpoint"
    raise CheckpointError(what, who=str(folder), why=f"neither {MANIFEST} nor {CONFIG} is there", fix="check the path")
