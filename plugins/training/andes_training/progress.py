"""What a training run shows, and the metrics file it leaves behind.

Every step is a line of `metrics.jsonl`. A run that goes on after a kill first cuts the lines that its state does not
cover, so the file reads as if the run had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from andes_sdk.files import Journal

if TYPE_CHECKING:
    from andes_sdk.types import Event

METRICS = "metrics.jsonl"
BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Values as blocks from lowest to highest, averaged into at most `width` of them; empty for no values."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


class Progress:
    """Shows a run's events; use it as a context manager, or call `close()` at the end.

    Args:
        out: the run's folder; every step is appended to `out/metrics.jsonl`.
        console: where to show, None for nowhere. A terminal gets a bar, anything else plain lines.
        log_every: steps between two plain lines, one number per stage; the last one counts for later stages.
    """

    def __init__(self, out: str | Path, console: Console | None = None, log_every: Sequence[int] = (10,)) -> None:
        self.path = Path(out) / METRICS
        self.console = console
        self.log_every = tuple(log_every)
        self.losses: list[float] = []
        self._index = -1
        self._stage = ""
        self._steps = 0
        self._bar: Bar | None = None
        self._task: Any = None
        self._last = (0, time.perf_counter())
        self._tokens = 0
        self._speed = 0.0
        self._clock = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, event: Event) -> None:
        """Take note of an event of the training loop."""
        step = event.step or 0
        if event.kind == "stage-start":
            self._start(step, event.values)
        elif event.kind == "step":
            self._step(step, event.values)
        elif event.kind == "bad-samples":
            listed = ", ".join(f"{reason}: {count}" for reason, count in event.values["reasons"].items())
            kind = "validation samples" if event.values.get("validation") else "samples"
            self._print(f"skipped {event.values['skipped']} {kind} ({listed}): {event.values['file']}")
        elif event.kind == "resumed":
            self._print(f"going on from {event.values['state']}; changed: {'; '.join(event.values['changed'])}")
        elif event.kind == "best-anew":
            figure, stage = event.values["figure"], event.values["stage"]
            self._print(f"{figure} of {stage}: another figure or other data than before, its best starts anew")
        elif event.kind == "stopped-early":
            best = event.values["best_step"]
            self._print(f"{event.values['figure']} is no better since step {best}: the stage ends with that state")
        elif event.kind == "stage-end":
            self._end()

    # ------------------------------------------------------------ events

    def _start(self, step: int, values: Mapping[str, Any]) -> None:
        if self._index < 0:
            self._index = self._first_index()
            self._cut(self._index, step)
        else:
            self._index += 1
        self._stage, self._steps = str(values["stage"]), int(values["steps"])
        self.losses, self._tokens, self._speed = [], 0, 0.0
        self._clock = time.perf_counter()
        self._last = (step, self._clock)
        if self.console is None:
            return
        resumed = f", from step {step}" if step else ""
        steps = self._steps or "all"  # of a number of epochs, whose steps nobody knows
        self._print(f"stage {self._stage}: {steps} steps, {values.get('samples', '?')} samples{resumed}")
        if self.console.is_terminal:
            self._bar = _bar(self.console)
            self._task = self._bar.add_task(self._stage, total=self._steps or None, completed=step, figures="")
            self._bar.start()

    def _step(self, step: int, values: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        speed = values.get("tokens", 0) / seconds if seconds > 0 else 0.0
        # one step's speed jumps about; what is shown is an average over roughly the last ten
        self._speed = speed if not self._speed else 0.9 * self._speed + 0.1 * speed
        self._tokens += values.get("tokens", 0)
        if isinstance(loss := values.get("loss"), int | float):
            self.losses.append(float(loss))
        Journal(self.path).add(
            {"index": self._index, "stage": self._stage, "step": step, **values, "seconds": round(seconds, 4)}
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=_figures(values, self._speed))
        elif self.console is not None and (step % self._every() == 0 or step == self._steps):
            before, then = self._last
            left = (now - then) / max(step - before, 1) * (self._steps - step)
            speed = self._tokens / max(now - then, 1e-9)
            place, end = f"{step}/{self._steps}", f"  {_duration(left)} left"
            if not self._steps:
                place, end = f"{step}", f"  epoch {values.get('epoch', 0.0):.2f}"
            self._print(f"{self._stage} {place}  {_figures(values, speed)}{end}")
            self._last, self._tokens = (step, now), 0

    def _end(self) -> None:
        self.close()
        if self.console is not None and self.losses:
            first, last = self.losses[0], self.losses[-1]
            self._print(f"loss {sparkline(self.losses)} {first:.3f} → {last:.3f}")

    def _every(self) -> int:
        return max(1, self.log_every[min(max(self._index, 0), len(self.log_every) - 1)])

    def _print(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    # ------------------------------------------------------------ the file

    def _first_index(self) -> int:
        """Which stage of the recipe the run begins with: that of its newest state."""
        from andes_training.state import states

        found = states(self.path.parent)
        return int(found[-1].name.split("-")[1]) if found else 0

    def _cut(self, index: int, step: int) -> None:
        """Drop lines after (stage, step)."""
        Journal(self.path).keep(lambda row: (row["index"], row["step"]) <= (index, step))


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _figures(values: Mapping[str, Any], speed: float) -> str:
    shown = ("loss", "accuracy", "validation_loss")
    parts = [f"{key} {values[key]:.4f}" for key in shown if isinstance(values.get(key), int | float)]
    return "  ".join([*parts, f"{speed:.0f} supervised tokens/s"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
