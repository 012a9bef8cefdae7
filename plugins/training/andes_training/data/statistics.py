"""What is in data files, counted: `andes data stats`."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field, frozen
from PIL import Image

from andes_sdk.errors import AndesError, InputError
from andes_sdk.inputs.messages import parse_messages
from andes_sdk.inputs.sources import ImageLimits, describe, read_source
from andes_sdk.types import Inputs, Media, Slot
from andes_training.data.bad import BadSample
from andes_training.data.inspection import PLAIN_THINKING
from andes_training.data.rows import (
    RowMaker,
    check_answered,
    check_thinking,
    conversations_of,
    read_conversations,
    texts_of,
)
from andes_training.data.samples import whole
from andes_training.packing import make_row
from andes_training.reading import in_order

if TYPE_CHECKING:
    from andes_sdk.types import Grid
    from andes_training.data.samples import Sample, Samples

SIDES = (224, 448, 896, 1792)
"""Pictures are counted by their longer side, in pixels."""


@define
class Statistics:
    """Counts over data files; lengths are those of a sample in a pack, with one token per row of a picture."""

    samples: int = 0
    unusable: Counter[str] = field(factory=Counter)
    conversations: int = 0
    turns: Counter[str] = field(factory=Counter)
    thinking: int = 0
    characters: int = 0
    lengths: list[int] = field(factory=list)
    supervised: int = 0
    image_tokens: int = 0
    sides: Counter[str] = field(factory=Counter)
    pictures: int = 0
    pixels: int = 0
    without_pictures: int = 0
    seen: dict[bytes, list[str]] = field(factory=lambda: defaultdict(list))

    def add(self, look: Look) -> None:
        """Count one sample."""
        self.samples += 1
        if look.problem:
            self.unusable[look.problem] += 1
            return
        self.conversations += look.conversations
        self.turns.update(look.roles)
        self.thinking += look.thinks
        self.characters += look.characters
        self.pictures += len(look.sizes)
        self.without_pictures += not look.sizes
        self.pixels += sum(w * h for w, h in look.sizes)
        self.sides.update(_side(max(size)) for size in look.sizes)
        self.seen[look.digest].append(look.where)
        if look.length:
            self.lengths.append(look.length)
            self.supervised += look.supervised
            self.image_tokens += look.image_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `tokens` only where a tokenizer was at hand."""
        twins = [places for places in self.seen.values() if len(places) > 1]
        facts: dict[str, Any] = {
            "samples": self.samples,
            "unusable": dict(self.unusable),
            "conversations": self.conversations,
            "turns": dict(self.turns),
            "thinking": self.thinking,
            "characters": self.characters,
            "pictures": {
                "count": self.pictures,
                "megapixels": round(self.pixels / 1e6, 3),
                "longer_side": {name: self.sides[name] for name in map(_side, (*SIDES, SIDES[-1] + 1))},
                "samples_without": self.without_pictures,
            },
            "duplicates": {"extra": sum(len(t) - 1 for t in twins), "groups": sorted(twins, key=len)[::-1][:10]},
        }
        if self.lengths:
            ordered = sorted(self.lengths)
            facts["tokens"] = {
                "total": sum(ordered),
                "supervised": self.supervised,
                "image": self.image_tokens,
                "mean": round(sum(ordered) / len(ordered), 1),
                "median": ordered[len(ordered) // 2],
                "p95": ordered[int(0.95 * (len(ordered) - 1))],
                "max": ordered[-1],
                "histogram": histogram(ordered),
            }
        return facts


@frozen
class Look:
    """What statistics need of one sample."""

    where: str
    problem: str = ""
    conversations: int = 0
    roles: tuple[str, ...] = ()
    thinks: bool = False
    characters: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    digest: bytes = b""
    length: int = 0
    supervised: int = 0
    image_tokens: int = 0


def statistics(samples: Samples, maker: RowMaker | None = None, workers: int = 1) -> Statistics:
    """Look at every sample once; of pictures only the headers are read.

    Args:
        maker: the stage's, for lengths in tokens; None leaves them out.
    """
    found, samples = Statistics(), whole(samples)
    for look in in_order(partial(_look, samples, maker), range(len(samples)), workers):
        found.add(look)
    return found


def _look(samples: Samples, maker: RowMaker | None, index: int) -> Look:
    where = samples.where(index)
    try:
        sample = samples[index]
        pictures: list[Image.Image] = []
        conversations = maker.conversations if maker else conversations_of
        filled = read_conversations(sample, conversations, partial(_header, pictures), random.Random(0))
        kinds = tuple(maker.processor.modalities) if maker else ("image",)
        turns = [parse_messages(conversation, kinds) for conversation in filled]
        if maker is None or maker.answered:
            check_thinking(sample, filled, maker.thinking if maker else PLAIN_THINKING)
            check_answered(sample, filled)
        length, supervised, rows = _lengths(sample, turns, maker) if maker else (0, 0, 0)
    except BadSample as error:
        return Look(where, problem=error.reason)
    except AndesError:
        return Look(where, problem="message")
    texts = [text for conversation in filled for message in conversation for text in texts_of(message)]
    last = ["".join(texts_of(conversation[-1])) for conversation in filled]
    told = json.dumps([[t.role, t.parts] for conversation, _ in turns for t in conversation], default=_slot)
    seen = hashlib.sha256(told.encode() + b"".join(p.info["sha256"] for p in pictures)).digest()
    return Look(
        where=where,
        conversations=len(filled),
        roles=tuple(t.role for conversation, _ in turns for t in conversation),
        thinks=any(text.startswith(PLAIN_THINKING.text) for text in last),
        characters=sum(map(len, texts)),
        sizes=tuple(p.size for p in pictures),
        digest=seen,
        length=length,
        supervised=supervised,
        image_tokens=rows,
    )


def _header(pictures: list[Image.Image], source: Any) -> Image.Image:
    """A picture of which only the size is known; its `info` holds the hash of its file."""
    data = read_source(source, describe(source), False, ImageLimits())
    try:
        image = Image.open(BytesIO(data))
    except Exception as error:  # Pillow's readers raise more than they document
        raise InputError("this is not a picture", who=describe(source), why=str(error)) from None
    image.info = {"sha256": hashlib.sha256(data).digest()}
    pictures.append(image)
    return image


def _lengths(sample: Sample, turns: Sequence[tuple[Any, Any]], maker: RowMaker) -> tuple[int, int, int]:
    """Rows of a sample in a pack, supervised ones, and those of pictures (which conversations share).

    Raises:
        BadSample: more than the stage takes.
    """
    processor, inputs = maker.processor, []
    for conversation, items in turns:
        media = {kind: _media(maker, kind, some) for kind, some in items.items()}
        rendered = processor.tokenizer.render(conversation, think=False, generate=False)
        ids, supervised = processor.expand(rendered, media)
        inputs.append(Inputs(torch.tensor(ids), media, torch.tensor(supervised)))
    row = make_row(inputs)
    if maker.answered:
        patches = sum(math.prod(size) for size in row.media["image"].sizes) if "image" in row.media else 0
        maker.check_size(sample, max(len(one.ids) for one in inputs), len(row.ids), patches)
    mark = processor.tokenizer.placeholder("image")
    return len(row.ids), int((row.labels != -100).sum()), int((row.ids == mark).sum())


def _slot(value: Slot) -> None:
    """What stands for a picture in the text that is hashed."""


def _media(maker: RowMaker, kind: str, items: Sequence[Any]) -> Media:
    if kind != "image":
        return maker.processor.modalities[kind].pack(items)
    return maker.processor.pictures.media(torch.empty(0), [_grid(maker, *image.size) for image in items])


def _grid(maker: RowMaker, width: int, height: int) -> Grid:
    preprocessor = maker.processor.preprocessor
    w, h = preprocessor.target_size(width, height)
    return h // preprocessor.patch_size, w // preprocessor.patch_size


def histogram(values: Sequence[int]) -> dict[str, int]:
    """Counts by powers of two: `<= 64`, `<= 128` … up to the largest value."""
    counts = Counter(max(value - 1, 0).bit_length() for value in values)
    return {f"<= {2**power}": counts[power] for power in range(min(counts), max(counts) + 1)} if counts else {}


def _side(pixels: int) -> str:
    return next((f"<= {side}" for side in SIDES if pixels <= side), f"> {SIDES[-1]}")
