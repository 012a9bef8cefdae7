"""Rounding that a gradient passes through: codes and scales as the formats store them.

- `absmean`: the format's plain scale, computed anew from the weights: the mean magnitude on ternary grids (BitNet
  b1.58, arXiv 2402.17764), the largest ÷ the highest code on others. The gradient passes to every weight.
- `lsq`: the scale is learned (LSQ, arXiv 1902.08153, eqs. 3 and 5; its gradient is multiplied with 1 / √(N · high)).
  Weights beyond the grid get no gradient.
- `seq`: the same on grids of up to four balanced levels, the grid reaching half a step beyond its outermost level
  (Stretched Elastic Quant, ParetoQ, arXiv 2502.02631, eq. 4): what is rounded to that level gets a gradient.

Scales are rounded to float16 in the forward pass, as they will be stored, and computed in float32.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from .grids import Target

SMALLEST, LARGEST = 2.0**-24, 65504.0
"""Of a float16."""


class _Rounded(torch.autograd.Function):
    """x -> code · scale, codes clipped to the grid; the gradient of x passes within `edge` of it, or everywhere."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, mask: Tensor | None, low: float, high: float, step: float, edge: float,
        gain: float,
    ) -> Tensor:  # fmt: skip
        ratio = x / scale
        codes = _codes(ratio, low, high, step)
        inside = None
        if any(ctx.needs_input_grad[:2]) and edge != float("inf"):
            inside = (ratio >= low - edge).logical_and_(ratio <= high + edge)
        error = None
        if ctx.needs_input_grad[1]:  # codes - ratio within the edge, codes beyond it
            error = codes - ratio if inside is None else torch.addcmul(codes, ratio, inside, value=-1)
        if mask is not None:
            away = mask.logical_not()
            codes.masked_fill_(away, 0.0)
            if error is not None:
                error.masked_fill_(away, 0.0)
        ctx.save_for_backward(inside, error)
        ctx.gain, ctx.shape = gain, scale.shape
        return codes.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        inside, error = ctx.saved_tensors
        of_scale = None if error is None else (gradient * error).sum_to_size(ctx.shape) * ctx.gain
        return gradient if inside is None else gradient * inside, of_scale, None, None, None, None, None, None


def _codes(ratio: Tensor, low: float, high: float, step: float) -> Tensor:
    # whole multiples of the step from `low` on, as `andes_packing.formats.Grid.round`
    if step == 1:
        return ratio.round().clamp_(low, high)
    if high - low == step:  # two levels: a tie goes to the lower one, as round half to even has it
        return (ratio > (low + high) / 2).to(ratio.dtype).mul_(step).add_(low)
    return torch.clamp(torch.round((ratio - low) / step) * step + low, low, high)


def half(scale: Tensor) -> Tensor:
    """The float16 that is stored, as float32, never zero; negative scales stay negative."""
    size = scale.abs().clamp(SMALLEST, LARGEST).half().float()
    return torch.where(scale < 0, -size, size)


class _Half(torch.autograd.Function):
    """`half`; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        return half(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def grouped(matrix: Tensor, group: int) -> Tensor:
    """(rows, columns) -> (rows, groups, group), zeros behind."""
    short = -matrix.shape[1] % group
    return cast("Tensor", (pad(matrix, (0, short)) if short else matrix).unflatten(1, (-1, group)))


def plain_scale(weight: Tensor, mask: Tensor | None, target: Target) -> Tensor:
    """(rows, columns) weights -> (rows, groups) scales, as `Grid.plain` of the format on what survives."""
    size = grouped(weight.abs() if mask is None else weight.abs() * mask, target.group)
    if not target.mean:
        return half(size.amax(-1) / target.high)
    survivors = target.group * target.n // target.m  # padding counts, as in the format
    return half(size.sum(-1) / survivors)


def rounded(weight: Tensor, scale: Tensor | None, mask: Tensor | None, target: Target, rule: str) -> Tensor:
    """(rows, columns) weights as the grid has them, float32, with gradients as the rule says.

    Args:
        scale: (rows, groups) that are learned; None for `absmean`. mask: (rows, columns) bool, survivors; or None.
    """
    if scale is None:
        stored, edge, gain = plain_scale(weight.detach(), mask, target), float("inf"), 0.0
    else:
        stored, edge = cast("Tensor", _Half.apply(scale)), target.step / 2 if rule == "seq" else 0.0
        gain = (target.group * target.n / target.m * target.high) ** -0.5
    whole = None if mask is None else grouped(mask, target.group)
    made = _Rounded.apply(
        grouped(weight, target.group), stored[..., None], whole, target.low, target.high, target.step, edge, gain
    )
    return cast("Tensor", made).flatten(1)[:, : weight.shape[1]]


@torch.no_grad()
def codes_of(weight: Tensor, scale: Tensor | None, mask: Tensor | None, target: Target) -> tuple[Tensor, Tensor]:
    """What `rounded` computes with: (rows, columns) int8 codes and (rows, groups) float16 scales."""
    stored = plain_scale(weight, mask, target) if scale is None else half(scale)
    codes = _codes(grouped(weight, target.group) / stored[..., None], target.low, target.high, target.step)
    codes = codes.flatten(1)[:, : weight.shape[1]]
    return (codes if mask is None else codes * mask).to(torch.int8), stored.half()


def rounded_input(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Activations as integers of `bits` bits, symmetric, times one scale; both get gradients (LSQ)."""
    high = (1 << bits - 1) - 1
    gain = (x.numel() * high) ** -0.5
    return cast("Tensor", _Rounded.apply(x.float(), scale.float(), None, -high - 1, high, 1, 0.0, gain)).to(x.dtype)
