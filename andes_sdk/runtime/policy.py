"""The default cache policy, and what a session holds every policy to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from andes_sdk.errors import SessionError

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.types import CachePolicy, Layer


@frozen
class KeepAll:
    """Keeps every row: exact attention, memory in proportion to the context."""

    name: str = "keep-all"
    window: int = 0

    def budget(self, rows: int) -> int | None:
        """No limit."""
        return None

    def keep(self, layer: Layer) -> Sequence[Tensor] | None:
        """Everything."""
        return None


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
        raise SessionError(
            "kept rows are not ascending indices of stored rows, one list per KV head",
            who=f"cache policy {policy.name!r}",
            fix="return one int64 tensor of ascending, unique indices per head",
        )


def check_budget(policy: CachePolicy, layer: int, length: int, counts: Sequence[int]) -> None:
    """Refuse a layer that holds more rows per head than the policy's budget for `length` rows.

    Raises:
        SessionError: naming the policy.
    """
    budget = policy.budget(length)
    if budget is not None and max(counts) > budget:
        raise SessionError(
            f"layer {layer} holds {max(counts)} rows per head, its budget is {budget}",
            who=f"cache policy {policy.name!r}",
            fix="`keep` must return at most `budget(rows)` indices per head",
        )
