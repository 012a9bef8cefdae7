"""A model on its grids without training steps: from the record of a run, rounded to nearest, or by GPTQ.

GPTQ (arXiv 2210.17323, algorithm 1), our own small implementation: columns from left to right, the error of each passed
on to those right of it by the inverse Hessian's Cholesky factor; scales of a group are chosen by the format when its
first column is due, and survivors of a sparse grid by the score of SparseGPT (arXiv 2301.00774). Layers first to last,
each given what the compressed ones before it send on. Left out: order of activations, and anything but the language
model's layers: embedding, head, encoder and projector are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from andes_sparsity.calibration import Calibration
from andes_sparsity.masks import keep_mask
from attrs import frozen
from torch import Tensor, nn

from andes_sdk.errors import ConfigError
from andes_sdk.types import Codes, Compressed

from .fake import codes_of
from .grids import Choice, Target, places
from .layers import hold
from .record import Record, read_record
from .rotation import rotate

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model


@frozen(kw_only=True)
class Grids:
    """Compressor `qat`: the codes of a run, or, without one, rounding to nearest."""

    choice: Choice
    codes: str = ""
    rotation: str = ""
    name: str = "qat"

    @torch.no_grad()
    def compress(self, model: Model, *, codes: str = "") -> Compressed:
        """Put a model on its grids, in place; its layers hold their codes then.

        Args:
            codes: folder `qat` of a run. Its grids hold, not those of the plugin's options. Without it matrices are
                rounded to nearest, with the scales that their formats choose.

        Returns:
            A report. source: 'trained' or 'rounded to nearest'. kv_bits: of keys and values that were trained rounded.
            matrices. relative_error: norm of the change ÷ norm of the weights.

        Raises:
            ConfigError: codes of another model or of other weights, or as the plugin's grids. CheckpointError: a
                record that cannot be read.
        """
        folder = codes or self.codes
        if not folder:
            targets = rotated_targets(model, self.choice, self.rotation)
            made = {f"{n}.weight": nearest(_matrix(model, n), t) for n, t in targets.items()}
            return Compressed(codes=made, report={"source": "rounded to nearest", **_give(model, made)})
        record = read_record(folder)
        _refuse_others(model, record.codes, folder)
        shared = _shared(model, record, folder)
        report = {"source": "trained", "numbers": record.numbers, **_give(model, record.codes)}
        report |= {"kv_bits": record.kv} if record.kv else {}
        modules = dict(model.named_modules())
        for name in record.targets:
            hold(modules[name], record.codes[f"{name}.weight"], record.ranges.get(name))
        for name, owner in shared.items():
            hold(modules[name], record.codes[f"{owner}.weight"], record.ranges[name])
        return Compressed(codes=record.codes, ranges=record.ranges, report=report)


@frozen(kw_only=True)
class GPTQ:
    """Compressor `gptq`."""

    choice: Choice
    data: str
    lines: int
    max_tokens: int
    damping: float
    rotation: str = ""
    name: str = "gptq"

    @torch.no_grad()
    def compress(self, model: Model, *, data: str = "", lines: int = 0, damping: float = 0.0) -> Compressed:
        """Put a model on its grids, in place.

        Args:
            data, lines, damping: instead of the plugin's.

        Raises:
            ConfigError: no data, or as the plugin's grids. TrainingError: data that cannot be read.
        """
        targets = rotated_targets(model, self.choice, self.rotation)
        whole = cast("VisionLanguageModel", model)
        calibration = Calibration.of(whole, data or self.data, lines or self.lines, self.max_tokens, self.name)
        made: dict[str, Codes] = {}
        layers: dict[int, dict[str, nn.Linear]] = {}
        for place, (layer, _) in model.llm.linears().items():
            if (name := f"language_model.{place}") in targets:
                module = model.language_model.get_submodule(place)
                layers.setdefault(layer, {})[name] = cast("nn.Linear", module)
        error = 0.0
        for layer, modules in sorted(layers.items()):
            seen: dict[str, Tensor] = {}

            def see(name: str, rows: Tensor, seen: dict[str, Tensor] = seen) -> None:
                seen[name] = seen.get(name, 0.0) + rows.double().T @ rows.double()

            calibration.show(layer, modules, see)
            for name, module in modules.items():
                made[f"{name}.weight"] = gptq(module.weight, seen[name], targets[name], damping or self.damping)
                error = max(error, _give(model, {f"{name}.weight": made[f"{name}.weight"]})["relative_error"])
        rest = {f"{n}.weight": nearest(_matrix(model, n), t) for n, t in targets.items() if f"{n}.weight" not in made}
        _give(model, rest)
        report = {"matrices": len(targets), "tokens": calibration.tokens, "largest_relative_error": error}
        return Compressed(codes={**made, **rest}, report=report)


def nearest(weight: Tensor, target: Target, *, search: bool = True) -> Codes:
    """(rows, columns) -> codes, with the scales that the format chooses; plain ones without `search`."""
    values = weight.detach().float().cpu().numpy()
    if target.high == target.form.grid.high:
        return target.form.quantise(values, search=search)
    wide = target.form.grid.high / target.high  # fewer levels reach as far
    scales = torch.from_numpy(target.form.quantise(values, search=False).scales.astype(np.float32)) * wide
    found, kept = codes_of(torch.from_numpy(values), scales, None, target)
    return Codes(found.numpy(), kept.numpy(), target.group)


def gptq(weight: Tensor, gram: Tensor, target: Target, damping: float) -> Codes:
    """Round a matrix, and let columns to the right make up for the error.

    Args:
        weight: (rows, columns). gram: (columns, columns) Σ x xᵀ over inputs.
        damping: share of the mean of the diagonal that is added to it.
    """
    w, h = weight.double().clone(), gram.double().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    h.diagonal().add_(damping * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    rows, columns = w.shape
    codes = torch.zeros(rows, columns)
    scales = torch.zeros(rows, -(-columns // target.group))
    low, high, step = target.low, target.high, target.step
    for start in range(0, columns, target.group):
        end, g = min(start + target.group, columns), start // target.group
        scales[:, g] = torch.from_numpy(nearest(w[:, start:end], target).scales[:, 0].astype(np.float32))
        scale = torch.where(scales[:, g] == 0, 1.0, scales[:, g]).double()
        errors = torch.zeros_like(w[:, start:end])
        keep = torch.ones_like(errors, dtype=torch.bool)
        for i in range(start, end):
            at = i - start
            if target.sparse and at % target.m == 0:
                score = (w[:, i : i + target.m] / upper.diagonal()[i : i + target.m]).square()
                keep[:, at : at + target.m] = keep_mask(score, target.n, target.m)
            code = (torch.round((w[:, i] / scale - low) / step) * step + low).clamp(low, high) * keep[:, at]
            codes[:, i] = code.float()
            left = code * scales[:, g].double()
            errors[:, at] = (w[:, i] - left) / upper[i, i]
            w[:, i:end] -= errors[:, at, None] * upper[i, i:end]
        w[:, end:] -= errors @ upper[start:end, end:]
    return Codes(codes.to(torch.int8).numpy(), scales.half().numpy(), target.group)


def rotated_targets(model: Model, choice: Choice, rotation: str) -> dict[str, Target]:
    """Grids by module, of tied ones the first; the model is rotated if wanted.

    Raises:
        ConfigError: as `places` and `andes_qat.rotation.rotate`.
    """
    targets = _once(model, choice)
    if rotation:
        rotate(cast("VisionLanguageModel", model), rotation)
    return targets


def _once(model: Model, choice: Choice) -> dict[str, Target]:
    """Grids by module, of tied ones the first."""
    seen: set[int] = set()
    found = {}
    for name, target in places(model, choice).items():
        if id(_matrix(model, name)) not in seen:
            seen.add(id(_matrix(model, name)))
            found[name] = target
    return found


def _matrix(model: Model, name: str) -> Tensor:
    return cast("Tensor", dict(model.named_modules())[name].weight)


def _give(model: Model, codes: Mapping[str, Codes]) -> dict[str, Any]:
    """Weights become codes times scales -> how many, and how far they moved."""
    change = size = 0.0
    for name, one in codes.items():
        weight = _matrix(model, name.removesuffix(".weight"))
        new = torch.from_numpy(one.weights()).to(weight.device, weight.dtype)
        change += float((new - weight).double().square().sum())
        size += float(weight.double().square().sum())
        weight.copy_(new)
    return {"matrices": len(codes), "relative_error": (change / size) ** 0.5 if size else 0.0}


def _shared(model: Model, record: Record, folder: str) -> dict[str, str]:
    """Modules with a range alone, such as a head that is the embedding too -> the module whose codes they have.

    Raises:
        ConfigError: naming the first that is not there, or shares no codes.
    """
    modules, found = dict(model.named_modules()), {}
    owners = {id(modules[name].weight): name for name in record.targets}
    for name in sorted(record.ranges.keys() - record.targets.keys()):
        module = modules.get(name)
        if (owner := owners.get(id(getattr(module, "weight", None)))) is None:
            what = "the model has no such module" if module is None else "a range, and no codes for its weights"
            raise ConfigError(what, who=name, why=f"{folder} has a range for it", fix="open the run's own `model`")
        found[name] = owner
    return found


def _refuse_others(model: Model, codes: Mapping[str, Codes], folder: str) -> None:
    """Refuse codes that are not those of the model's weights: in float32, or as 16 bits of a checkpoint hold them."""
    modules = dict(model.named_modules())
    for name, one in codes.items():
        owner = name.removesuffix(".weight")
        weight = getattr(modules.get(owner), "weight", None)
        if type(modules.get(owner)) not in (nn.Linear, nn.Embedding) or weight is None:
            raise ConfigError("the model has no such plain matrix", who=name, fix="open the run's own `model`")
        if tuple(weight.shape) != one.values.shape:
            why = f"codes of {one.values.shape} in {folder}, weights of {tuple(weight.shape)}"
            raise ConfigError("codes of another shape", who=name, why=why, fix="open the run's own `model`")
        own, new = weight.detach().float().cpu(), torch.from_numpy(one.weights())
        if not any(torch.equal(own, new.to(kind).float()) for kind in (torch.float32, torch.bfloat16, torch.float16)):
            why = f"the codes in {folder} stand for other numbers; what was trained since would be undone"
            fix = "open the run's own `model`, train on with the stage `qat`, or leave `codes` out to round to nearest"
            raise ConfigError("codes of other weights", who=name, why=why, fix=fix)
