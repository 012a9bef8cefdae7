"""The other environment: missing, dying, hanging, wrong. A shell script stands in for its interpreter."""

import json
import os
import time
from pathlib import Path

import pytest
from andes_dimensity import environment
from andes_dimensity.check import not_here
from andes_dimensity.compiler import SDK, vendor, words
from andes_dimensity.deploy import app
from andes_dimensity.environment import setup, work, workplace
from andes_dimensity.export import export
from andes_dimensity.options import Options
from typer.testing import CliRunner

from andes_sdk.errors import BackendUnavailable, ConfigError


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Make an environment whose `python` is this shell script; $4 is the folder of the job."""
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path / "cache"))

    def make(script):
        folder = environment.folder()
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / "python").chmod(0o755)
        (folder / environment.READY).write_text(json.dumps({"path": str(folder), "packages": []}))
        place = tmp_path / "job"
        place.mkdir()
        return place

    return make


def test_a_missing_environment_says_how_to_make_it(tmp_path, monkeypatch, pipe):
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path))
    assert not environment.is_ready()
    out = tmp_path / "model.litertlm"
    with pytest.raises(BackendUnavailable, match="environment of LiteRT is missing") as caught:
        export(pipe, out, Options(rows=32))
    assert "andes deploy setup dimensity" in caught.value.fix
    assert not out.exists()


def test_a_half_made_environment_counts_as_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path))
    (environment.folder() / "bin").mkdir(parents=True)
    (environment.folder() / "bin" / "python").write_text("#!/bin/sh\n")
    assert not environment.is_ready()


def test_what_is_there_is_not_made_again(stand_in):
    stand_in("exit 0")
    assert setup()["made"] is False


def test_setup_without_room_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "NEEDS", 1 << 60)
    with pytest.raises(BackendUnavailable, match="no room"):
        setup()
    assert not environment.folder().exists()


def test_setup_that_cannot_install_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path / "requirements.txt")
    (tmp_path / "requirements.txt").write_text("./no-such-folder-of-ours\n")
    with pytest.raises(BackendUnavailable, match="cannot be installed"):
        setup()
    assert not environment.folder().exists()


def test_progress_and_results_come_through(stand_in):
    place = stand_in('echo "@ half way"; echo \'{"answer": 3}\' > "$4/result.json"')
    told = []
    assert work(place, {"do": "x"}, told.append) == {"answer": 3}
    assert told == ["half way"]


def test_a_worker_that_dies_is_told_with_its_last_words(stand_in):
    place = stand_in("echo 'terminate called: out of memory' >&2; exit 134")
    with pytest.raises(BackendUnavailable, match="LiteRT died") as caught:
        work(place, {"do": "x"})
    assert caught.value.why == "exit 134: terminate called: out of memory"


def alive(stat: Path) -> bool:
    """Whether a process still is there, by its /proc/PID/stat; one that nobody has reaped yet is not."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_hangs_is_ended_with_all_that_it_started(stand_in, tmp_path):
    place = stand_in(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    start = time.monotonic()
    with pytest.raises(BackendUnavailable, match="LiteRT hangs"):
        work(place, {"do": "x"}, limit=2.0)
    assert time.monotonic() - start < 30
    stat = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    while alive(stat) and time.monotonic() - start < 60:  # a busy machine takes its time with killed processes
        time.sleep(0.05)
    assert not alive(stat)


def test_a_worker_that_goes_on_telling_may_take_its_time(stand_in):
    place = stand_in('for n in 1 2 3 4 5 6; do echo "@ $n"; sleep 0.5; done; echo \'{}\' > "$4/result.json"')
    told = []
    assert work(place, {"do": "x"}, told.append, limit=1.5) == {}
    assert told == list("123456")


def test_what_litert_refuses_is_our_error(stand_in):
    place = stand_in('echo \'{"error": "LookupError: a matrix of shape (3, 4)"}\' > "$4/result.json"; exit 1')
    with pytest.raises(ConfigError, match="could not do it") as caught:
        work(place, {"do": "x"})
    assert caught.value.why == "LookupError: a matrix of shape (3, 4)"


def test_a_disk_that_fills_up_meanwhile_is_told(stand_in):
    place = stand_in('echo \'{"error": "OSError: [Errno 28] No space left on device"}\' > "$4/result.json"; exit 1')
    with pytest.raises(BackendUnavailable, match="disk is full") as caught:
        work(place, {"do": "x"})
    assert "ANDES_CACHE" in caught.value.fix


def test_a_result_of_before_does_not_count(stand_in):
    place = stand_in("exit 1")
    (place / "result.json").write_text('{"answer": 3}')
    with pytest.raises(BackendUnavailable, match="LiteRT died"):
        work(place, {"do": "x"})


def test_a_bundle_for_the_npu_is_refused_with_its_reason(tmp_path, pipe):
    with pytest.raises(ConfigError, match=r"written as \.tflite") as caught:
        export(pipe, tmp_path / "model.litertlm", Options(rows=32, layout="npu"))
    assert "compiler" in caught.value.why


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["setup", "snapdragon"], "no target"),
        (["dimensity", "nowhere", "--out", "model.onnx"], "cannot write model.onnx"),
        (["dimensity", "nowhere", "--out", "model.tflite", "--weights", "w3"], "weights"),
        (["dimensity", "nowhere", "--out", "model.tflite", "--rows", "3"], "rows"),
        (["check", "model.tflite", "--adapter", "sums"], "cannot be checked with graphs alone"),
    ],
)
def test_commands_refuse_what_they_cannot_do(arguments, told):
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 1
    assert told in found.stderr


