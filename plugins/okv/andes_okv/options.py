"""Options of the plugin, apart from it: what builds the policy reads them without the plugin's hooks."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, optional

WINDOWS = {
    "streaming": 0, "snapkv": 64, "h2o": 0, "keynorm": 0, "critical": 64, "kvzip": 0, "kvzip+": 0, "dropkv": 32,
    "restkv": 32, "rkv": 8, "learned": 0,
}  # fmt: skip
"""Scorer -> queries that it looks at, unless it is told otherwise; 0: none, or a number that follows from `chunk`."""

SCORERS = ("auto", *WINDOWS)
FALLBACK = "snapkv"
"""What `auto` is where a model has no learned scorer."""

KINDS = ("auto", "head", "layer", "global", "threshold", "uniform")
COMPETING = ("layer", "global", "threshold")
"""Budgets under which heads compete."""

COMPARABLE = ("kvzip", "kvzip+", "learned")
"""Scorers whose scores mean the same in every head: `auto` lets all heads compete there."""


@frozen(eq=False, kw_only=True)
class Options:
    """How much stays, who chooses it, and when."""

    keep: float = field(default=0.25, validator=[gt(0), le(1)], metadata={"help": "share of the rows seen that stays"})
    rows: int | None = field(
        default=None, validator=optional(ge(1)), metadata={"help": "rows per head that stay, in place of a share"}
    )
    least: int = field(
        default=256, validator=ge(0), metadata={"help": "rows per head up to which a share of the rows takes nothing"}
    )
    scorer: str = field(
        default="auto",
        validator=in_(SCORERS),
        metadata={"help": f"{', '.join(SCORERS)}; auto is learned where its weights exist, else snapkv"},
    )
    budget: str = field(
        default="auto",
        validator=in_(KINDS),
        metadata={"help": f"who shares rows: {', '.join(KINDS)}; auto is global for {', '.join(COMPARABLE)}, or head"},
    )
    sinks: int = field(default=4, validator=ge(0), metadata={"help": "first rows, which always stay"})
    recent: int = field(default=32, validator=ge(1), metadata={"help": "latest rows, which always stay"})
    window: int | None = field(
        default=None, validator=optional(ge(1)), metadata={"help": "last queries looked at; else the scorer's own"}
    )
    slack: int = field(default=64, validator=ge(0), metadata={"help": "rows per head that pile up before some go"})
    chunk: int = field(default=64, validator=ge(1), metadata={"help": "rows of a prompt read before some go"})
    reading: bool = field(default=True, metadata={"help": "evict between chunks of a prompt, not only at its end"})
    safeguard: float = field(
        default=0.2, validator=[ge(0), le(1)], metadata={"help": "least share of an even split for each head"}
    )
    floor: float = field(
        default=0.5,
        validator=[ge(0), le(1)],
        metadata={"help": "least share of their part of the rows for pictures, and for text"},
    )
    threshold: float | None = field(
        default=None, metadata={"help": "least score that stays, with the budget `threshold`"}
    )
    weights: str = field(default="", metadata={"help": "file of a learned scorer (`andes okv fit`)", "local": True})
