"""What other collections hold: compressors, rewards, data filters, benchmarks and exporters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from .compression import Compressed
    from .model import Model


@runtime_checkable
class Compressor(Protocol):
    """Rewrites a model's weights so that they fit a format. `Compressed` says what is packed as it is."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def compress(self, model: Model, **options: Any) -> Compressed:
        """Change the model in place -> its codes and ranges, and a report as plain data.

        Raises:
            ConfigError: options that it does not take, or a model that it cannot compress.
        """


@runtime_checkable
class Reward(Protocol):
    """Scores an answer against a sample; higher is better."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """A finite number for one answer."""


@runtime_checkable
class DataFilter(Protocol):
    """Keeps or drops training samples, with a reason."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def apply(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        """Yield (sample, None) to keep it or (sample, reason) to drop it."""


@runtime_checkable
class TableFilter(Protocol):
    """A data filter in two steps, so that many machines can share the first. Optional, beside `DataFilter`.

    Pictures of a sample are absolute paths, URLs or bytes.
    """

    @property
    def version(self) -> str:
        """Names what `describe` computes, options included: facts are kept under it and never computed again."""

    @property
    def waits(self) -> bool:
        """Whether `describe` mostly waits (for a server), so that threads serve it better than processes."""

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Facts of one sample as JSON data, whatever the others are. Runs in other processes: picklable, no state."""

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """Facts of all samples in order -> for each None to keep it, or the reason to drop it. Deterministic."""


@runtime_checkable
class Benchmark(Protocol):
    """A task with a score."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def run(self, pipeline: Any, *, limit: int | None = None) -> Mapping[str, float]:
        """Score a pipeline, on the first `limit` items if given -> named figures."""


@runtime_checkable
class Exporter(Protocol):
    """Writes a model, or a part of one, as a file of another runtime."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def export(self, pipeline: Any, path: Path) -> Mapping[str, Any]:
        """Write `path`, whole or not at all -> a report as plain data: what was written, what was lost or left out.

        The model stays as it was. A model that the runtime cannot express is an error, before anything is written.
        """
