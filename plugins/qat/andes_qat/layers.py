"""Layers that round while they train, and what they become: layers that hold the codes they are packed from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from andes_sparsity.masks import exact, keep_mask
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from andes_sdk.errors import ConfigError
from andes_sdk.types import Codes, Range

from .fake import codes_of, rounded, rounded_input
from .grids import Target

if TYPE_CHECKING:
    from andes_sdk.types import Model

RULES = ("absmean", "lsq", "seq")
INPUTS = ("learned", "calibrated")
PARTS = (
    "weight_base", "weight_scale", "weight_mask", "weight_sparse", "input_base", "input_scale", "input_most",
)  # fmt: skip


class Rounding(nn.Module):
    """What both kinds of layers share while they train; put in by `put_in`, never made by its constructor.

    Scales are a buffer, `weight_base` (rows, groups) and `input_base`, times e to the power of a parameter,
    `weight_scale` and `input_scale`, which is None where nothing is learned: so a step of the optimizer changes all of
    them by the same share, and none changes its sign. weight_mask (rows, columns) is a buffer where the grid is sparse,
    weight_sparse whether the weights had its zeros from the start; input_most is the largest magnitude seen so far.
    off: computes in floats, as if it did not round.
    """

    weight: Tensor
    weight_base: Tensor | None
    weight_scale: Tensor | None
    weight_mask: Tensor | None
    weight_sparse: Tensor | None
    input_base: Tensor | None
    input_scale: Tensor | None
    input_most: Tensor
    target: Target
    rule: str
    bits: int
    observing: bool
    off: bool
    before: tuple[Codes, Range | None] | None

    @property
    def scales(self) -> Tensor | None:
        """(rows, groups) of the weights; None where they follow from the weights."""
        if self.weight_base is None or self.weight_scale is None:
            return None
        return self.weight_base * self.weight_scale.exp()

    def codes(self) -> Codes:
        """What the forward pass computes with."""
        values, scales = codes_of(self.weight, self.scales, self.weight_mask, self.target)
        return Codes(values.cpu().numpy(), scales.cpu().numpy(), self.target.group)

    def input_range(self) -> Range | None:
        """How the input is rounded; None if it is not."""
        if self.input_base is None:
            return None
        step = self.input_base if self.input_scale is None else self.input_base * self.input_scale.exp()
        return Range(bits=self.bits, scale=float(step.detach().float()))

    def taken(self, x: Tensor) -> Tensor:
        """An input as the device has it; while ranges are measured, with the largest magnitude up to now."""
        if self.input_base is None:
            return x
        base = self.input_base
        if self.observing:
            most = torch.maximum(self.input_most, x.detach().abs().max().float())
            if self.training:
                self.input_most.copy_(most)
            base = most.clamp_min(torch.finfo(torch.float32).tiny) / self.highest
        step = base if self.input_scale is None else base * self.input_scale.exp()
        return rounded_input(x, step, self.bits)

    @property
    def highest(self) -> int:
        """The largest code of an input."""
        return (1 << self.bits - 1) - 1

    @torch.no_grad()
    def choose(self, count: int) -> None:
        """Choose anew which `count` of every m weights survive: the largest magnitudes."""
        if self.weight_mask is not None:
            self.weight_mask.copy_(keep_mask(self.weight.abs(), count, self.target.m))

    @torch.no_grad()
    def settle_input(self, name: str) -> None:
        """Take the measured range.

        Raises:
            ConfigError: nothing was seen, only zeros, or numbers that are not finite.
        """
        if self.input_base is None:
            return
        most = float(self.input_most)
        if not 0 < most < float("inf"):
            what = "no input was seen, or only zeros" if most == 0 else f"the largest input seen is {most}"
            fix = "give data that reaches it, more calibration steps, or leave its kind in floats"
            raise ConfigError("an input range that cannot be", who=name, why=what, fix=fix)
        self.input_base.fill_(most / self.highest)


class RoundLinear(Rounding, nn.Linear):
    """A linear layer that computes with rounded weights, and rounded inputs if it has a range."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.off:
            return linear(x, self.weight, self.bias)
        weight = rounded(self.weight, self.scales, self.weight_mask, self.target, self.rule)
        return linear(self.taken(x), weight, self.bias)


class RoundEmbedding(Rounding, nn.Embedding):
    """An embedding of rounded rows; only those that are looked up are rounded."""

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., D)."""
        if self.off:
            return embedding(ids, self.weight)
        used, place = ids.unique(return_inverse=True)
        scale, mask = (None if t is None else t[used] for t in (self.scales, self.weight_mask))
        rows = rounded(self.weight[used], scale, mask, self.target, self.rule)
        return embedding(place, rows)


class Held(nn.Module):
    """A trained layer: its weight is codes times scales, and it says so (`andes_sdk.types.Quantised`)."""

    weight: Tensor
    held: Codes
    held_range: Range | None

    def codes(self) -> Codes:
        """The codes that were trained.

        Raises:
            ConfigError: the weights were changed since.
        """
        own = torch.from_numpy(self.held.weights()).to(self.weight.device, self.weight.dtype)
        if not torch.equal(own, self.weight.detach()):
            fix = "train with adapters, or quantise the changed weights again"
            raise ConfigError("the weights are no longer those of their codes", who="qat", fix=fix)
        return self.held

    def input_range(self) -> Range | None:
        """The range that was trained."""
        return self.held_range


class HeldLinear(Held, nn.Linear):
    """A linear layer on its grid; its input is rounded if it has a range."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        one = self.held_range
        if one is not None:
            x = rounded_input(x, torch.tensor(one.scale, device=x.device), one.bits)
        return linear(x, self.weight, self.bias)


