"""A model into a folder that appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from andes_sdk import config as configuration
from andes_sdk.assembling import discovery
from andes_sdk.errors import AndesError, CheckpointError, ConfigError
from andes_sdk.files import appearing, at_home
from andes_sdk.reading import parse_json
from andes_sdk.storage.checkpoint import files
from andes_sdk.storage.checkpoint.load import aliases
from andes_sdk.storage.checkpoint.manifest import CONFIG, MANIFEST, PUBLISHED, Manifest, sha256
from andes_sdk.storage.checkpoint.published import describe, layout_of
from andes_sdk.storage.checkpoint.shards import shards, stored_tensors, write_weights

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan, PluginPlan

LAYOUTS = ("andes", "published")


def save(
    model: VisionLanguageModel,
    plan: Plan,
    folder: str | Path,
    *,
    source: Path | None = None,
    layout: str = "andes",
    dtype: str | None = None,
) -> Path:
    """Write a checkpoint -> its folder.

    "andes": weights (a tied tensor once), `andes.json` with plan and checksums, the tokenizer, and a `config.json` for
    transformers where the published form can describe the modules. "published": the published names and files; a
    pipeline that came from a published checkpoint gives its files back byte for byte, and its tensors to the bit.

    An earlier checkpoint in `folder` is replaced, at the very end; on any failure it stays. The live model is not
    changed. After a crash between the two renames it lies beside the folder as `.<name>.old-*`.

    Args:
        model: with its weights read; they may have come from `folder`.
        plan: of the model's pipeline.
        source: the checkpoint that the weights came from.
        dtype: of the written floating-point tensors; None keeps them.

    Raises:
        CheckpointError: `folder` holds anything else, cannot be written, or the layout cannot describe the modules.
        ConfigError: no such layout or dtype.
    """
    from andes_sdk.assembling.building import DTYPES

    if layout not in LAYOUTS:
        raise ConfigError(f"no layout {layout!r}", who="layout", fix=configuration.suggestion(str(layout), LAYOUTS))
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}", who="dtype", fix=configuration.suggestion(str(dtype), DTYPES))
    target = at_home(folder, "folder").absolute()
    _check_target(target)
    job = _Job(model, plan, source, dtype or str(model.dtype).removeprefix("torch."), dtype is not None)
    try:
        with appearing(target) as temporary:
            (_write_andes if layout == "andes" else _write_published)(job, temporary)
    except AndesError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot be written", who=str(target), why=why, fix="nothing was changed there") from error
    return target


def _check_target(target: Path) -> None:
    """Refuse a folder or file that would be lost: what is no checkpoint, or holds what is no part of it."""
    if not target.exists() and not target.is_symlink():
        return
    try:
        found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_symlink() or not p.is_dir()}
        strange = sorted(found - _own_files(target)) if found or not target.is_dir() else []
    except (AndesError, OSError) as error:
        what, why = "is there already, and is no checkpoint", f"it would be lost; {error}"
    else:
        if not strange:
            return
        what, why = "holds what is no part of a checkpoint", f"it would be lost: {', '.join(strange[:5])}"
    raise CheckpointError(what, who=str(target), why=why, fix="choose another folder")


def _own_files(folder: Path) -> set[str]:
    if (folder / MANIFEST).is_file():
        return {MANIFEST, *Manifest.read(folder).files}
    weights = (path for kind in ("safetensors", "bin", "index.json") for path in folder.glob(f"*.{kind}"))
    return {path.name for path in (*_side_files(folder), *weights)}


@attrs.frozen
class _Job:
    """What is written; `convert` where `dtype` is another than the model's own."""

    model: VisionLanguageModel
    plan: Plan
    source: Path | None
    dtype: str
    convert: bool


# ---------------------------------------------------------------- the two layouts


