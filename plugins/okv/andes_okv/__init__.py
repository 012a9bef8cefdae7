"""A cache policy: fewer rows of keys and values, and bounded peaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from andes_sdk import hookimpl

from .choices import problems, told
from .options import Options

if TYPE_CHECKING:
    from andes_sdk import Plan, types


@define(eq=False)
class Chosen:
    """What `auto` came to, once a policy was built."""

    scorer: str = ""


@frozen(eq=False, kw_only=True)
class OKV(Options):
    """Keep a quarter of all rows. Shortest use: `Pipeline.from_plugins([..., "okv"])`."""

    contract = "1.1"
    testing = {"rows": 24, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32}  # noqa: RUF012 - no option of its own

    _chosen: Chosen = field(factory=Chosen, init=False, repr=False)

    @hookimpl
    def andes_cache_policy(self, model: types.Model, rows: int | None) -> types.CachePolicy:
        """The policy for one model."""
        from .building import build

        policy = build(self, model, rows)
        self._chosen.scorer = policy.scorer.name
        return policy

    @hookimpl
    def andes_check(self, plan: Plan) -> Sequence[str]:
        """Options that contradict one another or have no effect, and weights that cannot be read."""
        return problems(self)

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Scorer, budget, schedule, and who quantises."""
        return told(self, self._chosen.scorer, plan.backend)