class HeldEmbedding(Held, nn.Embedding):
    """An embedding on its grid."""


def put_in(module: nn.Module, target: Target, rule: str, bits: int, inputs: str, shared: Rounding | None) -> Rounding:
    """Make a plain layer one that rounds, in place.

    Args:
        bits: of inputs; 0 leaves them in floats. inputs: whether their scale is 'learned' or 'calibrated'.
        shared: the layer that has the same weight, whose scales and mask are shared.
    """
    weight = cast("Tensor", module.weight)
    before = (module.held, module.held_range) if isinstance(module, Held) else None
    held = None if before is None else before[0]
    kind = RoundEmbedding if isinstance(module, nn.Embedding) else RoundLinear
    module.__class__ = kind  # in place: names, hooks and whoever holds the module stay
    one = cast("Rounding", module)
    one.target, one.bits, one.observing, one.before = target, bits, bool(bits), before
    one.off = False
    one.rule = "lsq" if rule == "seq" and not target.coarse else rule  # seq is for grids of few levels
    mask, zeros = (None, None) if shared is None else (shared.weight_mask, shared.weight_sparse)
    if target.sparse and shared is None:
        there = not weight.is_meta and exact(weight.detach(), target.n, target.m)
        zeros = torch.tensor(there, device=weight.device)
        mask = keep_mask(weight.detach().abs(), target.n if there else target.m, target.m)
    one.register_buffer("weight_mask", mask)
    one.register_buffer("weight_sparse", zeros)
    base, learned = None, None
    if rule != "absmean":
        base = _first_scales(weight, target, held) if shared is None else shared.weight_base
        learned = nn.Parameter(torch.zeros_like(cast("Tensor", base))) if shared is None else shared.weight_scale
    one.register_buffer("weight_base", base)
    one.register_parameter("weight_scale", cast("nn.Parameter | None", learned))
    rounds = bool(bits) and not isinstance(module, nn.Embedding)
    start = torch.ones((), device=weight.device)
    one.register_buffer("input_base", start if rounds else None)
    one.register_buffer("input_most", torch.zeros_like(start) if rounds else None)
    one.register_parameter(
        "input_scale", nn.Parameter(torch.zeros_like(start)) if rounds and inputs == "learned" else None
    )
    return one


def _first_scales(weight: Tensor, target: Target, held: Codes | None) -> Tensor:
    """Those of an earlier stage on this grid; else what the format's own search chooses, by least squares."""
    rows, groups = len(weight), -(-weight.shape[1] // target.group)
    if held is not None and held.group == target.group and target.holds(held):
        return torch.from_numpy(held.scales.astype(np.float32)).to(weight.device)
    if weight.is_meta:
        return torch.empty(rows, groups, device="meta")
    found = target.form.quantise(weight.detach().float().cpu().numpy()).scales.astype(np.float32)
    if target.high != target.form.grid.high:  # fewer levels reach as far
        found *= target.form.grid.high / target.high
    return torch.from_numpy(found).to(weight.device)


@torch.no_grad()
def take_out(model: Model, *, learnt: bool = True) -> None:
    """Every layer that rounds gets the weights that it computed with, and holds their codes.

    Args:
        learnt: False where no step was made: layers become what they were.

    Raises:
        ConfigError: an input range that cannot be.
    """
    layers = rounding_layers(model)
    made = {name: (module.codes(), module.input_range()) for name, module in layers.items()} if learnt else {}
    seen: set[int] = set()
    for name, module in layers.items():
        first = id(module.weight) not in seen
        seen.add(id(module.weight))
        for part in PARTS:
            module._parameters.pop(part, None)
            module._buffers.pop(part, None)
        given = made[name] if learnt else module.before
        if learnt and first:
            module.weight.copy_(torch.from_numpy(made[name][0].weights()))
        if given is not None:
            hold(module, *given)
        else:
            module.__class__ = nn.Embedding if isinstance(module, nn.Embedding) else nn.Linear  # type: ignore[assignment]


def hold(module: nn.Module, codes: Codes, range_: Range | None) -> None:
    """Make a layer one that holds codes, whose weights it has already."""
    module.__class__ = HeldEmbedding if isinstance(module, nn.Embedding) else HeldLinear
    one = cast("Held", module)
    one.held, one.held_range = codes, range_


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Numbers of 16 bits are float32 while this lasts, and what they became is rounded to their own type after it."""
    wide = (torch.float32, torch.float64)
    narrow = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.dtype not in wide]
    before = [t.data for t in narrow]
    for tensor in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, old in zip(narrow, before, strict=True):
            old.copy_(tensor.data)
            tensor.data = old


def rounding_layers(model: Model) -> dict[str, Rounding]:
    """Layers that round, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Rounding)}
