"""Functions that others call by a symbol: compiled once, kept with their callers, the same bits."""

import os
import subprocess
import sys

import pytest

SOURCE = """\
import sys
import numpy as np
from numba import njit, prange
from numba.core.event import Listener, register
from andes_numba import apart
from andes_numba.machine import kept

@apart.apart
def third(x):
    if x < 0:
        raise ValueError("below zero")
    return x / 3

@apart.apart
def inner(x, n):
    return third(x[n]) + 1

@njit(parallel=True)
def together(x, y):
    for n in prange(x.size):
        y[n] = inner(x, np.int64(n))

@kept
def whole(x):
    y = np.empty_like(x)
    together(x, y)
    return y.sum() + inner(x, np.int64(0))

@kept
def other(x):
    return inner(x, np.int64(1))

class Compiled(Listener):
    names = []
    def on_start(self, event):
        self.names.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event):
        pass

register("numba:compile", Compiled())
x = np.arange(1.0, 5.0)
for name in sys.argv[1:]:
    try:
        print(float.hex(globals()[name.strip("-")](-x if name[0] == "-" else x)))
    except ValueError as error:
        print(error)
print(Compiled.names.count("inner"), Compiled.names.count("third"), len(apart._LOADED))
"""


@pytest.fixture
def run(tmp_path):
    """What a fresh process prints that calls these functions; all share a folder of machine code."""
    (tmp_path / "written.py").write_text(SOURCE)

    def start(*names):
        env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "code")}
        command = [sys.executable, str(tmp_path / "written.py"), *names]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()

    return start


def test_it_is_compiled_once_for_all_callers_and_comes_with_each_from_the_cache(run):
    first = run("whole", "other")
    assert first[-1] == "1 1 0"
    second = run("whole", "other")
    assert second == [*first[:-1], "0 0 2"]


def test_a_caller_compiled_beside_one_from_the_cache_has_the_same_bits(run):
    alone = run("other")
    run("whole")
    assert run("whole", "other")[1] == alone[0]


def test_it_lies_in_the_file_of_its_caller_and_a_file_that_is_gone_is_compiled_again(run, tmp_path):
    first = run("whole")
    (code,) = (tmp_path / "code").rglob("*.nbc")
    code.unlink()
    assert run("whole") == first
    assert run("whole") == [first[0], "0 0 2"]


def test_an_error_in_it_reaches_whoever_called(run):
    for _ in range(2):
        assert run("-whole")[0] == "below zero"
