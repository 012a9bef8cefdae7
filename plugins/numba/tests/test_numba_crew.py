import json
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from andes_numba.activations import address
from andes_numba.crew import LINE, claim, finish, meet, piece, pieces
from andes_numba.few import FEW
from numba import njit, prange

from andes_sdk import Pipeline
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Inputs


@njit(parallel=True)
def relay(counters, sums, stages, items, threads):
    """Item i of stage s holds a sum over the stage before, which must be complete by then."""
    for _ in prange(threads):
        start = (address(counters) + LINE - 1) // LINE * LINE
        for s in range(1, stages):
            item = claim(start + LINE * s)
            while item < items:
                sums[s, item] = sums[s - 1].sum() % 1000003 + item
                finish(start + LINE * s)
                item = claim(start + LINE * s)
            meet(start + LINE * s, items)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_stage_begins_when_the_one_before_is_done_however_many_threads_come(threads):
    wanted = np.ones((200, 11), np.int64)
    for s in range(1, 200):
        wanted[s] = wanted[s - 1].sum() % 1000003 + np.arange(11)
    for most in {1, numba.get_num_threads()}:  # fewer threads than were asked for must not hang
        before = numba.get_num_threads()
        numba.set_num_threads(most)
        sums = np.ones((200, 11), np.int64)
        relay(np.zeros(201 * LINE, np.uint8), sums, 200, 11, threads)
        numba.set_num_threads(before)
        assert np.array_equal(sums, wanted)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("blocks", [0, 1, 5, 64, 9496])
def test_pieces_of_a_product_are_all_of_it_once(threads, blocks):
    edges = [piece.py_func(item, blocks, threads) for item in range(pieces.py_func(threads))]
    assert [b for first, last in edges for b in range(first, last)] == list(range(blocks))


@pytest.mark.parametrize("numbers", [{"activations": "int8", "kv": "f16"}, {"activations": "exact", "kv": "f32"}])
def test_a_pass_of_many_rows_has_the_bits_of_single_steps(numbers):
    parts = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny"}}]
    pipe = Pipeline.from_plugins([*parts, {"numba": {"format": "w4_g32", **numbers}}], backend="numba", seed=1)
    single, many, few = (pipe.compiled.session(KeepAll()) for _ in range(3))
    for session in (single, many, few):
        session.prefill(Inputs(ids=torch.arange(30)))
    tokens = list(range(FEW + 1))
    steps = torch.cat([single.extend([token])[0] for token in tokens])
    assert torch.equal(many.extend(tokens)[0], steps)
    assert torch.equal(few.extend(tokens[:-2])[0], steps[:-2])


READ = """
import hashlib, json, sys, torch
from andes_sdk import Pipeline
from andes_sdk.types import Inputs

tiny = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny"}}, {"numba": json.loads(sys.argv[1])}]
session = Pipeline.from_plugins(tiny, backend="numba", seed=1).session()
found = [session.prefill(Inputs(ids=torch.arange(40))), session.extend([1, 2])[0], session.extend(list(range(20)))[0]]
print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in found)).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"format": "w4_g32"}, {"format": "nm14_w4", "head": "w8", "kv": "int8"}], ids=["dense", "sparse"]
)
def test_nothing_is_read_from_memory_that_was_given_back(options):
    """glibc overwrites what is freed if it is told to: a counter or a buffer freed too early would tell."""
    name = json.dumps(options)
    spoilt = {"MALLOC_PERTURB_": "165", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    digests = [
        subprocess.run(
            [sys.executable, "-c", READ, name], env={**os.environ, **more}, capture_output=True, text=True, check=True
        ).stdout
        for more in ({}, spoilt)
    ]
    assert digests[0] == digests[1] != ""
