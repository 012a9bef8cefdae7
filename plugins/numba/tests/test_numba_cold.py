"""Answers while machine code is still missing: the same bits, from the kernel that is there."""

import os
import subprocess
import sys

import pytest
import torch
from andes_numba import cold, passes
from andes_numba.cold import Waiting

from andes_sdk import Pipeline
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Inputs, Work

MODEL = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny"}}, {"numba": {"format": "w4_g32"}}]
PROMPTS = [torch.arange(5, 42), torch.arange(60, 66)]


class Elsewhere:
    """A process that compiles for as long as a test wants."""

    def __init__(self):
        self.code = None
        self.returncode = 0

    def poll(self):
        return self.code


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_plugins(MODEL, backend="numba", seed=2)


def conversation(pipe):
    """Logits of two prompts read together, of a tree, and of a step that both share."""
    sessions = [pipe.compiled.session(KeepAll()) for _ in PROMPTS]
    works = [next(s.chunks(Inputs(ids))) for s, ids in zip(sessions, PROMPTS, strict=True)]
    rows = pipe.compiled.step(works)
    for session in sessions:
        session.commit()
    tree = sessions[0].extend([1, 2, 3, 4], [-1, 0, 0, 1])
    sessions[0].rollback()
    both = pipe.compiled.step([Work(session=sessions[0], tokens=[7]), Work(session=sessions[1], tokens=[8])])
    return [*(r.logits for r in rows), *tree, *(r.logits for r in both), *(r.hidden for r in rows)]


@pytest.fixture
def waiting(pipe, monkeypatch):
    """The pipeline as if nothing were compiled, and the process that compiles."""
    process = Elsewhere()
    monkeypatch.setattr(cold, "is_kept", lambda *_: False)
    monkeypatch.setattr(cold, "compile_beside", lambda *_: process)
    function = type("Function", (), {"typeof_pyval": staticmethod(type), "overloads": {}})
    monkeypatch.setattr(pipe.compiled, "whole", Waiting(function))
    return process


def test_answers_without_the_code_for_many_rows_are_the_same_to_the_bit(pipe, waiting, monkeypatch):
    def missing(*_):
        raise AssertionError("it is not compiled yet")

    with monkeypatch.context() as patch:
        patch.setattr(passes, "forward", missing)
        got = conversation(pipe)
    pipe.compiled.whole.here()
    for one, other in zip(got, conversation(pipe), strict=True):
        assert torch.equal(one, other)


def test_code_that_has_come_is_used_in_the_middle_of_a_prompt(pipe, waiting, monkeypatch):
    sizes, real = [], passes._run

    def run(compiled, sessions, steps, embeds, wanted):
        sizes.append(len(embeds[0]))
        if len(sizes) == 2:
            waiting.code = 0
        return real(compiled, sessions, steps, embeds, wanted)

    monkeypatch.setattr(passes, "_run", run)
    pipe.compiled.session(KeepAll()).prefill(Inputs(torch.arange(5, 105)))
    assert sizes == [16, 16, 68]


def test_a_background_that_fails_is_told_and_done_here(pipe, waiting, caplog):
    waiting.code = waiting.returncode = 3
    pipe.compiled.session(KeepAll()).prefill(Inputs(PROMPTS[0]))
    assert pipe.compiled.whole.ready
    assert "compiling in the background failed, code 3" in caplog.text


def test_another_process_compiles_what_the_types_say_and_keeps_it(tmp_path):
    code = """
import numpy as np
from andes_numba.cold import compile_beside, is_kept
from andes_numba.lookup import look_up
from andes_numba.simd import Tag
arguments = Tag("format", "w8"), np.zeros((1, 64), np.uint8), np.zeros(1, np.int64), np.zeros((1, 128), np.float32)
signature = tuple(look_up.typeof_pyval(a) for a in arguments)
before = is_kept(look_up, signature)
first, second = (compile_beside(look_up, signature) for _ in range(2))
print(before, first is second, first.wait(), is_kept(look_up, signature))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == ["False", "True", "0", "True"], run.stderr
    assert "compiled in the background" in run.stderr


def test_the_variable_sets_the_default(monkeypatch):
    from andes_numba import Numba

    monkeypatch.setenv("ANDES_NUMBA_COMPILING", "beside")
    assert Numba().compiling == "beside"
    monkeypatch.delenv("ANDES_NUMBA_COMPILING")
    assert Numba().compiling == "beside"
    monkeypatch.setenv("ANDES_NUMBA_COMPILING", "first")
    assert Numba().compiling == "first"
