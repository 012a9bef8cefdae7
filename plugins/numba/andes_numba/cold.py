"""Machine code that is not there yet: another process compiles it, while answers go on without it.

`forward_few` computes any pass, a few rows at a time, to the bit what `forward` computes. So only that one has to be
waited for. `python -m andes_numba.cold` is the other process: it reads what to compile from its input.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import subprocess
import sys
from typing import Any

from attrs import define, field

_LOG = logging.getLogger("andes_numba")
_RUNNING: dict[tuple[str, tuple[Any, ...]], subprocess.Popen[bytes]] = {}

NICENESS = 10
"""Of the other process: answers come first."""


@define(eq=False)
class Waiting:
    """A function that is not called before its machine code is there.

    Attributes:
        function: made by `machine.kept`.
        ready: whether it may be called. True from the start: Numba compiles it in this process, where it is called.
    """

    function: Any
    _ready: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        """Whether it may be called. Without `see` nobody knows."""
        if not self._ready and self._process is not None and self._process.poll() is not None:
            self._ready = True
            if self._process.returncode:  # it is compiled here then, which tells what is wrong
                _LOG.warning("numba: compiling in the background failed, code %d", self._process.returncode)
        return self._ready

    def here(self) -> None:
        """Let Numba compile it in this process, where it is called."""
        self._ready = True

    def see(self, *arguments: Any) -> None:
        """Learn from arguments which machine code it needs, and have it made if it is not there."""
        if self._ready or self._process is not None:
            return
        signature = tuple(self.function.typeof_pyval(a) for a in arguments)
        self._ready = signature in self.function.overloads or is_kept(self.function, signature)
        if not self._ready:
            self._process = compile_beside(self.function, signature)


def compile_beside(function: Any, signature: tuple[Any, ...]) -> subprocess.Popen[bytes]:
    """A process that compiles a `kept` function and leaves it in the cache, also if this one ends earlier."""
    name = function.py_func.__name__
    if (name, signature) in _RUNNING:
        return _RUNNING[name, signature]
    command, null = [sys.executable, "-m", __name__], subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(pickle.dumps((function.py_func.__module__, name, signature)))  # our own types, to our own child
    _LOG.warning("numba: code for long prompts is compiled in the background; until then prompts are read more slowly")
    return _RUNNING.setdefault((name, signature), process)


def is_kept(function: Any, signature: tuple[Any, ...]) -> bool:
    """Whether machine code of a `kept` function for these types lies on disk."""
    cache = function._cache
    return cache._index_key(signature, function.targetctx.codegen()) in cache._cache_file._load_index()


def main() -> None:
    """Compile what the input names, which keeps it on disk."""
    os.nice(NICENESS)
    module, name, signature = pickle.load(sys.stdin.buffer)
    getattr(importlib.import_module(module), name).compile(signature)


if __name__ == "__main__":
    main()
