"""Data and replies that claim more than they are."""

import contextlib
import io
import json
import tarfile
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from andes_training.data.bad import BadSample, BadSamples
from andes_training.data.shards import open_shard
from andes_training.reading import make_rows, read_samples
from andes_training.recipe import DataRecipe
from andes_training.server import post

from andes_sdk import Pipeline
from andes_sdk.errors import TrainingError

HUGE = 8 * 2**30 - 1
GOOD = json.dumps({"messages": []}).encode()


def member(name, data=GOOD, kind=tarfile.REGTYPE, *, link="", pax=None, form=tarfile.PAX_FORMAT):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.pax_headers = kind, len(data), link, pax or {}
    return info.tobuf(form) + data + bytes(-len(data) % 512)


def gnu_sparse(name, data=GOOD):
    block = bytearray(member(name, b"", tarfile.GNUTYPE_SPARSE, form=tarfile.GNU_FORMAT)[:512])
    block[124:136] = b"%011o\0" % len(data)
    block[386:410] = b"%011o\0" % 0 + b"%011o\0" % len(data)
    block[483:495] = b"%011o\0" % HUGE
    return rechecked(block) + data + bytes(-len(data) % 512)


def rechecked(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def shard(tmp_path, *parts):
    path = tmp_path / "s.tar"
    path.write_bytes(b"".join(parts) + bytes(1024))
    return open_shard(path)


PAX = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(HUGE), "GNU.sparse.name": "b.json"}


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (gnu_sparse("b.json"), "sparse"),
        (member("b.json", b"1\n0\n512\n".ljust(512, b"\0") + GOOD, pax=PAX), "sparse"),
        (member("b.json", GOOD, pax={"GNU.sparse.size": str(HUGE), "GNU.sparse.map": "0,10"}), "sparse"),
        (member("b.json", b"", tarfile.SYMTYPE, link="a.json"), "link"),
        (member("b.json", b"", tarfile.LNKTYPE, link="b.json"), "link"),
        (member("b.json") + member("b.png", b"", tarfile.SYMTYPE, link="b.json"), "link"),
        (member("b.json", b"", tarfile.CHRTYPE), "device"),
    ],
)
def test_s1_sparse_members_and_links_of_a_tar_are_refused(tmp_path, part, why):
    found = shard(tmp_path, member("a.json"), part, member("c.json"))
    assert len(found) == 3
    tracemalloc.start()
    with pytest.raises(BadSample, match="cannot be unpacked") as caught:
        found.entry(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert why in caught.value.why
    assert caught.value.who == f"{tmp_path / 's.tar'}:b"
    assert found.entry(0) == found.entry(2) == {"messages": []}


@pytest.mark.parametrize("size", [b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000001\0", b"size\0"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_s1_damaged_sizes_of_a_tar_are_refused(tmp_path, size, kind):
    block = bytearray(member("b.json", b"", kind))
    block[124:136] = size.ljust(12, b"\0")
    with pytest.raises(TrainingError, match="no whole tar") as caught:
        shard(tmp_path, member("a.json"), rechecked(block))
    assert caught.value.who == str(tmp_path / "s.tar")


def test_s1_damaged_records_and_long_chains_of_headers_are_refused(tmp_path):
    for body in (b"5 size=-9\n", b"0 a=b\n", b"999999999 path=x\n", b"x", b"14 size=99999\n", b"10 size=-1\n"):
        with pytest.raises(TrainingError, match="no whole tar"):
            shard(tmp_path, member("x", body, tarfile.XHDTYPE), member("b.json"), member("c.json"))
    chain = member("x", b"b.json", tarfile.GNUTYPE_LONGNAME) * 5000
    assert shard(tmp_path, chain, member("other")).where(0).endswith(":b")


def test_s1_what_a_sample_takes_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("andes_training.data.tar.MOST_BYTES", 40)
    found = shard(tmp_path, member("a.json"), member("b.json"), member("b.png", b"0" * 50))
    assert found.entry(0) == {"messages": []}
    with pytest.raises(BadSample, match="cannot be unpacked"):
        found.entry(1)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_s1_plain_tars_of_every_form_are_read(tmp_path, form):
    names = ["d/a.json", "é" * 20 + "/" + "long" * 15 + "/" + "k" * 70 + ".json"]
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(GOOD)
            archive.addfile(info, io.BytesIO(GOOD))
    found = open_shard(tmp_path / "s.tar")
    assert [found.where(i).partition(":")[2] for i in range(2)] == [name.removesuffix(".json") for name in names]
    assert found.entry(1) == {"messages": []}


# ---------------------------------------------------------------- servers


@pytest.fixture
def talker():
    """A server that sends chunks without end; `chunk` and `pause` are what a test sets."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(server.status)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not server.stopped:
                    self.wfile.write(server.chunk)
                    server.sent += len(server.chunk)
                    time.sleep(server.pause)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.chunk, server.pause, server.sent, server.status, server.stopped = b" " * 65536, 0.0, 0, 200, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.stopped = True
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [200, 400, 503])
def test_s5_a_reply_without_end_is_cut(talker, monkeypatch, status):
    monkeypatch.setattr("andes_training.server.MOST_BYTES", 1 << 20)
    talker.status = status
    with httpx.Client(timeout=30) as client, pytest.raises(TrainingError, match="does not end"):
        post(client, f"http://127.0.0.1:{talker.server_port}/x", {})
    assert talker.sent < 64 << 20


def test_s5_a_reply_that_trickles_ends_at_the_timeout(talker):
    talker.chunk, talker.pause = b" ", 0.1
    with httpx.Client(timeout=0.5) as client, pytest.raises(TrainingError, match=r"no answer in 0.5 s"):
        post(client, f"http://127.0.0.1:{talker.server_port}/x", {})


# ---------------------------------------------------------------- nesting


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [70, 10**5])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_s8_a_deep_sample_is_a_bad_one_with_file_and_line(tmp_path, kind, levels):
    text = '{"messages": ' + deep(levels) + "}"
    path = tmp_path / f"d.{kind}"
    if kind == "jsonl":
        path.write_text(text)
    elif kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"messages": [deep(levels)]}), path)
    else:
        path.write_bytes(member("1.json", text.encode()) + bytes(1024))
    with pytest.raises(BadSample) as caught:
        open_shard(path).entry(0)
    assert caught.value.who == f"{path}:1"
    assert caught.value.reason == "json"
    assert "inside one another" in caught.value.why


def test_s8_a_deep_sample_is_skipped_where_its_file_says_so(tmp_path):
    path = tmp_path / "d.jsonl"
    answer = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text("\n".join([json.dumps(answer), '{"messages": ' + deep(10**5) + "}"]))
    pipe = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    samples = read_samples(DataRecipe(path=path, on_error="skip"), tmp_path)
    bad = BadSamples()
    assert len(list(make_rows(samples, pipe.processor, seed=0, epoch=0, bad=bad))) == 1
    assert bad.counts() == {"json": 1}
