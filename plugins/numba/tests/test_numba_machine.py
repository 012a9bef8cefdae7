import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from andes_numba import FORMATS, Numba
from andes_numba.affinity import choose_cpus, cpus_named
from andes_numba.machine import KERNEL_SETS, choose_kernels, choose_threads, features, threading_layer
from andes_numba.team import Team, gather
from andes_packing.formats import find
from numba import njit, prange
from numba.core import config, types

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, BackendUnavailable, ConfigError, SessionError
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Inputs

TINY = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny"}}]


@pytest.fixture
def openmp():
    if threading_layer() != "omp":
        pytest.skip(f"Numba's threads are those of {threading_layer()}, which are not pinned")


linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")


def test_importing_the_package_imports_neither_torch_nor_numba():
    code = "import sys, andes_numba; andes_numba.Numba(); sys.exit(bool({'torch', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_format_on_offer_exists():
    assert [find(name).name for name in FORMATS] == list(FORMATS)


def test_the_best_kernel_set_of_this_processor_is_chosen():
    name, why = choose_kernels("auto")
    better = list(KERNEL_SETS)[: list(KERNEL_SETS).index(name)]
    assert KERNEL_SETS[name] <= features()
    assert all(f"{other} lacks" in why for other in better)


def test_a_kernel_set_asked_for_is_used():
    assert choose_kernels("portable") == ("portable", "asked for")


def test_a_kernel_set_that_the_processor_lacks_is_refused_with_what_is_missing(monkeypatch):
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,+fma,+f16c")
    assert choose_kernels("auto")[0] == "avx2"
    with pytest.raises(BackendUnavailable, match="avx512vnni") as error:
        choose_kernels("avx512vnni")
    assert error.value.fix == "use kernels='auto', or one of avx2, portable"


def test_more_threads_than_there_are_is_refused():
    assert choose_threads(0) == config.NUMBA_NUM_THREADS
    with pytest.raises(BackendUnavailable, match=r"threads"):
        choose_threads(config.NUMBA_NUM_THREADS + 1)


def test_the_threading_layer_is_not_workqueue():
    assert threading_layer() in ("omp", "tbb")


def test_workqueue_is_refused():
    code = "from andes_numba.machine import threading_layer; threading_layer()"
    env = {"NUMBA_THREADING_LAYER": "workqueue"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "BackendUnavailable: numba: Numba's threads would run on 'workqueue'" in run.stderr


def test_another_device_than_the_cpu_is_refused():
    backend = Numba().andes_backends()[0]
    with pytest.raises(BackendUnavailable, match="meta"):
        backend.compile(None, device="meta", dtype="float32")


def test_explain_tells_the_kernel_set_and_formats():
    parts = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny"}}]
    rows = Pipeline.from_plugins([*parts, {"numba": {"kernels": "portable"}}], backend="numba").explain().rows
    told = {row.part: row.value for row in rows if row.owner == "numba"}
    assert told["kernels"] == "portable: asked for"
    assert told["threads"] == str(config.NUMBA_NUM_THREADS)
    assert told["affinity"] == "none: the operating system places threads"
    assert told["format"] == "w4_g32, head w4_g32; an artefact keeps its own"
    assert told["numbers"] == "activations int8, kv f16"
    idle = Pipeline.from_plugins([*parts, "numba"]).explain().rows
    assert any(row.owner == "numba" and row.value == "inactive: the backend is 'torch'" for row in idle)


def test_kept_machine_code_is_tied_to_every_file_of_the_package():
    from andes_numba import machine
    from andes_numba.step import forward

    version, digest = machine._sources()
    assert forward._cache._cache_file._source_stamp == (version, digest)
    assert version == numba.__version__
    assert len(digest) == 64


def test_code_compiled_in_one_process_is_found_by_the_next(tmp_path):
    code = (
        "import numpy as np; from andes_numba.product import multiply_rows as f; from andes_numba.simd import Tag;"
        "tags = [Tag('isa', 'portable'), Tag('format', 'f16'), Tag('mode', 'exact')];"
        "f(*tags, np.zeros((1, 64), np.uint8), 2, np.zeros((1, 128), np.float32), 1, np.zeros((1, 16), np.float32), 1);"
        "print(sum(f.stats.cache_hits.values()))"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.strip() for run in runs] == ["0", "1"]


# ---------------------------------------------------------------- affinity


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("3", (3,)), ("0,2,4-7", (0, 2, 4, 5, 6, 7)), ("5, 1 - 2", (5, 1, 2)), ("8191", (8191,))],
)
def test_cpus_are_read_in_the_order_they_are_named(text, cpus):
    assert cpus_named(text) == cpus


@pytest.mark.parametrize(
    "text", [" ", ",", "1,", "-1", "3-1", "a", "1;2", "0x1", "8192", "0-99999", "0-9999999999", "٣"]
)
def test_what_is_no_list_of_cpus_is_refused_when_the_plugin_is_made(text):
    with pytest.raises(ConfigError, match="affinity takes CPU numbers"):
        Numba(affinity=text)
    with pytest.raises(AssemblyError) as error:
        Pipeline.from_plugins([*TINY, {"numba": {"affinity": text}}])
    (problem,) = error.value.problems
    assert (problem.who, problem.what[-len(repr(text)) :]) == ("numba.affinity", repr(text))


def test_a_cpu_named_twice_is_refused():
    with pytest.raises(ConfigError, match="names a CPU twice"):
        Numba(affinity="1,0-2")


