"""Fit a learned scorer: per layer a ridge regression from what enters it to the log of KVzip+ scores.

Source: KVzap, arXiv 2601.07891, section 3. Every sample is read once and replayed once; only sums of products are kept,
so memory does not grow with the data. A tenth of the samples is held out. It chooses how strongly weights are drawn to
zero, and says how much of the variance is explained, for rows of pictures and of text apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.errors import ConfigError, InputError

from .policy import OKVPolicy
from .replaying import replay
from .scorers.kvzip_plus import KVzipPlus
from .scorers.learned import normal
from .weights import Weights, identity

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Cache, Inputs

RIDGES = tuple(10.0**power for power in range(-6, 2))
"""Strengths that are tried, as shares of the mean square of an input."""

LEAST = 1e-10
"""Smallest score whose log is learned."""

HELD_OUT = 10
"""One sample of so many is held out."""


@define(eq=False)
class Sums:
    """Products of a layer's inputs (n, D) and targets (n, Hkv), summed in float64; a column of ones makes the bias."""

    inputs: Tensor
    mixed: Tensor
    targets: Tensor
    squares: Tensor
    count: int = 0

    @classmethod
    def zero(cls, width: int, heads: int) -> Sums:
        """Of no rows."""
        wide, narrow = (torch.zeros(width + 1, n, dtype=torch.float64) for n in (width + 1, heads))
        return cls(wide, narrow, torch.zeros(heads, dtype=torch.float64), torch.zeros(heads, dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows more."""
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1).double().cpu()
        y = y.double().cpu()
        self.inputs += x.T @ x
        self.mixed += x.T @ y
        self.targets += y.sum(dim=0)
        self.squares += y.square().sum(dim=0)
        self.count += len(x)

    def solve(self, ridge: float) -> Tensor:
        """(D + 1, Hkv) weights; the last row is the bias, which is not drawn to zero."""
        scale = self.inputs.diagonal()[:-1].mean().clamp(min=1e-12)
        drawn = torch.full((len(self.inputs),), float(ridge * scale), dtype=torch.float64)
        drawn[-1] = 1e-9 * scale
        weights: Tensor = torch.linalg.solve(self.inputs + drawn.diag(), self.mixed)
        return weights

    def errors(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of squared errors, and of squared distances from the mean, per head."""
        left = self.squares - 2 * (weights * self.mixed).sum(dim=0) + (weights * (self.inputs @ weights)).sum(dim=0)
        return left, self.squares - self.targets.square() / max(1, self.count)


@define(eq=False)
class Recorder:
    """A policy and its own keeper, which keeps everything and notes inputs and scores of one session."""

    model: OKVPolicy
    name: str = "okv-recorder"
    window: int = 0
    replays: bool = True
    inputs: dict[int, list[Tensor]] = field(factory=dict)
    found: list[tuple[Tensor, Tensor]] = field(factory=list)
    image: Tensor | None = None

    @property
    def taps(self) -> Sequence[int]:
        """All layers."""
        return self.model.taps

    def budget(self, seen: int) -> int | None:
        """No limit."""
        return None

    def open(self, state: Mapping[str, Tensor] | None = None) -> Recorder:
        """Itself."""
        return self

    def state(self) -> Mapping[str, Tensor]:
        """Nothing: it serves one session."""
        return {}

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Note the rows."""
        self.inputs.setdefault(layer, []).append(normal(hidden))
        return None

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """At the end of the prompt."""
        return not reading and not self.found

    def keep(self, cache: Cache) -> Sequence[None]:
        """Replay all of it: KVzip+ scores of every row, in every head."""
        policy = self.model
        assert policy.requests is not None
        scores = replay(cache, KVzipPlus(), policy.requests, 0, policy.sinks, policy.outputs)
        for layer, heads in enumerate(scores):
            targets = torch.stack(heads, dim=1).clamp(min=LEAST).log()  # (n, Hkv)
            self.found.append((torch.cat(self.inputs[layer]), targets))
        self.image = cache.layers[0].image
        return [None] * len(cache.layers)


@frozen(kw_only=True)
class Report:
    """What a fit came to.

    Attributes:
        samples: read; skipped: longer than the model's positions or the limit. rows, image: rows learned from.
        explained: share of the variance of held-out rows, mean over heads, per layer; `text` and `image` over layers.
    """

    samples: int
    skipped: int
    rows: int
    image: int
    ridge: float
    explained: Sequence[float]
    text: float | None
    pictures: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "samples": self.samples, "skipped": self.skipped, "rows": self.rows, "image_rows": self.image,
            "ridge": self.ridge, "explained": [round(x, 4) for x in self.explained],
            "explained_text": None if self.text is None else round(self.text, 4),
            "explained_image": None if self.pictures is None else round(self.pictures, 4),
        }  # fmt: skip


def fit(
    pipeline: Pipeline,
    samples: Iterable[Inputs],
    *,
    rows: int = 2048,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Weights, Report]:
    """Fit a learned scorer to a model's own KVzip+ scores.

    Args:
        pipeline: with the plugin okv, and its scorer `kvzip+`, which needs what is recorded here.
        samples: prompts, with pictures or without; `pipe.prepare(messages)` makes one.
        rows: samples of more rows are skipped, if they have pictures, and cut, if they have none.

    Raises:
        ConfigError: a pipeline without what is needed. InputError: fewer than two samples that fit.
    """
    policy = pipeline.policy
    if not isinstance(policy, OKVPolicy) or not isinstance(policy.scorer, KVzipPlus):
        fix = 'open it with plugins=[{"okv": {"scorer": "kvzip+"}}]'
        raise ConfigError("this pipeline does not replay", who="okv fit", fix=fix)
    spec = pipeline.model.text
    learn, text, image = ([Sums.zero(spec.width, spec.kv_heads) for _ in range(spec.layers)] for _ in range(3))
    read = skipped = seen = 0
    most = min(rows, spec.max_positions)
    for number, sample in enumerate(samples):
        short = _fitting(sample, most)
        if short is None:
            skipped += 1
        else:
            record = _recorded(pipeline, policy, short)
            pictures = record.image if record.image is not None else torch.zeros(0)
            for layer, (x, y) in enumerate(record.found):
                used = torch.arange(len(x)) >= policy.sinks  # these always stay, and score beyond all others
                if read % HELD_OUT == 1:
                    text[layer].add(x[used & ~pictures], y[used & ~pictures])
                    image[layer].add(x[used & pictures], y[used & pictures])
                else:
                    learn[layer].add(x[used], y[used])
            read, seen = read + 1, seen + int(pictures.sum())
        progress(number + 1)
    if read < 2:
        why = f"{read} can be read, {skipped} are longer than {most} rows"
        raise InputError("too few samples", who="okv fit", why=why, fix="give at least two, hundreds for a good fit")
    return _solved(pipeline, (learn, text, image), (read, skipped, seen))


def _fitting(sample: Inputs, most: int) -> Inputs | None:
    """A sample of `most` rows at most, or None where it cannot be cut."""
    if len(sample.ids) <= most:
        return sample if len(sample.ids) > 1 else None
    return None if sample.media else type(sample)(ids=sample.ids[:most])


def _recorded(pipeline: Pipeline, policy: OKVPolicy, sample: Inputs) -> Recorder:
    recorder = Recorder(policy)
    session = pipeline.compiled.session(recorder)
    try:
        session.prefill(sample)
    finally:
        session.close()
    return recorder


def _solved(
    pipeline: Pipeline, sums: tuple[list[Sums], list[Sums], list[Sums]], counts: tuple[int, int, int]
) -> tuple[Weights, Report]:
    """The strength that explains most of the held-out rows, and what it explains."""
    (learn, text, image), (read, skipped, pictures) = sums, counts

    def share(groups: Sequence[Sequence[Sums]], maps: Sequence[Tensor]) -> list[float]:
        found = []
        for layer, weights in enumerate(maps):
            parts = [group[layer].errors(weights) for group in groups if group[layer].count]
            left, whole = (torch.stack(some).sum(dim=0) for some in zip(*parts, strict=True))
            found.append(float((1 - left / whole.clamp(min=1e-12)).mean()))
        return found

    tried = {ridge: [one.solve(ridge) for one in learn] for ridge in RIDGES}
    shares = {ridge: share([text, image], maps) for ridge, maps in tried.items()}
    best = max(RIDGES, key=lambda ridge: sum(shares[ridge]))
    maps, apart = tried[best], []
    for group in (text, image):
        apart.append(sum(share([group], maps)) / len(maps) if group[0].count else None)
    report = Report(
        samples=read, skipped=skipped, rows=learn[0].count + text[0].count + image[0].count, image=pictures,
        ridge=best, explained=shares[best], text=apart[0], pictures=apart[1],
    )  # fmt: skip
    pairs = [(m[:-1].T.float().contiguous(), m[-1].float().contiguous()) for m in maps]
    facts = {**report.to_dict(), "teacher": "kvzip+", "input": "residual stream / its root mean square"}
    return Weights(model=identity(pipeline.model), maps=pairs, facts=facts), report
