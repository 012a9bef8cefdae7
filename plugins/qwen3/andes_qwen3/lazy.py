"""An object that is built when it is first needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_BUILDING = threading.RLock()
"""Of all objects, so that each can be copied and pickled. What is built may need another object in turn."""


def _renew() -> None:
    """In a forked child: who held the lock may be a thread that the child does not have."""
    global _BUILDING
    _BUILDING = threading.RLock()


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_renew)


class Lazy(Generic[T]):
    """An object to come. Threads that need it at once wait for one of them; a build that fails is tried again.

    What was built is left out of pickles and copies: they build their own, with a function that can be pickled.
    """

    def __init__(self, build: Callable[[], T]) -> None:
        """`build` returns anything but None."""
        self._build = build
        self._made: T | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    @property
    def built(self) -> bool:
        """Whether it has been built."""
        return self._made is not None

    def get(self) -> T:
        """The object, built unless it has been. Raises what `build` raises."""
        if self._made is None:
            with _BUILDING:
                if self._made is None:
                    self._made = self._build()
        return self._made
