"""Vision encoders: packing, independence of images, gradients, precision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from andes_sdk.inputs.patches import split_rows
from andes_sdk.testing import weights
from andes_sdk.testing.material import grids_of, patches_of
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require, require_bits, require_close, require_finite

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject
    from andes_sdk.types import Grid

KIND = "vision_encoder"
PACKED = 1e-5
"""Packed against single images in float32: the same sums, possibly in another order."""


def _encoder(subject: Subject, **arguments: Any) -> Any:
    return weights.randomised(subject.build("vision_encoder", **arguments)).float().eval()


def _material(encoder: Any, seed: int = 1) -> tuple[Tensor, list[Grid]]:
    grids = grids_of(encoder.spec)
    return patches_of(encoder.spec, grids, seed), grids


def _forward(encoder: Any) -> Tensor:
    patches, grids = _material(encoder)
    features: Tensor = encoder(patches.to(next(encoder.parameters()).dtype), grids)
    return features


@check(KIND, "is a module with a sane spec")
def _spec(subject: Subject) -> None:
    encoder = subject.build("vision_encoder")
    require(isinstance(encoder, nn.Module), f"built {type(encoder).__name__}, not an nn.Module")
    facts = encoder.spec
    for name in ("width", "patch_size", "merge"):
        value = getattr(facts, name)
        require(type(value) is int and value > 0, f"spec.{name} is {value!r}, not a whole number above 0")
    for name in ("mean", "std"):
        require(len(getattr(facts, name)) == 3, f"spec.{name} has not one value per channel")
    require(all(s > 0 for s in facts.std), f"spec.std is {facts.std}, not above 0")


@check(KIND, "features have the shape the spec states, and are finite")
@torch.no_grad()
def _shape(subject: Subject) -> None:
    encoder = _encoder(subject)
    patches, grids = _material(encoder)
    out = encoder(patches, grids)
    wanted = (len(patches), encoder.spec.width)
    require(tuple(out.shape) == wanted, f"features of shape {tuple(out.shape)}, the spec promises {wanted}")
    require(out.dtype is torch.float32, f"float32 weights give {out.dtype}")
    require_finite(out, "features")


@check(KIND, "features depend on the pixels")
@torch.no_grad()
def _depends(subject: Subject) -> None:
    encoder = _encoder(subject)
    _, grids = _material(encoder)
    parts = [split_rows(encoder(patches_of(encoder.spec, grids, s), grids), grids) for s in (1, 2)]
    for index, (a, b) in enumerate(zip(*parts, strict=True)):
        require(not torch.equal(a, b), f"image {index} has the same features whatever its pixels are")


@check(KIND, "packed images equal single images")
@torch.no_grad()
def _packed(subject: Subject) -> None:
    encoder = _encoder(subject)
    patches, grids = _material(encoder)
    together = split_rows(encoder(patches, grids), grids)
    alone = [encoder(p, [g]) for p, g in zip(split_rows(patches, grids), grids, strict=True)]
    for index, (a, b) in enumerate(zip(together, alone, strict=True)):
        require_close(a, b, PACKED, f"image {index} packed against alone")


@check(KIND, "the order of images does not matter")
@torch.no_grad()
def _order(subject: Subject) -> None:
    encoder = _encoder(subject)
    patches, grids = _material(encoder)
    parts = split_rows(patches, grids)
    turn = [2, 0, 1]
    turned = split_rows(
        encoder(torch.cat([parts[i] for i in turn]), [grids[i] for i in turn]), [grids[i] for i in turn]
    )
    plain = split_rows(encoder(patches, grids), grids)
    for place, index in enumerate(turn):
        require_close(turned[place], plain[index], PACKED, f"image {index} at place {place}")


@check(KIND, "an image never changes another, to the bit")
@torch.no_grad()
def _independent(subject: Subject) -> None:
    encoder = _encoder(subject)
    patches, grids = _material(encoder)
    before = split_rows(encoder(patches, grids), grids)
    for changed in range(len(grids)):
        parts = list(split_rows(patches, grids))
        parts[changed] = parts[changed] * -2.0 + 1.0
        after = split_rows(encoder(torch.cat(parts), grids), grids)
        for index in set(range(len(grids))) - {changed}:
            require_bits(after[index], before[index], f"features of image {index} after image {changed} changed")


@check(KIND, "long and narrow images work")
@torch.no_grad()
def _narrow(subject: Subject) -> None:
    encoder = _encoder(subject)
    grids = grids_of(encoder.spec, [(1, 9), (9, 1)])
    patches = patches_of(encoder.spec, grids)
    out = encoder(patches, grids)
    require(tuple(out.shape) == (len(patches), encoder.spec.width), f"features of shape {tuple(out.shape)}")
    require_finite(out, "features of narrow images")


@check(KIND, "the smallest image, one block, works")
@torch.no_grad()
def _smallest(subject: Subject) -> None:
    encoder = _encoder(subject)
    grids = grids_of(encoder.spec, [(1, 1)])
    out = encoder(patches_of(encoder.spec, grids), grids)
    require(tuple(out.shape) == (encoder.spec.merge**2, encoder.spec.width), f"features of shape {tuple(out.shape)}")
    require_finite(out, "features of one block")


@check(KIND, "no images give no rows")
@torch.no_grad()
def _empty(subject: Subject) -> None:
    encoder = _encoder(subject)
    out = encoder(patches_of(encoder.spec, []), [])
    require(tuple(out.shape) == (0, encoder.spec.width), f"an empty pack gives shape {tuple(out.shape)}")


@check(KIND, "refuses patches that do not fit the grids")
@torch.no_grad()
def _misfit(subject: Subject) -> None:
    encoder = _encoder(subject)
    patches, grids = _material(encoder)
    weights.expect_refusal(lambda: encoder(patches[:-1], grids), "takes a pack that lacks a patch")
    weights.expect_refusal(lambda: encoder(patches, grids[:-1]), "takes a pack whose last image has no grid")


@check(KIND, "the same input gives the same bits")
def _repeatable(subject: Subject) -> None:
    weights.check_twice(_encoder(subject), _forward)


@check(KIND, "gradients reach every parameter")
def _gradients(subject: Subject) -> None:
    weights.gradients(_encoder(subject).train(), _forward)


@check(KIND, "gradient checkpointing leaves gradients as they are")
def _checkpointing(subject: Subject) -> None:
    twin = subject.twin("gradient_checkpointing")
    weights.check_checkpointing(_encoder(subject), _encoder(subject, options=twin), _forward)


@check(KIND, "builds on the meta device under the same names")
def _meta(subject: Subject) -> None:
    weights.check_meta(lambda: subject.build("vision_encoder"), _encoder(subject))


@check(KIND, "runs in bfloat16")
def _bfloat16(subject: Subject) -> None:
    weights.check_bfloat16(_encoder(subject), _forward)


@check(KIND, "weights survive saving, and one seed gives one model")
def _saved(subject: Subject) -> None:
    weights.check_seed(lambda seed: subject.build("vision_encoder", seed=seed))
    weights.check_saved(_encoder(subject), subject.build("vision_encoder", seed=9).eval(), _forward)


@check(KIND, "compiles as one graph that gives the same features")
@torch.no_grad()
def _compiled(subject: Subject) -> None:
    encoder = _encoder(subject)
    patches, grids = _material(encoder)

    def run(patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        features: Tensor = encoder(patches, grids)
        return features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler warns about itself
        torch.compiler.reset()
        traced = torch.compile(run, fullgraph=True, backend="eager")(patches, grids)
        torch.compiler.reset()
    require_close(traced, encoder(patches, grids), PACKED, "compiled features")
