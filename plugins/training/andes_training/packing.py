"""Samples to packed batches: positions reset per sample, loss on supervised rows only, shared prefixes kept once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from attrs import evolve, field, frozen

from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.types import Media

if TYPE_CHECKING:
    from andes_sdk.types import Inputs


@frozen(eq=False)
class Row:
    """One training sample as tensors: a pack's smallest unit.

    Attributes:
        ids: (T,) prefix and branches one after another.
        labels: (T,) the id that the row must predict, or -100.
        segment: how the T rows divide.
        media: kind -> its pictures, or what else it holds; absent kinds have no items.
        extras: what a stage adds: 0-dim or 1-dim tensors by name, the same names in every row.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    segment: Segment
    media: Mapping[str, Media]
    extras: Mapping[str, torch.Tensor] = field(factory=dict)


@frozen(eq=False)
class Batch:
    """A pack of samples.

    Attributes:
        ids, labels, positions: (T,) over all samples; labels are -100 where no loss is placed.
        attend: attention that keeps samples apart.
        media: kind -> all pictures, packed, or what else there is.
        tokens: supervised rows, the loss is their mean; or what else a stage takes the mean over.
        samples: how many samples the pack holds.
        extras: the rows' extras, joined along their first axis.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    attend: PackedAttention
    media: Mapping[str, Media]
    tokens: int
    samples: int
    extras: Mapping[str, torch.Tensor] = field(factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        media = {kind: evolve(m, data=m.data.to(device)) for kind, m in self.media.items()}
        ids, labels, positions = (x.to(device) for x in (self.ids, self.labels, self.positions))
        extras = {name: x.to(device) for name, x in self.extras.items()}
        return evolve(self, ids=ids, labels=labels, positions=positions, media=media, extras=extras)


def make_row(conversations: Sequence[Inputs]) -> Row:
    """Conversations about the same pictures -> one row that encodes what they share only once.

    The shared prefix ends before the first supervised token, so that every loss lies inside a branch.
    """
    first = conversations[0]
    shared = _shared_prefix(conversations) if len(conversations) > 1 else len(first.ids)
    ids, labels = [first.ids[:shared]], [_labels(first)[:shared]]
    branches = []
    if len(conversations) > 1:
        for c in conversations:
            ids.append(c.ids[shared:])
            labels.append(_labels(c)[shared:])
            branches.append(len(c.ids) - shared)
    return Row(torch.cat(ids), torch.cat(labels), Segment(shared, tuple(branches)), first.media)


def _labels(inputs: Inputs) -> torch.Tensor:
    labels = torch.full_like(inputs.ids, -100)
    if inputs.supervised is not None:
        labels[:-1] = torch.where(inputs.supervised[1:], inputs.ids[1:], -100)
    return labels


def _shared_prefix(conversations: Sequence[Inputs]) -> int:
    limit = min(len(c.ids) for c in conversations)
    for c in conversations:
        if c.supervised is not None and bool(c.supervised.any()):
            limit = min(limit, int(c.supervised.int().argmax()) - 1)
    same = torch.stack([c.ids[:limit] == conversations[0].ids[:limit] for c in conversations]).all(0)
    return limit if bool(same.all()) else int((~same).int().argmax())


def collate(rows: Sequence[Row]) -> Batch:
    """Rows -> one packed batch."""
    kinds = dict.fromkeys(kind for r in rows for kind in r.media)
    labels = torch.cat([r.labels for r in rows])
    return Batch(
        ids=torch.cat([r.ids for r in rows]),
        labels=labels,
        positions=torch.cat([r.segment.positions() for r in rows]),
        attend=PackedAttention([r.segment for r in rows]),
        media={kind: Media.join([r.media[kind] for r in rows if kind in r.media]) for kind in kinds},
        tokens=int((labels != -100).sum()),
        samples=len(rows),
        extras={name: torch.cat([r.extras[name].reshape(-1) for r in rows]) for name in rows[0].extras},
    )


def branch_slices(batch: Batch) -> list[list[slice]]:
    """Per sample of a pack the rows of each branch; a sample without branches is one branch, all of its rows.

    Every supervised row of a sample lies inside its branches.
    """
    found, start = [], 0
    for segment in batch.attend.segments:
        edges = [start + segment.prefix if segment.branches else start]
        for length in segment.branches or (segment.prefix,):
            edges.append(edges[-1] + length)
        found.append([slice(a, b) for a, b in pairwise(edges)])
        start = edges[-1]
    return found


def patches_in(media: Mapping[str, Media]) -> int:
    """Patches of all pictures."""
    return len(media["image"].data) if "image" in media else 0


def pack(rows: Iterable[Row], *, max_tokens: int, max_patches: int) -> Iterator[list[Row]]:
    """Group rows in order until a pack would exceed either budget; a row larger than a budget makes a pack alone.

    Pictures alone have patches; other media count by their tokens.
    """
    group: list[Row] = []
    tokens = patches = 0
    for row in rows:
        size = patches_in(row.media)
        if group and (tokens + len(row.ids) > max_tokens or patches + size > max_patches):
            yield group
            group, tokens, patches = [], 0, 0
        group.append(row)
        tokens += len(row.ids)
        patches += size
    if group:
        yield group
