"""Weights into a model: everything is verified first, then read once, then put in place all together."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from andes_sdk.errors import CheckpointError, PluginBroken
from andes_sdk.storage.checkpoint.files import StoredTensor, Weights, read_tensors, scan
from andes_sdk.storage.checkpoint.manifest import MANIFEST, Manifest, damaged_files, stored_plan

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

SHOWN = 20
"""Problems spelled out in one error; of the others the number is given."""

RECOMPUTED = ".rotary_emb.inv_freq"
"""Old checkpoints store these rotary frequencies. They follow from the configuration and are passed over."""


def aliases(model: nn.Module) -> dict[str, str]:
    """Tied parameters: each further name -> the first name of the same tensor."""
    first: dict[int, str] = {}
    pairs = [(name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False)]
    return {name: original for name, original in pairs if name != original}


def load_weights(model: VisionLanguageModel, folder: str | Path, *, device: str, dtype: torch.dtype) -> None:
    """Fill a model that was built on the meta device. Peak memory is one copy of the weights and one tensor.

    A tied tensor may be stored once, or several times if all are equal. `andes.json` is verified with all its
    checksums. Weights under a prefix of `model.may_lack` keep their values where they are not stored. If anything is
    wrong the model stays as it was.

    Raises:
        CheckpointError: naming every tensor that is missing, extra, mis-shaped or truncated, and every damaged file.
        PluginBroken: a buffer that no checkpoint stores, or a weight that may be lacking, stays without memory.
    """
    folder = Path(folder)
    damaged = damaged_files(folder, Manifest.read(folder)) if (folder / MANIFEST).is_file() else []
    entries, tied = check_weights(model, folder, damaged), aliases(model)
    source = _sources(entries, tied)
    filled: dict[str, torch.Tensor] = {}
    for name, tensor in read_tensors({n: e for n, e in entries.items() if n in source}):
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        filled[source[name]] = tensor.to(device=device, dtype=kind)
    assign(model, filled, {name: first for name, first in tied.items() if first in filled})
    if callable(tie := getattr(model.language_model, "tie_weights", None)):
        tie()
    model.to(device=device, dtype=dtype)  # moves the buffers that no checkpoint stores


def check_weights(model: VisionLanguageModel, folder: Path, damaged: Sequence[str] = ()) -> Mapping[str, StoredTensor]:
    """What of a checkpoint goes into a model on the meta device, by name. Of weights only the headers are read.

    Args:
        damaged: what is known to be wrong already.

    Raises:
        CheckpointError, PluginBroken: as `load_weights`.
    """
    stored_plan(folder)
    tied, weights = aliases(model), scan(folder)
    wanted = needed(model, weights.entries)
    entries = {name: entry for name, entry in weights.entries.items() if name in wanted}
    problems = [*weights.problems, *_differences(wanted, tied, weights), *damaged]
    if not problems:
        problems += _unequal(entries, tied)
    if problems:
        shown = problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
        why = "".join(f"\n  - {text}" for text in shown)
        fix = _moved(wanted, weights) or "fetch the checkpoint again, or load it with the plugins that it was made for"
        raise CheckpointError("these weights do not fit the model", who=str(folder), why=why, fix=fix)
    refuse_meta_buffers(model, wanted)
    return entries


def needed(model: VisionLanguageModel, stored: Container[str]) -> dict[str, torch.Tensor]:
    """The model's state without what `model.may_lack` lets a checkpoint lack, and `stored` has not.

    Raises:
        PluginBroken: such a weight has no value to keep.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    tied = aliases(model)
    due = {tied.get(n, n) for n in state if n in stored or not n.startswith(model.may_lack)}
    kept = {n: t for n, t in state.items() if tied.get(n, n) not in due}
    hollow = [n for n, tensor in kept.items() if tensor.is_meta]
    if hollow:
        why = "the checkpoint lacks them, and andes_modules gave them no values"
        fix = "build them on torch's default device, not on that of the model's weights"
        raise PluginBroken("weights without values", who=", ".join(hollow[:SHOWN]), why=why, fix=fix)
    return {name: tensor for name, tensor in state.items() if name not in kept}