def _write_andes(job: _Job, folder: Path) -> None:
    model, dtype, convert = job.model, job.dtype, job.convert
    tensors = stored_tensors(model)
    placed = shards(tensors, dtype, convert)
    write_weights(folder, tensors, placed, dtype, convert)
    job.model.tokenizer.save(folder)
    config, published = _published(job)
    if config is not None:
        (folder / CONFIG).write_bytes(config)
    if published is not None:
        (folder / PUBLISHED).mkdir()
        for path in published["files"]:
            shutil.copyfile(path, folder / PUBLISHED / path.name)
    manifest = Manifest(
        plan=portable(job.plan),
        dtype=dtype,
        parameters=model.parameter_count(),
        files={p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()},
        tensors=placed,
        published=None if published is None else {"tensors": published["tensors"], "metadata": published["metadata"]},
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _write_published(job: _Job, folder: Path) -> None:
    dtype, convert = job.dtype, job.convert
    config, published = _published(job)
    if config is None:
        what = "the published layout cannot describe these modules"
        raise CheckpointError(what, who=", ".join(job.plan.names), fix='save with layout="andes"')
    tensors = stored_tensors(job.model)
    placed, metadata = shards(tensors, dtype, convert), None
    tied = aliases(job.model)
    if published is not None and {tied.get(n, n) for n in published["tensors"]} == set(tensors):
        placed, metadata = published["tensors"], published["metadata"]
        tensors |= {name: tensors[tied[name]] for name in placed if name in tied}
    for path in published["files"] if published is not None else ():
        shutil.copyfile(path, folder / path.name)
    if published is None or _own_tokenizer(job.plan):
        job.model.tokenizer.save(folder)
    (folder / CONFIG).write_bytes(config)
    write_weights(folder, tensors, placed, dtype, convert, metadata)


def _published(job: _Job) -> tuple[bytes | None, dict[str, Any] | None]:
    """`config.json` in the published form, and what is kept of the published checkpoint behind this pipeline.

    The kept part is None if there was none, or if the modules are no longer those that it describes. Both are None for
    modules that a plugin changed (`andes_modules`), which no published configuration describes.
    """
    if any("andes_modules" in plugin.hooks for plugin in job.plan.plugins):
        return None, None
    kept, dtype = _kept(job.source), job.dtype
    if kept is not None:
        raw = next(path for path in kept["files"] if path.name == CONFIG).read_bytes()
        config = parse_json(raw)
        layout = layout_of(config, who=CONFIG)
        if layout.same_modules(config, job.plan):
            if layout.dtype(config, who=CONFIG) != dtype:
                config = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")} | {"torch_dtype": dtype}
                raw = _json(config)
            return raw, kept
    made = describe(job.model, job.plan, dtype=dtype)
    return (None if made is None else _json(made)), None


def _kept(weights: Path | None) -> dict[str, Any] | None:
    """Files, tensor assignment and index metadata of a published checkpoint, or of what ours keeps of one."""
    if weights is None:
        return None
    if (weights / MANIFEST).is_file():
        published = Manifest.read(weights).published
        return None if published is None else {**published, "files": _side_files(weights / PUBLISHED)}
    if not (weights / CONFIG).is_file():
        return None
    found = files.scan(weights)
    names = {name: _as_safetensors(entry.file.name) for name, entry in found.entries.items()}
    return {"tensors": names, "metadata": found.index, "files": _side_files(weights)}


def _side_files(folder: Path) -> Sequence[Path]:
    return layout_of(files.read_json(folder / CONFIG), who=str(folder / CONFIG)).side_files(folder)


def _as_safetensors(name: str) -> str:
    if name.endswith(".safetensors"):
        return name
    return name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"


# ---------------------------------------------------------------- plan


def portable(plan: Plan) -> Plan:
    """The plan without options that hold on this machine only (fields marked `metadata={"local": True}`)."""
    return attrs.evolve(plan, device="cpu", plugins=tuple(map(_without_local, plan.plugins)))


def _without_local(plugin: PluginPlan) -> PluginPlan:
    local = _local_fields(plugin)
    return attrs.evolve(plugin, options={k: v for k, v in plugin.options.items() if k not in local})


def _local_fields(plugin: PluginPlan) -> set[str]:
    if not plugin.distribution:
        return set()
    cls, _, _ = discovery.load(plugin.name)
    return {f.name for f in attrs.fields(cls) if f.metadata.get("local")}


def _own_tokenizer(plan: Plan) -> bool:
    """Whether the tokenizer is one that the user gave instead of the checkpoint's."""
    owner = plan.owner("andes_tokenizer")
    return any(p.name == owner and set(p.options) & _local_fields(p) for p in plan.plugins)
