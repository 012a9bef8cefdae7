"""Replays: the context once more, behind a request to repeat it, and the attention that its rows get then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from andes_sdk.errors import PluginBroken

from .replayed import Replayed

if TYPE_CHECKING:
    from andes_sdk.types import Cache, Model

    from .outputs import Outputs
    from .scorers.base import ReplayingScorer

FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with"
AGAIN = 8
"""Rows before a later chunk that the request quotes."""

CHUNK = 2048
"""Rows replayed at a time, at most."""


@frozen(eq=False)
class Requests:
    """What asks the model to repeat, as rows.

    first, later: (r, D). positions: of the model.
    """

    first: Tensor
    later: Tensor
    positions: int

    @classmethod
    def of(cls, model: Model) -> Requests:
        """In a model's own tokens."""
        first, later = (
            model.embed(torch.tensor(model.tokenizer.encode(text), device=model.device)).detach()
            for text in (FIRST, LATER)
        )
        return cls(first, later, model.text.max_positions)

    def chunks(self, embeds: Tensor, since: int) -> Iterator[tuple[int, int, Tensor]]:
        """Chunks of the (seen, D) inputs from `since` on -> first, last, and the rows to run."""
        most = min(CHUNK, max(1, self.positions - len(self.later) - AGAIN))
        for start in range(since, len(embeds), most):
            stop = min(start + most, len(embeds))
            head = [self.first] if start == 0 else [self.later, embeds[max(0, start - AGAIN) : start]]
            rows = torch.cat([*(part.to(embeds.dtype) for part in head), embeds[start:stop]])
            yield start, stop, rows[-self.positions :]


def replay(
    cache: Cache, scorer: ReplayingScorer, requests: Requests, since: int, sinks: int, outputs: Outputs | None
) -> list[list[Tensor]]:
    """Replay every row from `since` on -> per layer and KV head the scores (k,) of those of them that are stored."""
    assert cache.embeds is not None
    layers = [cache.layers[index] for index in range(len(cache.layers))]
    counts = [[len(p) for p in layer.positions] for layer in layers]  # a replay's own rows come behind these
    found: list[list[list[Tensor]]] = [[[] for _ in layer.positions] for layer in layers]
    for start, stop, rows in requests.chunks(cache.embeds, since):
        for index, queries, keys, norms in _looks(cache, rows, scorer.taps):
            layer, group = layers[index], len(queries) // len(keys)
            for head, count in enumerate(counts[index]):
                chosen, first = _chosen(layer.positions[head][:count], (start, stop), sinks)
                mine = queries[head * group : (head + 1) * group]
                one = Replayed(layer, head, chosen, first, mine, keys[head], norms, outputs)
                found[index][head].append(scorer.replayed(one))
    nothing = torch.zeros(0, device=cache.embeds.device)
    return [[torch.cat(parts) if parts else nothing for parts in heads] for heads in found]


def _looks(cache: Cache, rows: Tensor, taps: bool) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
    """Layer, queries, keys and norms of replayed rows. Queries wait for the norms, and for other strips of the pass."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    features = cache.replay(rows, lambda layer, queries, keys: _note(seen, layer, queries, keys))
    if taps and features is None:
        raise PluginBroken("a replay gives no rows that enter layers", who="okv", fix="return features from `replay`")
    for layer in sorted(seen):
        queries, keys = seen.pop(layer)
        yield layer, queries, keys, features[:, layer].float().norm(dim=-1) if taps else None


def _note(seen: dict[int, tuple[Tensor, Tensor]], layer: int, queries: Tensor, keys: Tensor) -> None:
    """Keep what a replay shows of a layer; strips of one pass follow one another."""
    old = seen.get(layer)
    if old is None:
        seen[layer] = queries.clone(), keys.clone()
    else:
        seen[layer] = torch.cat([old[0], queries], dim=1), torch.cat([old[1], keys], dim=1)


def _chosen(positions: Tensor, part: Sequence[int], sinks: int) -> tuple[Tensor, int]:
    """Indices of the sinks before a chunk and of the chunk's rows -> (m,), and how many are sinks."""
    before = ((positions < sinks) & (positions < part[0])).nonzero()[:, 0]
    inside = ((positions >= part[0]) & (positions < part[1])).nonzero()[:, 0]
    return torch.cat([before, inside]), len(before)
