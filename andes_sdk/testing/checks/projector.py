"""Projectors: blocks in, rows out, each block on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from andes_sdk.testing import weights
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require, require_close, require_finite
from andes_sdk.types import TextSpec, VisionSpec

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

KIND = "projector"
ROUNDING = 1e-6
"""The same row in a matrix product of other rows: only the kernel's order of additions may differ."""
VISION = VisionSpec(width=24, patch_size=8, merge=2)
TEXT = TextSpec(
    width=40, vocab_size=64, layers=2, query_heads=4, kv_heads=2, head_dim=10, max_positions=128
)  # fmt: skip


def _projector(subject: Subject, vision: VisionSpec = VISION, **arguments: Any) -> Any:
    built = subject.build("projector", vision=vision, text=TEXT, **arguments)
    return weights.randomised(built).float().eval()


def _features(blocks: int, vision: VisionSpec = VISION, seed: int = 1) -> Tensor:
    return torch.randn(blocks * vision.merge**2, vision.width, generator=torch.Generator().manual_seed(seed))


def _forward(projector: Any) -> Tensor:
    rows: Tensor = projector(_features(6).to(next(projector.parameters()).dtype))
    return rows


@check(KIND, "gives one finite row of the right width per block")
@torch.no_grad()
def _shape(subject: Subject) -> None:
    projector = _projector(subject)
    require(isinstance(projector, nn.Module), f"built {type(projector).__name__}, not an nn.Module")
    out = projector(_features(6))
    require(tuple(out.shape) == (6, TEXT.width), f"6 blocks give shape {tuple(out.shape)}, not (6, {TEXT.width})")
    require_finite(out, "rows")


@check(KIND, "follows the specs it is given")
@torch.no_grad()
def _specs(subject: Subject) -> None:
    for vision in (VisionSpec(width=8, patch_size=4, merge=1), VisionSpec(width=12, patch_size=4, merge=3)):
        out = _projector(subject, vision)(_features(5, vision))
        wanted = (5, TEXT.width)
        require(
            tuple(out.shape) == wanted, f"merge {vision.merge}: 5 blocks give shape {tuple(out.shape)}, not {wanted}"
        )


@check(KIND, "a row depends on all of its block and on nothing else")
@torch.no_grad()
def _blocks(subject: Subject) -> None:
    projector, features = _projector(subject), _features(6)
    before, block = projector(features), VISION.merge**2
    for patch in range(len(features)):
        changed = features.clone()
        changed[patch] += 1.0
        off = (projector(changed) - before).abs().amax(1)
        own = patch // block
        require(bool(off[own] > 0), f"patch {patch} does not reach its row {own}")
        off[own] = 0.0
        require(bool(off.max() <= ROUNDING), f"patch {patch} changes row {int(off.argmax())}, not only its row {own}")


@check(KIND, "packed images equal single images")
@torch.no_grad()
def _packed(subject: Subject) -> None:
    projector, a, b = _projector(subject), _features(2), _features(3, seed=2)
    alone = torch.cat([projector(a), projector(b)])
    require_close(projector(torch.cat([a, b])), alone, ROUNDING, "two images together against apart")


@check(KIND, "no features give no rows")
@torch.no_grad()
def _empty(subject: Subject) -> None:
    out = _projector(subject)(_features(0))
    require(tuple(out.shape) == (0, TEXT.width), f"empty input gives shape {tuple(out.shape)}")


@check(KIND, "gradients reach every parameter")
def _gradients(subject: Subject) -> None:
    weights.gradients(_projector(subject).train(), _forward)


@check(KIND, "builds on the meta device under the same names")
def _meta(subject: Subject) -> None:
    weights.check_meta(lambda: subject.build("projector", vision=VISION, text=TEXT), _projector(subject))


@check(KIND, "runs in bfloat16")
def _bfloat16(subject: Subject) -> None:
    weights.check_bfloat16(_projector(subject), _forward)


@check(KIND, "weights survive saving, and one seed gives one model")
def _saved(subject: Subject) -> None:
    def build(seed: int) -> Any:
        return subject.build("projector", seed=seed, vision=VISION, text=TEXT)

    weights.check_seed(build)
    weights.check_saved(_projector(subject), build(9).eval(), _forward)
