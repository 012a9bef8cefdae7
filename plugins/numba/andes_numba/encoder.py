"""The vision encoder and the projector of a model: compiled where they can be, on torch where they cannot, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from attrs import astuple, define, field, frozen
from torch import Tensor

from andes_sdk.errors import BackendUnavailable, InputError
from andes_sdk.inputs.patches import patch_positions

from .blueprint import Described, PackedEncoder, PackedProjector, obstacle, pack_encoder, pack_projector
from .machine import features
from .simd import Tag
from .team import Team
from .vision import forward, project
from .vision_attention import STRIP

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Grid

    from .blueprint import EncoderPlan, ProjectorPlan

NUMBERS = ("w8", "bf16", "f32")
"""Options that compile; "torch" does not."""

Run = Callable[..., Tensor]


@frozen
class Numbers:
    """What the kernels compute in: products with weights, scores, and weighted values; "wide" is int8."""

    products: str
    scores: str
    values: str

    def __str__(self) -> str:
        told = [part.replace("wide", "int8") for part in (self.products, self.scores, self.values)]
        return f"compiled, {told[0]} products, {told[1]} scores, {told[2]} weighted values"


def brain(kernels: str) -> bool:
    """Whether a kernel set can multiply bfloat16 on this processor."""
    return kernels == "avx512vnni" and "avx512bf16" in features()


def choose_numbers(wanted: str, kernels: str) -> Numbers:
    """Numbers for "w8", "bf16" or "f32" and a kernel set.

    Raises:
        BackendUnavailable: bfloat16 on a processor that cannot multiply it.
    """
    if wanted == "bf16" and not brain(kernels):
        raise BackendUnavailable(
            "these kernels cannot multiply bfloat16",
            who="numba.vision",
            why="the processor lacks avx512bf16" if kernels == "avx512vnni" else f"the kernel set is {kernels!r}",
            fix="use vision='auto', 'w8' or 'f32'",
        )
    if wanted != "w8":
        return Numbers(wanted, wanted, wanted)
    # bytes beat float32 only where one instruction multiplies and adds them
    return Numbers("wide", "wide" if kernels == "avx512vnni" else "f32", "bf16" if brain(kernels) else "f32")


def choose_vision(wanted: str, activations: str, kernels: str) -> str:
    """What "auto" stands for: "f32" beside exact activations, else "bf16", or "w8" where bfloat16 is not multiplied."""
    if wanted != "auto":
        return wanted
    if activations == "exact":
        return "f32"
    return "bf16" if brain(kernels) else "w8"


@define(eq=False)
class CompiledEncoder:
    """(N, 3*p*p) patches and grids -> (N, Dv) features, as the module it was made from."""

    packed: PackedEncoder
    tags: tuple[Tag, ...]
    merge: int
    team: Team
    _tables: dict[Grid, np.ndarray] = field(factory=dict)

    def __call__(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Float32 features."""
        grids = [(h, w) for h, w in grids]
        shape, count = self.packed.shape, sum(h * w for h, w in grids)
        if tuple(patches.shape) != (count, self.packed.pixels):
            raise InputError(
                f"patches of shape {tuple(patches.shape)} do not fit the grids {grids}",
                who="numba.vision",
                why=f"these grids stand for {count} patches of {self.packed.pixels} values",
                fix="prepare the images with the patch size and merge of this encoder's spec",
            )
        out = np.empty((count, shape.width), np.float32)
        cos, sin = self._rotation(grids)
        numbers = np.ascontiguousarray(patches.float().numpy())
        positions = self._positions(grids)
        with self.team.at_work():
            forward(
                *self.tags, shape, self.packed.tower, strips_of(grids), numbers, positions, cos, sin, out,
                self.team.threads,
            )  # fmt: skip
        return torch.from_numpy(out)

    def _positions(self, grids: Sequence[Grid]) -> np.ndarray:
        """(N or 0, Dv): interpolated by the module itself, and kept while the same sizes come again."""
        make = self.packed.positions
        if make is None or not grids:
            return np.zeros((0, self.packed.shape.width), np.float32)
        wanted = dict.fromkeys(grids)
        self._tables = {g: self._tables[g] if g in self._tables else _table(make, g) for g in wanted}
        parts = [self._tables[grid] for grid in grids]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rotation(self, grids: Sequence[Grid]) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, (N, head / 2)."""
        base, half = self.packed.rotary, self.packed.shape.half
        if base is None:
            return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
        frequencies = 1.0 / base ** (torch.arange(half // 2, dtype=torch.float32) / (half // 2))
        angles = (patch_positions(grids, self.merge).float()[:, :, None] * frequencies).flatten(1)
        return angles.cos().numpy(), angles.sin().numpy()


def _table(make: Callable[[int, int], Tensor], grid: Grid) -> np.ndarray:
    return np.ascontiguousarray(make(*grid).detach().float().numpy())


@define(eq=False)
class CompiledProjector:
    """(N, Dv) features -> (N / merge**2, D) rows."""

    packed: PackedProjector
    tags: tuple[Tag, ...]
    team: Team

    def __call__(self, features: Tensor) -> Tensor:
        """Float32 rows."""
        x = features.reshape(len(features) // self.packed.merge**2, -1).float().numpy()
        out = np.empty((len(x), 16 * int(self.packed.matrices[1, 1])), np.float32)
        with self.team.at_work():
            project(*self.tags, self.packed.activation, self.packed.matrices, x, out, self.team.threads)
        return torch.from_numpy(out[:, : self.packed.width])


def strips_of(grids: Sequence[Grid]) -> np.ndarray:
    """(S, 4): first patch, patches, first and last strip of the image; no strip has patches of two images."""
    rows: list[list[int]] = []
    patch = 0
    for h, w in grids:
        first, count = len(rows), -(-h * w // STRIP)
        for n in range(count):
            rows.append([patch + n * STRIP, min(STRIP, h * w - n * STRIP), first, first + count])
        patch += h * w
    return np.array(rows, np.int64).reshape(-1, 4)


# ---------------------------------------------------------------- a model's


class Vision:
    """What turns pictures into rows: encoder and projector in the numbers asked for, packed when the first one comes.

    Attributes:
        facts: rows for `explain()`: what runs in which numbers, and what stays on torch and why.
    """

    def __init__(self, model: VisionLanguageModel, wanted: str, kernels: str, team: Team) -> None:
        self._model, self._team = model, team
        self._numbers = None if wanted == "torch" else choose_numbers(wanted, kernels)
        chosen = () if self._numbers is None else astuple(self._numbers)
        self._tags = (Tag("isa", kernels), *(Tag("number", n) for n in chosen))
        modules = {"vision": model.vision_encoder, "projector": model.mlp}
        self._why = {part: self._stays(module) for part, module in modules.items()}
        self.facts = {part: f"on torch: {why}" if why else str(self._numbers) for part, why in self._why.items()}

    def _stays(self, module: object) -> str | None:
        """Why a module stays on torch, or None."""
        if self._numbers is None:
            return "asked for"
        if not isinstance(module, Described):
            return f"{type(module).__name__} has no blueprint"
        plan = module.blueprint()
        return None if "first" in plan else obstacle(plan)

    @cached_property
    def encode(self) -> Run:
        """(N, 3*p*p) patches and their grids -> (N, Dv)."""
        module = self._model.vision_encoder
        if self._numbers is None or self._why["vision"]:
            kind = self._model.dtype
            return lambda patches, grids: cast("Tensor", module(patches.to(kind), grids))
        plan = cast("EncoderPlan", cast("Described", module).blueprint())
        packed = pack_encoder(plan, self._numbers.products)
        return CompiledEncoder(packed, self._tags, self._model.vision.merge, self._team)

    @cached_property
    def project(self) -> Run:
        """(N, Dv) -> (N / merge**2, D)."""
        module = self._model.mlp
        if self._numbers is None or self._why["projector"]:
            kind = self._model.dtype
            return lambda features: cast("Tensor", module(features.to(kind)))
        plan = cast("ProjectorPlan", cast("Described", module).blueprint())
        return CompiledProjector(pack_projector(plan, self._numbers.products), self._tags[:2], self._team)
