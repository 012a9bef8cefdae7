"""One-shot pruning to N:M: the baselines that training is compared with.

- `magnitude`: the largest |w| of every M stay. No data.
- `wanda` (arXiv 2306.11695, eq. 1): the largest |w| · ‖x‖ stay, ‖x‖ the norm of what the weight is multiplied with.
- `sparsegpt` (arXiv 2301.00774, algorithm 1): the largest w² / [H⁻¹] stay, and the columns to the right make up for
  each weight that goes (optimal brain surgeon), block of columns by block.

Layers are pruned first to last. Each is given what the pruned layers before it send on, as in both papers.
Left out: other orders of columns, sparsity that differs from layer to layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from andes_sdk.errors import ConfigError
from andes_sdk.types import Compressed

from .calibration import Calibration
from .masks import keep_mask, matrices

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model

METHODS = ("magnitude", "wanda", "sparsegpt")
BLOCK = 128
"""Columns of a block of `sparsegpt`, about."""
OPTIONS: Mapping[str, type] = {"n": int, "m": int, "data": str, "lines": int, "max_tokens": int, "damping": float}
"""What a call may say otherwise than the plugin's options."""


def magnitude(weight: Tensor, n: int, m: int) -> Tensor:
    """(rows, columns) -> the same, pruned."""
    return weight * keep_mask(weight.abs(), n, m)


def wanda(weight: Tensor, squares: Tensor, n: int, m: int) -> Tensor:
    """(rows, columns) weights and (columns,) sums of squared inputs -> pruned weights."""
    return weight * keep_mask(weight.abs() * squares.sqrt(), n, m)


def sparsegpt(weight: Tensor, gram: Tensor, n: int, m: int, *, damping: float = 0.01, block: int = BLOCK) -> Tensor:
    """Prune a matrix, and let the weights that stay make up for those that go.

    Args:
        weight: (rows, columns). gram: (columns, columns) Σ x xᵀ over inputs; the factor 2 of the Hessian cancels.
        damping: share of the mean of the diagonal that is added to it.
        block: columns whose errors are passed on together; rounded to a multiple of m.
    """
    w, h = weight.double().clone(), gram.double().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    w[:, dead] = 0.0  # what is always multiplied by zero
    h.diagonal().add_(damping * h.diagonal().mean())
    # row i of the upper factor holds, beside its diagonal, what column i means to those right of it
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    step = max(m, block // m * m)
    for start in range(0, w.shape[1], step):
        end = min(start + step, w.shape[1])
        errors = torch.zeros_like(w[:, start:end])
        keep = torch.zeros_like(errors, dtype=torch.bool)
        for i in range(start, end):
            at = i - start
            if at % m == 0:
                score = (w[:, i : i + m] / upper.diagonal()[i : i + m]).square()
                keep[:, at : at + m] = keep_mask(score, n, m)
            left = torch.where(keep[:, at], w[:, i], 0.0)
            errors[:, at] = (w[:, i] - left) / upper[i, i]
            w[:, i:end] -= errors[:, at, None] * upper[i, i:end]
            w[:, i] = left  # exactly zero where it is pruned
        w[:, end:] -= errors @ upper[start:end, end:]
    return w


@frozen(kw_only=True)
class Pruner:
    """One method as a compressor: see `andes_sdk.types.Compressor`, and the plugin's options for the attributes."""

    name: str
    n: int
    m: int
    roles: Sequence[str] = ()
    data: str = ""
    lines: int = 128
    max_tokens: int = 2048
    damping: float = 0.01

    @torch.no_grad()
    def compress(self, model: Model, **options: Any) -> Compressed:
        """Prune the matrices of the language model's layers in place; embeddings and the head stay.

        Options: n, m, data, lines, max_tokens and damping, instead of the plugin's.

        Returns:
            A report. matrices: how many were pruned. pattern. sparsity: share of their weights that are zero.
            relative_error: norm of the change ÷ norm of the weights. tokens: that they were calibrated with.

        Raises:
            ConfigError: an option, a model without plain matrices, or no data where the method needs some.
            TrainingError: data that cannot be read.
        """
        own = self._with(options)
        found = matrices(model, own.m, own.roles)
        calibration = None
        if own.name != "magnitude":
            whole = cast("VisionLanguageModel", model)
            calibration = Calibration.of(whole, own.data, own.lines, own.max_tokens, own.name)
        layers: dict[int, dict[str, nn.Linear]] = {}
        for name, (layer, module) in found.items():
            layers.setdefault(layer, {})[name] = module
        zeros = total = 0
        change = size = 0.0
        for layer, modules in sorted(layers.items()):
            seen = own._statistics(calibration, layer, modules)
            for name, module in modules.items():
                old = module.weight
                new = own._pruned(name, old.float(), seen.get(name)).to(old.dtype)
                if not bool(new.isfinite().all()):
                    fix = "raise `damping`, or give more lines"
                    raise ConfigError("pruning gives weights that are not finite", who=name, fix=fix)
                change += float((new - old).double().square().sum())
                size += float(old.double().square().sum())
                old.copy_(new)
                zeros, total = zeros + int((new == 0).sum()), total + new.numel()
        report = {
            "matrices": len(found), "pattern": f"{own.n}:{own.m}", "sparsity": zeros / total,
            "relative_error": (change / size) ** 0.5 if size else 0.0,
            "tokens": calibration.tokens if calibration is not None else 0,
        }  # fmt: skip
        return Compressed(report=report)

    def _with(self, options: Mapping[str, Any]) -> Pruner:
        for name, value in options.items():
            if name not in OPTIONS:
                raise ConfigError(f"no option {name!r}", who=self.name, fix=f"use {', '.join(OPTIONS)}")
            kinds: tuple[type, ...] = (int, float) if OPTIONS[name] is float else (OPTIONS[name],)
            right = isinstance(value, kinds) and not isinstance(value, bool)
            if not right or (kinds != (str,) and not value > 0):
                raise ConfigError(f"{name} cannot be {value!r}", who=self.name, fix="see `andes plugins show sparsity`")
        own = evolve(self, **options)
        if not own.n < own.m:
            raise ConfigError(f"{own.n} of {own.m} weights are all of them", who=self.name, fix="give n below m")
        return own

    def _statistics(
        self, calibration: Calibration | None, layer: int, modules: Mapping[str, nn.Linear]
    ) -> dict[str, Tensor]:
        """Of each matrix (columns,) sums of squares, or for `sparsegpt` (columns, columns) sums of products."""
        seen: dict[str, Tensor] = {}
        if calibration is None:
            return seen

        def see(name: str, rows: Tensor) -> None:
            x = rows.double()
            seen[name] = seen.get(name, 0.0) + (x.T @ x if self.name == "sparsegpt" else x.square().sum(0))

        calibration.show(layer, modules, see)
        return seen

    def _pruned(self, name: str, weight: Tensor, seen: Tensor | None) -> Tensor:
        if self.name == "magnitude":
            return magnitude(weight, self.n, self.m)
        if seen is None:
            fix = "the model calls it in another way: use the compressor 'magnitude'"
            raise ConfigError("no input of it was seen", who=name, fix=fix)
        if self.name == "wanda":
            return wanda(weight, seen.to(weight.dtype), self.n, self.m)
        return sparsegpt(weight, seen, self.n, self.m, damping=self.damping).to(weight.dtype)