def _differences(wanted: Mapping[str, torch.Tensor], tied: Mapping[str, str], weights: Weights) -> list[str]:
    found, lost = weights.entries, weights.lost
    groups: dict[str, list[str]] = {}
    for name in wanted:
        groups.setdefault(tied.get(name, name), []).append(name)
    problems = []
    for names in groups.values():
        # a file lost as a whole is named itself; its tensors are not, where nothing says which they were
        if not any(n in found or n in lost for n in names) and "*" not in lost:
            problems.append(f"{names[0]}: missing" + (f" (tied with {', '.join(names[1:])})" if names[1:] else ""))
    for name, entry in found.items():
        if name not in wanted:
            if not name.endswith(RECOMPUTED):
                problems.append(f"{name}: extra, the model has no such tensor")
        elif entry.shape != tuple(wanted[name].shape):
            problems.append(f"{name}: has shape {list(entry.shape)}, the model needs {list(wanted[name].shape)}")
        elif entry.dtype.is_floating_point != wanted[name].dtype.is_floating_point:
            problems.append(f"{name}: is {entry.dtype}, the model needs {wanted[name].dtype}")
    return problems


def _moved(wanted: Mapping[str, torch.Tensor], weights: Weights) -> str:
    """What to do about names that would be right without a prefix, or with one; "" where that is not what is wrong."""
    extra = [name for name in weights.entries if name not in wanted]
    for name in extra[:1]:
        own = next((w for w in sorted(wanted, key=len, reverse=True) if name.endswith(f".{w}")), "")
        prefix = name.removesuffix(own)
        if own and sum(n.startswith(prefix) and n.removeprefix(prefix) in wanted for n in extra) * 2 > len(extra):
            return f"the tensors stand under the prefix {prefix!r}: rename them, or save the model without its wrapper"
    return ""


def _unequal(entries: Mapping[str, StoredTensor], tied: Mapping[str, str]) -> list[str]:
    problems = []
    for name, original in tied.items():
        if name in entries and original in entries:
            pair = dict(read_tensors({n: entries[n] for n in (name, original)}))
            if not _same(pair[name], pair[original]):
                problems.append(f"{name}: differs from {original}, to which the configuration ties it")
    return problems


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit; NaN equals itself."""
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _sources(entries: Mapping[str, StoredTensor], tied: Mapping[str, str]) -> dict[str, str]:
    """Stored name -> the name of the tensor that it fills; of a tied group one is read."""
    stored: dict[str, str] = {}
    for name in sorted(entries, key=lambda n: n in tied):
        stored.setdefault(tied.get(name, name), name)
    return {name: original for original, name in stored.items()}


def refuse_meta_buffers(model: nn.Module, wanted: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model built on the meta device whose buffers no checkpoint fills.

    Raises:
        PluginBroken: naming them.
    """
    left = [n for n, b in model.named_buffers() if n not in wanted and b.is_meta]
    if left:
        fix = "compute them on the CPU in the module's constructor, or register them as persistent"
        raise PluginBroken("builds buffers on the meta device that no checkpoint stores", who=", ".join(left), fix=fix)


def assign(model: nn.Module, filled: Mapping[str, torch.Tensor], tied: Mapping[str, str]) -> None:
    """Put tensors in place by name; each name in `tied` gets the parameter of the name it is tied to."""
    modules = dict(model.named_modules())
    made: dict[str, nn.Parameter] = {}
    for name in [*filled, *tied]:
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        old = module._parameters.get(leaf)
        if old is None:
            module._buffers[leaf] = filled[name]
            continue
        original = tied.get(name, name)
        if original not in made:
            made[original] = nn.Parameter(filled[original], requires_grad=old.requires_grad)
        module._parameters[leaf] = made[original]
