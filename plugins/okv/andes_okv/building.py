"""From options and a model to the policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from andes_sdk.errors import ConfigError

from .budgets import Budget
from .options import COMPARABLE, COMPETING, FALLBACK, WINDOWS, Options
from .outputs import Outputs
from .policy import OKVPolicy
from .replaying import Requests
from .scorers import scorer_class
from .scorers.base import ReplayingScorer
from .weights import Weights, shipped

if TYPE_CHECKING:
    from andes_sdk.types import Model

    from .scorers.base import Scorer


def build(options: Options, model: Model, rows: int | None) -> OKVPolicy:
    """The policy of these options.

    Args:
        rows: of a backend's static store, or None where it grows.

    Raises:
        ConfigError: a static store that is too small, or needs equal heads; a model whose W_O nobody names.
        CheckpointError: learned weights that are damaged, or of another model; none, where they were asked for.
    """
    scorer = _scorer(options, model)
    kind = options.budget
    if kind == "auto":  # a static store has equal heads
        kind = "global" if scorer.name in COMPARABLE and rows is None else "head"
    policy = OKVPolicy(
        name=_name(options, kind, scorer), spec=model.text, scorer=scorer,
        shares=Budget(
            kind=kind, safeguard=options.safeguard if kind in COMPETING else 0.0,
            floor=options.floor, threshold=options.threshold,
        ),
        share=options.keep, fixed=options.rows, least=options.least,
        sinks=options.sinks, recent=options.recent, slack=options.slack,
        reading=options.reading, chunk_rows=options.chunk,
        outputs=Outputs(model) if scorer.weighs else None,
        requests=Requests.of(model) if isinstance(scorer, ReplayingScorer) else None,
    )  # fmt: skip
    if rows is not None:
        _fits(policy, options, model, rows)
    return policy


def _scorer(options: Options, model: Model) -> Scorer:
    name = options.scorer
    if name in ("auto", "learned"):
        path = Path(options.weights).expanduser() if options.weights else shipped(model)
        if path is not None:
            weights = Weights.read(path)
            weights.check(model, path)
            return scorer_class("learned")(maps=weights.maps)  # type: ignore[call-arg]
        if name == "learned":
            fix = "make one with `andes okv fit`, and name it: weights=FILE; or choose another scorer"
            raise ConfigError("there is no learned scorer for this model", who="okv.scorer", fix=fix)
        name = FALLBACK
    return scorer_class(name)(window=options.window or WINDOWS[name])


def _name(options: Options, kind: str, scorer: Scorer) -> str:
    """What decides which rows stay: a session is only restored under the same."""
    size = f"{options.keep:g}" if options.rows is None else f"{options.rows} rows"
    least = "" if options.threshold is None else f" {options.threshold:g}"
    return f"okv ({scorer.name}, {kind}{least}, {size})"


def _fits(policy: OKVPolicy, options: Options, model: Model, rows: int) -> None:
    """Refuse a static store that cannot hold what this policy keeps."""
    who, why = "okv.budget", f"the backend's store has {rows} rows per head"
    if policy.shares.kind not in ("head", "uniform"):
        fix = "choose budget='uniform' or 'head'"
        raise ConfigError(f"{options.budget!r} gives heads different numbers of rows", who=who, why=why, fix=fix)
    need = policy.room(model.text.max_positions) + max(options.slack, options.chunk)
    if not options.reading:
        need = model.text.max_positions
    if need > rows:
        fix = "set rows to fewer, lower slack and chunk, and leave reading on"
        raise ConfigError(f"needs up to {need} rows per head", who=who, why=why, fix=fix)
