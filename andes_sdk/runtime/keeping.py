"""When a session asks its cache policy, what it shows, and what it remembers for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from andes_sdk.errors import SessionError
from andes_sdk.runtime.policy import KeepAll, check_budget, check_kept, check_score
from andes_sdk.types import Cache, Layer, Look

if TYPE_CHECKING:
    from andes_sdk.types import CachePolicy, Rows, TextSpec

Heads = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
"""Per KV head its keys (n, d), values (n, d) and positions (n,)."""

SCORED = 64
"""Committed rows that are scored together: a row alone takes as long as a step of a small model."""


class Keeping:
    """A policy's keeper, and what it sees beside keys and values: queries, pictures, scores, inputs.

    Attributes:
        plain: nothing is ever evicted, and nothing needs remembering.
        held: committed rows of all layers and heads. columns: where the policy's taps stand among the model's.
    """

    def __init__(
        self,
        policy: CachePolicy,
        spec: TextSpec,
        device: torch.device,
        taps: Sequence[int],
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        if absent := [t for t in policy.taps if t not in taps]:
            what = f"needs the rows entering layers {absent}, which the model was not compiled to show"
            raise SessionError(what, who=f"cache policy {policy.name!r}", fix="compile with `taps=` of the policy")
        self.policy, self.keeper = policy, policy.open(state)
        self.plain, self.held = type(policy) is KeepAll, 0
        self._spec, self.columns = spec, [list(taps).index(t) for t in policy.taps]
        self.queries: list[list[Tensor]] = [[] for _ in range(spec.layers)]
        self.windows: list[Tensor | None] = [None] * spec.layers
        self.image = torch.zeros(0, dtype=torch.bool, device=device)
        self._scores: dict[int, list[Tensor]] = {}
        self.embeds: list[Tensor] = []
        self.look: Callable[[int, Tensor, Tensor], None] | None = None
        self._pending: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []  # of images, inputs and features
        self._unscored: list[Tensor] = []
        self._unseen = torch.empty(spec.query_heads, 0, spec.head_dim, device=device)

    # ------------------------------------------------------------ rows in the making

    @property
    def wants_queries(self) -> bool:
        """Whether `note` is to be called."""
        return self.policy.window > 0 or self.look is not None

    def note(self, layer: int, queries: Tensor, keys: Callable[[], Tensor], *, chain: bool) -> None:
        """Take note of (Hq, T, d) queries of new rows; `keys` gives theirs. Of a prompt only the window is kept."""
        if self.look is not None:
            self.look(layer, queries, keys())
        elif self.policy.window:
            # a copy: a slice would hold on to the queries of the whole chunk
            self.queries[layer].append(queries[:, -self.policy.window :].clone() if chain else queries)

    def computed(self, rows: Rows, image: Tensor | None) -> None:
        """Remember what the policy wants of rows that a step computed."""
        if self.plain:
            return
        images, embeds, features = self._pending
        images.append(self.image.new_zeros(len(rows.hidden)) if image is None else image)
        if self.policy.replays:
            embeds.append(rows.embeds)
        if self.columns:
            features.append(rows.features[:, self.columns])

    def mark(self) -> Sequence[int]:
        """How many parts of pending rows are remembered; what `reset` takes."""
        return [len(part) for part in self._parts()]

    def reset(self, mark: Sequence[int]) -> None:
        """Forget the parts that came since."""
        for part, count in zip(self._parts(), mark, strict=True):
            del part[count:]

    def _parts(self) -> list[list[Tensor]]:
        return [] if self.plain else [*self.queries, *self._pending]

    # ------------------------------------------------------------ commit

    def commit(self, rows: Sequence[int], pending: int) -> None:
        """Of the `pending` uncommitted rows these are there to stay."""
        if self.plain:
            return
        self._commit_queries(index := list(rows), pending)
        images, embeds, features = ([torch.cat(part)[index]] if part else [] for part in self._pending)
        self.image, self._pending = torch.cat([self.image, *images]), ([], [], [])
        self.embeds += embeds
        self._unscored += features
        self.held += len(index) * self._spec.layers * self._spec.kv_heads

    @property
    def scores(self) -> dict[int, list[Tensor]]:
        """Layer -> per KV head (rows,) what the keeper said of committed rows; those that wait are scored first."""
        self._score(1)
        return self._scores

    def _score(self, least: int) -> None:
        """Score rows that wait: all, or multiples of `least`, in parts that do not depend on commits."""
        if count := sum(map(len, self._unscored)) // least * least:
            rows, made = torch.cat(self._unscored), dict(self._scores)
            for (column, layer), start in product(enumerate(self.policy.taps), range(0, count, SCORED)):
                part = rows[start : min(start + SCORED, count), column]
                if (new := self.keeper.score(layer, part)) is not None:
                    check_score(self.policy, new, self._spec.kv_heads, len(part))
                    old = made.get(layer) or [new[:0, :0].reshape(0)] * len(new)
                    made[layer] = [torch.cat([a, b]) for a, b in zip(old, new, strict=True)]
            self._scores, self._unscored = made, [rows[count:].clone()]

    def _commit_queries(self, rows: Sequence[int], pending: int) -> None:
        window = self.policy.window
        for layer, parts in enumerate(self.queries):
            if not parts:
                continue
            new = torch.cat(parts, dim=1)
            skipped = pending - new.shape[1]  # rows of a prompt before its window
            seen = new[:, [r - skipped for r in rows if r >= skipped][-window:]]
            old = self.windows[layer]
            together = seen if old is None else torch.cat([old, seen], dim=1)
            self.windows[layer] = together[:, -window:].clone()
            self.queries[layer] = []

    # ------------------------------------------------------------ eviction

    def due(self, seen: int, rows: int) -> bool:
        """Whether the policy chooses once `rows` more are committed and `seen` in all."""
        more = rows * self._spec.layers * self._spec.kv_heads
        return not self.plain and self.keeper.due(seen, self.held + more, False)

    def ask(
        self,
        seen: int,
        reading: bool,
        counts: Callable[[], Sequence[Sequence[int]]],
        heads: Callable[[int], Heads],
        replay: Callable[[Tensor, Look], Tensor],
        evict: Callable[[int, Sequence[Tensor]], None],
    ) -> None:
        """Let the policy choose, if it is time, and hold it to its budget."""
        self._score(SCORED)
        if not self.plain and self.keeper.due(seen, self.held, reading):
            embeds = torch.cat(self.embeds) if self.policy.replays and self.embeds else None
            cache = Cache(seen=seen, layers=Layers(self, heads), embeds=embeds, replay=replay)
            every = self.keeper.keep(cache)
            if len(every) != self._spec.layers:
                what = f"keeps rows of {len(every)} layers, there are {self._spec.layers}"
                raise SessionError(what, who=f"cache policy {self.policy.name!r}")
            self._evict(every, counts(), evict)
        check_budget(self.policy, seen, self.held)

    def _evict(
        self,
        every: Sequence[Sequence[Tensor] | None],
        counts: Sequence[Sequence[int]],
        evict: Callable[[int, Sequence[Tensor]], None],
    ) -> None:
        for kept, stored in zip(every, counts, strict=True):
            if kept is not None:
                check_kept(self.policy, kept, stored)  # all of them first: nothing is evicted by half
        for layer, (kept, stored) in enumerate(zip(every, counts, strict=True)):
            if kept is None:
                continue
            evict(layer, kept)
            if layer in self.scores:
                self.scores[layer] = [s[k] for s, k in zip(self.scores[layer], kept, strict=True)]
            self.held += sum(len(k) for k in kept) - sum(stored)

    def layer(self, index: int, heads: Heads) -> Layer:
        """One layer as a policy sees it."""
        queries = self.windows[index]
        return Layer(
            index=index, keys=heads[0], values=heads[1], positions=heads[2], image=self.image,
            queries=self._unseen if queries is None else queries, scores=self.scores.get(index),
        )  # fmt: skip

    def check(self, seen: int, rows: int) -> None:
        """Raise ValueError unless what is remembered fits `seen` rows of the session, of which `rows` are stored."""
        heads, own = self._spec.layers * self._spec.kv_heads, not self.plain
        there = rows, len(self.image), sum(map(len, self.embeds))
        wanted = self.held if own else seen * heads, seen * own, seen * self.policy.replays
        if there != wanted:
            raise ValueError(f"it has {there} rows, images and inputs, not {wanted}")


class Layers(Sequence[Layer]):
    """The layers of a cache, each read when it is looked at."""

    def __init__(self, keeping: Keeping, heads: Callable[[int], Heads]) -> None:
        self._keeping, self._heads = keeping, heads

    def __len__(self) -> int:
        return len(self._keeping.windows)

    def __getitem__(self, index: int) -> Layer:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._keeping.layer(index, self._heads(index))
