import os
import subprocess
import sys

import numba
import pytest
from andes_numba import FORMATS, Numba
from andes_numba.machine import KERNEL_SETS, choose_kernels, choose_threads, features, threading_layer
from numba.core import config

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable
from andes_sdk.formats import find


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
