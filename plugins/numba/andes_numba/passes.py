"""From rows of several sessions to one call of the compiled pass, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from andes_packing.formats import LANES
from torch import Tensor

from andes_sdk.runtime.compiled import Pass
from andes_sdk.runtime.tree import Step
from andes_sdk.types import Rows

from .few import FEW, forward_few
from .step import Store, forward, padded, padded_rows

if TYPE_CHECKING:
    from .session import Compiled, NumbaSession
    from .store import KVStore

NARROW = np.zeros((0, 0), np.float32)
"""`wide` of a model whose q, k and v read what its norm gives."""
STRIP = 256
"""Rows of a prompt computed at a time: their int8 activations stay in the second-level cache."""


class Keeping(Protocol):
    """A session, or whatever else has rows of its own."""

    store: KVStore


def run_passes(compiled: Compiled, passes: Sequence[Pass], embeds: Sequence[Tensor]) -> list[Rows]:
    """Rows of all sessions, in strips where one has many."""
    whole = compiled.whole
    if any(session.adapter is not None for session, _, _ in passes):
        return _in_strips(compiled, passes, embeds, lambda: STRIP)
    if not whole.ready and len(passes) > 1:
        return [run_passes(compiled, [one], [rows])[0] for one, rows in zip(passes, embeds, strict=True)]
    return _in_strips(compiled, passes, embeds, lambda: STRIP if whole.ready else FEW - 1)


def _in_strips(
    compiled: Compiled, passes: Sequence[Pass], embeds: Sequence[Tensor], size: Callable[[], int]
) -> list[Rows]:
    longest, stop = max(len(rows) for rows in embeds), 0
    parts: list[list[Rows]] = [[] for _ in passes]
    while stop < longest:
        start, stop = stop, min(stop + size(), longest)
        mine = [n for n, rows in enumerate(embeds) if start < len(rows)]
        stops = [min(stop, len(embeds[n])) for n in mine]
        wanted = []
        for n, end in zip(mine, stops, strict=True):
            work, total = passes[n][1], len(embeds[n])
            first = 0 if work.logits is None else total - work.logits
            wanted.append(max(0, end - max(start, first)))
        found = _run(
            compiled,
            [(passes[n][0], passes[n][1].reading) for n in mine],
            [_strip(passes[n][2], start, end) for n, end in zip(mine, stops, strict=True)],
            [embeds[n][start:end] for n, end in zip(mine, stops, strict=True)],
            wanted,
        )
        for n, rows in zip(mine, found, strict=True):
            parts[n].append(rows)
    return [_joined(some) for some in parts]


def _strip(step: Step, start: int, stop: int) -> Step:
    """Rows `start` to `stop` of a step, which see those before them as its own matrix says."""
    if stop - start == len(step.positions):
        return step
    if step.visible is None:
        visible = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
    else:
        pending = step.visible.shape[1] - len(step.positions)
        visible = step.visible[start:stop, : pending + stop]
    return Step(step.positions[start:stop], visible)


def _joined(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    names = ("logits", "hidden", "embeds", "features")
    return Rows(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _run(
    compiled: Compiled,
    sessions: Sequence[tuple[NumbaSession, bool]],
    steps: Sequence[Step],
    embeds: Sequence[Tensor],
    wanted: Sequence[int],
) -> list[Rows]:
    """One pass over the weights; of each session the logits of so many last rows."""
    own, sizes = [session for session, _ in sessions], compiled.packed.sizes
    lengths = [len(rows) for rows in embeds]
    ends = np.cumsum(lengths)
    count = int(ends[-1])
    rows = (embeds[0] if len(embeds) == 1 else torch.cat(list(embeds))).float()
    x = np.zeros((padded_rows(count), padded(sizes.width)), np.float32)
    x[:count, : sizes.width] = rows.numpy()
    positions = np.concatenate([step.positions.numpy() for step in steps])
    window = any(session.keeping.wants_queries for session in own)
    queries = np.zeros((sizes.layers, count, sizes.q_heads * sizes.head) if window else (1, 1, 0), np.float32)
    read = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, wanted, strict=True)])
    read = read if len(read) else np.array([count - 1])  # a pass computes one row of logits at least
    out = np.empty((padded_rows(len(read)), -(-sizes.vocab // LANES) * LANES), np.float32)
    arguments = places(own, steps), x, count, *compiled.rotary.at(positions), queries
    lora = compiled.adapters.of([session.adapter for session in own], lengths)
    weights, threads = compiled.packed.weights, compiled.threads
    taps = np.array(list(compiled.taps), np.int64)
    seen = np.empty((len(taps), count, sizes.width), np.float32)
    contiguous = int(read[0]) == count - len(read)
    many = (*compiled.tags, sizes, weights, lora, *arguments, read, taps, seen, out, threads)
    compiled.whole.see(*many)
    with compiled.team.at_work():
        if count < FEW and contiguous and (count == 1 or not len(lora.rows)):
            forward_few(
                *compiled.tags, sizes, weights, lora, *arguments, int(read[0]), taps, seen, out, NARROW, threads
            )
        else:
            forward(*many)
    shaped = torch.from_numpy(queries).view(sizes.layers, count, sizes.q_heads, sizes.head) if window else None
    for (session, reading), stop, length in zip(sessions, ends, lengths, strict=True):
        part = slice(stop - length, stop)
        mine = shaped is not None and session.keeping.wants_queries
        session.receive(positions[part], shaped[:, part].transpose(1, 2) if mine else None, reading=reading)
    logits, hidden = torch.from_numpy(out)[: len(read), : sizes.vocab], torch.from_numpy(x)[:count, : sizes.width]
    features = torch.from_numpy(seen).transpose(0, 1)
    if len(own) == 1:
        return [Rows(logits=logits[: wanted[0]], hidden=hidden, embeds=rows, features=features)]
    split = zip(
        logits[: sum(wanted)].split(list(wanted)), *(t.split(lengths) for t in (hidden, rows, features)), strict=True
    )
    return [Rows(logits=a, hidden=b, embeds=c, features=d) for a, b, c, d in split]


def places(sessions: Sequence[Keeping], steps: Sequence[Step]) -> Store:
    """Where new rows of these sessions go, and what they see."""
    lengths = [len(step.positions) for step in steps]
    stores = [session.store for session in sessions]
    for store, length in zip(stores, lengths, strict=True):
        store.reserve(length)
    marks = [
        np.tri(n) if step.visible is None else step.visible.numpy() for n, step in zip(lengths, steps, strict=True)
    ]
    visible = np.zeros((sum(lengths), max(mark.shape[1] for mark in marks)), np.uint8)
    start = 0
    for length, mark in zip(lengths, marks, strict=True):
        visible[start : start + length, : mark.shape[1]] = mark
        start += length
    # a single session, which waits for every microsecond, needs no copies
    alone = stores[0] if len(stores) == 1 else None
    return Store(
        addresses=np.array([store.addresses for store in stores], np.int64),
        starts=np.stack([store.starts for store in stores]) if alone is None else alone.starts[None],
        counts=np.stack([store.counts for store in stores]) if alone is None else alone.counts[None],
        pending=np.array([mark.shape[1] - len(mark) for mark in marks], np.int64),
        owners=np.repeat(np.arange(len(stores)), lengths),
        ranks=np.concatenate([np.arange(n) for n in lengths]),
        visible=visible,
    )