@linux
def test_threads_are_one_for_each_cpu_named_unless_their_number_is_given(openmp):
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    assert choose_threads(0, 1) == choose_threads(1, 8) == 1
    assert choose_threads(0, config.NUMBA_NUM_THREADS + 1) == config.NUMBA_NUM_THREADS
    assert gather(0, cpus[-1]).cpus == (int(cpus[-1]),)
    assert gather(1, ",".join(cpus)).cpus == (int(cpus[0]),)


@linux
def test_cpus_that_this_process_may_not_use_are_refused_with_those_that_it_may():
    allowed = os.sched_getaffinity(0)
    with pytest.raises(BackendUnavailable, match="no CPU 8191") as error:
        choose_cpus("8191", 1, "omp")
    assert error.value.fix == f"name some of these: {', '.join(map(str, sorted(allowed)))}"
    backend = Numba(affinity="8191").andes_backends()[0]
    with pytest.raises(BackendUnavailable, match="no CPU 8191"):  # before any weight is packed
        backend.compile(None, device="cpu", dtype="float32")


@linux
def test_more_threads_than_cpus_named_are_refused():
    cpu = min(os.sched_getaffinity(0))
    with pytest.raises(BackendUnavailable, match=r"more threads \(2\) than CPUs named \(1\)") as error:
        choose_cpus(str(cpu), 2, "omp")
    assert error.value.fix == "name 2 CPUs, or use threads<=1"


@linux
def test_threads_of_tbb_are_not_pinned():
    with pytest.raises(BackendUnavailable, match="threads of tbb cannot be pinned"):
        choose_cpus(str(min(os.sched_getaffinity(0))), 1, "tbb")


def test_a_system_that_cannot_pin_is_told(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(BackendUnavailable, match="threads cannot be pinned here") as error:
        choose_cpus("0", 1, "omp")
    assert "has no sched_setaffinity" in error.value.why
    assert choose_cpus("", 1, "omp") == ()


@linux
def test_threads_that_openmp_does_not_start_are_an_error_not_two_on_one_cpu(openmp):
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2 or config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs two CPUs")
    code = f"from andes_numba.team import gather; gather(2, '{cpus[0]},{cpus[1]}')"
    env = {**os.environ, "OMP_THREAD_LIMIT": "1", "NUMBA_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "BackendUnavailable: numba.affinity: threads could not be pinned" in run.stderr
    assert "OpenMP started fewer of them" in run.stderr


@linux
def test_a_cpu_that_is_taken_away_later_is_an_error_and_leaves_nothing_pinned(openmp):
    before = os.sched_getaffinity(0)
    with pytest.raises(SessionError, match="threads could not be pinned") as error, Team(1, (8191,)).at_work():
        pass
    assert error.value.why == "a CPU was taken from this process"
    assert os.sched_getaffinity(0) == before


@njit(parallel=True)
def who_and_where(threads, found):
    """Thread and CPU of each iteration."""
    for n in prange(threads):
        found[n] = GETTID(), GETCPU()


GETTID = types.ExternalFunction("gettid", types.int32())
GETCPU = types.ExternalFunction("sched_getcpu", types.int32())


def mask(thread):
    """CPUs a thread may use, as the kernel tells them."""
    lines = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    return cpus_named(next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list")))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_thread_is_on_its_own_cpu_while_the_team_works_and_free_afterwards(openmp):
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    count = min(len(allowed), config.NUMBA_NUM_THREADS)
    for cpus in (allowed[:count], allowed[:count][::-1]):  # what was pinned before does not stay
        team, found = Team(count, cpus), np.zeros((count, 2), np.int64)
        before = numba.get_num_threads()
        with team.at_work():
            who_and_where(count, found)
            assert found[0, 0] == threading.get_native_id()  # the caller is a member
            assert len(set(found[:, 0])) == count
            assert found[:, 1].tolist() == list(cpus)
            assert [mask(thread) for thread in found[:, 0]] == [(cpu,) for cpu in cpus]
        assert {mask(thread) for thread in found[:, 0]} == {allowed}
        assert numba.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_is_pinned_during_its_passes_and_computes_the_same_bits(openmp):
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    pinned, free = (
        Pipeline.from_plugins([*TINY, {"numba": {**Numba.testing, **options}}], backend="numba", seed=1)
        for options in ({"affinity": str(allowed[-1])}, {"threads": 1})
    )
    facts = pinned.compiled.facts()
    assert (facts["threads"], facts["affinity"]) == ("1, omp", f"CPUs {allowed[-1]}")
    told = {row.part: row.value for row in pinned.explain().rows if row.owner == "numba"}
    assert (told["threads"], told["affinity"]) == ("1", f"CPUs {allowed[-1]}")
    spare = Pipeline.from_plugins([*TINY, {"numba": {"threads": 1, "affinity": "0,1,2"}}], backend="numba")
    assert {r.part: r.value for r in spare.explain().rows if r.owner == "numba"}["affinity"] == "CPUs 0; not used: 1, 2"
    assert free.compiled.facts()["affinity"] == "none: the operating system places threads"

    inputs, main = Inputs(ids=torch.arange(400) % 90), threading.get_native_id()
    seen, over = set(), threading.Event()

    def watch():
        while not over.is_set():
            seen.add(mask(main))

    watcher, deadline = threading.Thread(target=watch), time.monotonic() + 30
    watcher.start()
    try:
        while (allowed[-1],) not in seen and time.monotonic() < deadline:
            logits = pinned.compiled.session(KeepAll()).prefill(inputs)
    finally:
        over.set()
        watcher.join()
    assert seen <= {(allowed[-1],), allowed}
    assert (allowed[-1],) in seen
    assert mask(main) == allowed
    assert torch.equal(free.compiled.session(KeepAll()).prefill(inputs), logits)
