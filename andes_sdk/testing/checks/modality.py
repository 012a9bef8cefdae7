"""Modalities: items in, rows out, each item on its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from andes_sdk.errors import InputError
from andes_sdk.testing import weights
from andes_sdk.testing.material import answer_to_everything
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require, require_bits, require_close, require_finite
from andes_sdk.types import Media, Modality

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

KIND = "modalities"
ROUNDING = 1e-5
"""The same row in a matrix product of other rows: only the kernel's order of additions may differ."""


def _senses(subject: Subject) -> Iterator[tuple[Modality, Sequence[Any]]]:
    """Each modality, and items for it."""
    found = list(subject.assembly.manager.get_plugin(subject.name).andes_modalities())  # type: ignore[union-attr]
    require(found, "andes_modalities returned nothing")
    for sense in found:
        require(isinstance(sense, Modality), f"{type(sense).__name__} is no Modality")
        items = getattr(subject.cls, "examples", {}).get(sense.name, ())
        require(len(items) > 1, f"the plugin's attribute `examples` has fewer than two items for {sense.name!r}")
        yield sense, items


def _build(subject: Subject, sense: Modality, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = sense.build(subject.pipe.model.text)
    require(isinstance(built, nn.Module), f"{sense.name!r} builds {type(built).__name__}, not an nn.Module")
    return built


def _forward(media: Media) -> weights.Forward:
    def forward(module: Any) -> Tensor:
        rows: Tensor = module(media.data.to(next(module.parameters()).dtype), media.sizes)
        return rows

    return forward


@check(KIND, "every modality has a name of its own, and a placeholder")
def _names(subject: Subject) -> None:
    names = [sense.name for sense, _ in _senses(subject)]
    require(len(set(names)) == len(names), f"two modalities share a name: {names}")
    marks = {subject.pipe.tokenizer.placeholder(name) for name in (*names, "image")}
    require(len(marks) == len(names) + 1, "two kinds share a placeholder")


@check(KIND, "sizes and rows agree with what the module returns")
@torch.no_grad()
def _agree(subject: Subject) -> None:
    width = subject.pipe.model.text.width
    for sense, items in _senses(subject):
        module, empty = _build(subject, sense), sense.pack([])
        for media, count in ((sense.pack(items), len(items)), (sense.pack(items[:1]), 1), (empty, 0)):
            counts = (len(media.sizes), len(media.rows))
            require(counts == (count, count), f"{count} items give {counts[0]} sizes and {counts[1]} rows")
            filled = sum(math.prod(size) for size in media.sizes)
            require(filled == len(media.data), f"sizes {media.sizes} make {filled}, the data has {len(media.data)}")
            require(media.data.shape[1:] == empty.data.shape[1:], "data of no items has other axes")
            rows, wanted = _forward(media)(module), (sum(media.rows), width)
            require(tuple(rows.shape) == wanted, f"{count} items give rows {tuple(rows.shape)}, not {wanted}")
            require_finite(rows, f"rows of {sense.name!r}")


@check(KIND, "items keep their order, and none changes another")
@torch.no_grad()
def _order(subject: Subject) -> None:
    for sense, items in _senses(subject):
        module, backwards = weights.randomised(_build(subject, sense)).eval(), list(items)[::-1]
        alone = [sense.pack([item]) for item in backwards]
        together, joined = sense.pack(backwards), Media.join(alone)
        require_bits(together.data, joined.data, "data of several items against one by one")
        require((together.sizes, together.rows) == (joined.sizes, joined.rows), "sizes or rows depend on other items")
        rows = torch.cat([_forward(one)(module) for one in alone])
        require_close(_forward(together)(module), rows, ROUNDING, "rows of several items against one by one")


@check(KIND, "the same items give the same rows, and one seed the same weights, to the bit")
def _repeats(subject: Subject) -> None:
    for sense, items in _senses(subject):
        first, again = sense.pack(items), sense.pack(items)
        require_bits(again.data, first.data, f"data of {sense.name!r} packed twice")
        require((again.sizes, again.rows) == (first.sizes, first.rows), "sizes or rows of the same items differ")
        weights.check_twice(weights.randomised(_build(subject, sense)).eval(), _forward(first))
        weights.check_seed(partial(_build, subject, sense))


@check(KIND, "what is no item is refused")
def _nonsense(subject: Subject) -> None:
    for sense, items in _senses(subject):
        for wrong in (object(), "no such thing", {"neither": "nor"}):
            message = f"{sense.name!r} takes {wrong!r}"
            weights.expect_refusal(partial(sense.pack, [*items, wrong]), message, (InputError,))


@check(KIND, "gradients reach every parameter, without items too")
def _gradients(subject: Subject) -> None:
    for sense, items in _senses(subject):
        module = weights.randomised(_build(subject, sense)).train()
        weights.gradients(module, _forward(sense.pack(items)))
        module.zero_grad()
        _forward(sense.pack([]))(module).sum().backward()
        lost = [name for name, p in module.named_parameters() if p.grad is None]
        require(not lost, f"without items no gradient reaches {', '.join(lost[:8])}")


@check(KIND, "builds on the meta device, runs in bfloat16, survives saving")
def _module(subject: Subject) -> None:
    for sense, items in _senses(subject):
        forward = _forward(sense.pack(items))
        weights.check_meta(partial(_build, subject, sense), _build(subject, sense))
        weights.check_saved(weights.randomised(_build(subject, sense)), _build(subject, sense, 9), forward)
        weights.check_bfloat16(weights.randomised(_build(subject, sense)), forward)


@check(KIND, "a message shows its items, and the model reads them")
def _prompt(subject: Subject) -> None:
    pipe = subject.pipe
    for sense, items in _senses(subject):
        parts = [{"type": sense.name, sense.name: item} for item in items]
        inputs = pipe.prepare([{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}])
        count = int((inputs.ids == pipe.tokenizer.placeholder(sense.name)).sum())
        wanted = sum(inputs.media[sense.name].rows)
        require(count == wanted, f"{count} placeholders for {wanted} rows")
        require_finite(answer_to_everything(pipe.model, inputs), f"logits behind {sense.name!r}")
