"""The policy: how many rows stay, when it is time to choose, and what a session remembers for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import define, field, frozen
from torch import Tensor

from .heads import Head
from .replaying import replay
from .scorers.base import ReplayingScorer

if TYPE_CHECKING:
    from andes_sdk.types import Cache, Layer, TextSpec

    from .budgets import Budget
    from .outputs import Outputs
    from .replaying import Requests
    from .scorers.base import Scorer

Each = list[list[Tensor]]
"""A tensor per layer and KV head."""

Watch = Callable[[int, Each, Each, Each], None]


@frozen(eq=False, kw_only=True)
class OKVPolicy:
    """An `andes_sdk.types.CachePolicy`; see the plugin's options.

    Attributes:
        name: tells scorer, budget and share, so that no session goes on under another policy.
        chunk_rows: rows of a prompt read at a time.
        least: rows per head up to which a share takes nothing. A share of a prompt's first rows would be so few that
            they are all recent ones, and what stands before those would go unjudged.
        outputs, requests: what scorers need that weigh by W_O, or replay; None for others.
    """

    name: str
    spec: TextSpec
    scorer: Scorer
    shares: Budget
    share: float = 0.25
    fixed: int | None = None
    sinks: int = 4
    least: int = 256
    recent: int = 32
    slack: int = 64
    reading: bool = True
    chunk_rows: int = 64
    outputs: Outputs | None = None
    requests: Requests | None = None

    @property
    def window(self) -> int:
        """Queries that the scorer looks at."""
        return self.chunk_rows if self.scorer.every_query else self.scorer.window

    @property
    def taps(self) -> Sequence[int]:
        """Every layer, if the scorer looks at what enters them."""
        return tuple(range(self.spec.layers)) if self.scorer.taps else ()

    @property
    def replays(self) -> bool:
        """Whether rows are replayed."""
        return isinstance(self.scorer, ReplayingScorer)

    @property
    def heads(self) -> int:
        """KV heads of all layers."""
        return self.spec.layers * self.spec.kv_heads

    def room(self, seen: int) -> int:
        """Rows per head, on average, that stay of `seen`."""
        wanted = max(int(self.share * seen), self.least) if self.fixed is None else self.fixed
        return max(wanted, self.sinks + self.recent)

    def budget(self, seen: int) -> int | None:
        """Rows of all layers and heads: what stays, and the slack that may pile up. None where a prompt stays whole.

        A threshold without a limit (`keep = 1`) has none either.
        """
        if not self.reading or self.unlimited:
            return None
        return self.heads * (self.room(seen) + self.slack)

    @property
    def unlimited(self) -> bool:
        """Whether a threshold alone decides."""
        return self.shares.kind == "threshold" and self.fixed is None and self.share == 1

    def open(self, state: Mapping[str, Tensor] | None = None) -> OKVKeeper:
        """A new session's memory, or that of one that goes on."""
        return OKVKeeper(self) if state is None else OKVKeeper.of(self, state)


@define(eq=False)
class OKVKeeper:
    """An `andes_sdk.types.Keeper`.

    Attributes:
        since: rows seen when it last chose.
        past: (layer, head) -> (m,) what the scorer said of the first m stored rows, if it remembers.
        watch: told rows seen, and per layer and head scores, positions and indices kept, whenever it chose.
    """

    policy: OKVPolicy
    since: int = 0
    past: dict[tuple[int, int], Tensor] = field(factory=dict)
    watch: Watch | None = None

    @classmethod
    def of(cls, policy: OKVPolicy, state: Mapping[str, Tensor]) -> OKVKeeper:
        """What `state` gave."""
        keeper = cls(policy, int(state["since"]))
        for layer in range(policy.spec.layers if policy.scorer.remembers and keeper.since else 0):
            for head in range(policy.spec.kv_heads):
                keeper.past[layer, head] = state[f"past.{layer}.{head}"]
        return keeper

    def state(self) -> Mapping[str, Tensor]:
        """Where it stands, and what it remembers."""
        past = {f"past.{layer}.{head}": scores for (layer, head), scores in self.past.items()}
        return {"since": torch.tensor(self.since), **past}

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """What the scorer says of rows when they are made."""
        return self.policy.scorer.made(layer, hidden)

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """Once the slack is used up; between chunks of a prompt at once, so that the peak is no higher than it must be.

        It depends on numbers of rows alone: a speculative run and a plain one choose at the same places.
        """
        policy, new = self.policy, seen - self.since
        if reading and not policy.reading:
            return False
        if policy.scorer.every_query and new >= policy.window:
            return True
        slack = 0 if reading else policy.slack
        if policy.shares.kind == "threshold" and new > slack and seen > policy.sinks + policy.recent:
            return True
        return not policy.unlimited and held > policy.heads * (policy.room(seen) + slack)

    def keep(self, cache: Cache) -> Sequence[Sequence[Tensor] | None]:
        """Score every stored row, and share out the room."""
        policy = self.policy
        fresh = None
        if isinstance(policy.scorer, ReplayingScorer):
            assert policy.requests is not None
            fresh = replay(cache, policy.scorer, policy.requests, self.since, policy.sinks, policy.outputs)
        scores, positions = [], []
        for layer in cache.layers:
            heads = [self._head(cache.seen, layer, index, fresh) for index in range(policy.spec.kv_heads)]
            scores.append([policy.scorer(head) for head in heads])
            positions.append([head.positions for head in heads])
        room = policy.room(cache.seen) if not policy.unlimited else cache.seen
        kept = policy.shares.keep(
            scores, positions, cache.layers[0].image, room=room, sinks=policy.sinks, recent=policy.recent
        )
        if self.watch is not None:
            self.watch(cache.seen, scores, positions, kept)
        if policy.scorer.remembers:
            for number, (some, indices) in enumerate(zip(scores, kept, strict=True)):
                for head, (score, index) in enumerate(zip(some, indices, strict=True)):
                    self.past[number, head] = score[index]
        self.since = cache.seen
        return [
            None if all(len(i) == len(p) for i, p in zip(index, place, strict=True)) else index
            for index, place in zip(kept, positions, strict=True)
        ]

    def _head(self, seen: int, layer: Layer, index: int, fresh: list[list[Tensor]] | None) -> Head:
        group = self.policy.spec.query_heads // self.policy.spec.kv_heads
        width = layer.queries.shape[1]
        past = self.past.get((layer.index, index))
        if fresh is not None:
            new = fresh[layer.index][index]
            past = new if past is None else torch.cat([past, new])
        return Head(
            layer=layer, index=index, queries=layer.queries[index * group : (index + 1) * group],
            at=torch.arange(seen - width, seen, device=layer.queries.device), seen=seen, since=self.since,
            room=self.policy.room(seen), past=past,
            given=None if layer.scores is None else layer.scores[index], outputs=self.policy.outputs,
        )  # fmt: skip