def test_a_failed_export_leaves_what_stood_there(stand_in, tmp_path, pipe):
    stand_in("exit 3")
    out = tmp_path / "model.tflite"
    out.write_bytes(b"of before")
    with pytest.raises(BackendUnavailable):
        export(pipe, out, Options(rows=32))
    assert out.read_bytes() == b"of before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "job", "model.tflite"]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [environment.folder().name]


def test_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path))
    gone, alive = tmp_path / "dimensity-work-999999999-x", tmp_path / f"dimensity-work-{os.getpid()}-y"
    gone.mkdir()
    alive.mkdir()
    with workplace() as place:
        assert place.is_dir()
        assert not gone.exists()
    assert alive.exists()
    assert not place.exists()


@pytest.mark.parametrize(
    ("made", "told"), [([], "SDK is empty"), (["libneuron_adapter.so"], "SDK is empty"), (None, "no such")]
)
def test_an_empty_sdk_is_refused(made, told, tmp_path, monkeypatch):
    sdk = tmp_path / "sdk"
    if made is not None:
        sdk.mkdir()
        for name in made:
            (sdk / name).touch()  # of no bytes
    monkeypatch.setenv(SDK, str(sdk))
    with pytest.raises(ConfigError, match=told) as caught:
        not_here()
    assert caught.value.who == SDK
    assert "libneuron_adapter.so" in caught.value.fix


def test_a_vendor_s_library_is_found_and_told(tmp_path, monkeypatch):
    monkeypatch.delenv(SDK, raising=False)
    assert not_here()[0][0] == "MediaTek's own compiler"
    (tmp_path / "libneuron_adapter.so").write_bytes(b"ELF")
    monkeypatch.setenv(SDK, str(tmp_path))
    assert vendor() == tmp_path
    assert "MediaTek's own compiler" not in dict(not_here())


def test_what_is_left_over_is_told_by_kind_and_layer():
    left = [
        {"operator": "DYNAMIC_UPDATE_SLICE", "where": f"layer {n}", "count": 2} for n in range(6)
    ] + [{"operator": "EMBEDDING_LOOKUP", "where": "", "count": 1}]  # fmt: skip
    told = "12 DYNAMIC_UPDATE_SLICE (layer 0, layer 1, layer 2, layer 3 and 2 more places); 1 EMBEDDING_LOOKUP"
    assert words(left) == told
    assert words([]) == ""
