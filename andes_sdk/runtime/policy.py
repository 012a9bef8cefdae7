"""The default cache policy, and what a session holds every policy to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from andes_sdk.errors import SessionError

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.types import Cache, CachePolicy


@frozen
class KeepAll:
    """Keeps every row: exact attention, memory in proportion to the context. It needs no memory of its own."""

    name: str = "keep-all"
    window: int = 0
    taps: Sequence[int] = ()
    replays: bool = False

    def budget(self, seen: int) -> int | None:
        """No limit."""
        return None

    def open(self, state: Mapping[str, Tensor] | None = None) -> KeepAll:
        """Itself."""
        return self

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """None."""
        return None

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """Never."""
        return False

    def keep(self, cache: Cache) -> Sequence[Sequence[Tensor] | None]:
        """Everything."""
        return [None] * len(cache.layers)

    def state(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}


def check_kept(policy: CachePolicy, kept: Sequence[Tensor], counts: Sequence[int]) -> None:
    """Refuse what is not one list of ascending indices of stored rows per KV head.

    Raises:
        SessionError: naming the policy.
    """
    fits = len(kept) == len(counts) and all(
        k.ndim == 1 and bool((k[1:] > k[:-1]).all()) and (not len(k) or (int(k[0]) >= 0 and int(k[-1]) < n))
        for k, n in zip(kept, counts, strict=False)
    )
    if not fits:
        what = "kept rows are not ascending indices of stored rows, one list per KV head"
        who = f"cache policy {policy.name!r}"
        raise SessionError(what, who=who, fix="return one int64 tensor of ascending, unique indices per head")


def check_budget(policy: CachePolicy, seen: int, held: int) -> None:
    """Refuse more rows than the policy's budget for `seen` rows, all layers and heads together.

    Raises:
        SessionError: naming the policy.
    """
    budget = policy.budget(seen)
    if budget is not None and held > budget:
        what = f"{held} rows are held after {seen} were seen, the budget is {budget} over all layers and heads"
        fix = "`due` must ask in time, and `keep` return at most `budget(seen)` indices in all"
        raise SessionError(what, who=f"cache policy {policy.name!r}", fix=fix)


def check_score(policy: CachePolicy, score: Tensor, heads: int, rows: int) -> None:
    """Refuse scores that are not one number per KV head and new row.

    Raises:
        SessionError: naming the policy.
    """
    if tuple(score.shape) != (heads, rows):
        what = f"scores of shape {tuple(score.shape)} for {rows} rows and {heads} KV heads"
        raise SessionError(what, who=f"cache policy {policy.name!r}", fix="`score` returns (KV heads, rows), or None")
