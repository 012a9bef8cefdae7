"""Leaving a run in order: SIGTERM and Ctrl-C are noted, and acted on where a state can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from andes_sdk.errors import TrainingError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(TrainingError):
    """A run that was asked to stop, and has saved its state.

    Attributes:
        signal: number of the signal that asked.
    """

    signal: int = 0


class Stopping:
    """Within this, the first signal is noted in `signal`; a second one does what it always did."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
