"""The two boards. Each stage is a group of curves of its own, with its own steps; of two stages of one name the later
one has its number in its group's.

A run that goes on after a kill repeats the steps since its last state. TensorBoard hides what it wrote before
(`purge_step`); trackio shows a step twice, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Board(Protocol):
    """Where numbers go."""

    def begin(self, stage: str, step: int) -> None:
        """A stage starts, or goes on after `step`."""

    def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one step."""

    def end(self) -> None:
        """A stage is over: everything must be on disk."""


class TensorBoard:
    """One event file per stage, so that each can be purged alone."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.writer: Any = None

    def begin(self, stage: str, step: int) -> None:
        """Open the stage's folder; what stands there after `step` is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(self.folder) / stage), purge_step=step + 1 if step else None)

    def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """One scalar per number."""
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def end(self) -> None:
        """Close the file."""
        self.writer.close()


class Trackio:
    """One run for all stages; curves carry their stage's name and step."""

    def __init__(self, project: str, name: str) -> None:
        self.project, self.name = project, name
        self.active = False

    def begin(self, stage: str, step: int) -> None:
        """Open the run, or go on with the one of this name."""
        import trackio

        if not self.active:
            trackio.init(project=self.project, name=self.name, resume="allow", embed=False)
            self.active = True

    def write(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """One entry."""
        import trackio

        trackio.log({f"{stage}/{name}": number for name, number in numbers.items()}, step=step)

    def end(self) -> None:
        """Wait until everything is stored."""
        import trackio

        trackio.finish()
        self.active = False


def open_board(backend: str, folder: str, project: str, name: str) -> Board:
    """'tensorboard' or 'trackio'."""
    return TensorBoard(folder) if backend == "tensorboard" else Trackio(project, name)
