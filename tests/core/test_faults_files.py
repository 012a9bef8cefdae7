"""Files from strangers: what they claim is bounded, where they lead is checked, how they are nested does not matter."""

import hashlib
import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError, CheckpointError, ConfigError, InputError, PlanError
from andes_sdk.files import FolderFiles, confined
from andes_sdk.inputs.images import ImageLimits, load_image
from andes_sdk.plan import Plan
from andes_sdk.reading import MOST_LEVELS, bounded, parse_json, parse_toml

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_plugins(TINY, seed=7)


def within(seconds, function):
    """What a function raises, if it comes back in time."""
    found = []

    def run():
        try:
            function()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return found[0]


def signed(folder, **changes):
    """Change `andes.json` as someone would who knows its checksum."""
    body = json.loads((folder / "andes.json").read_text()) | changes
    body.pop("checksum")
    body["checksum"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / "andes.json").write_text(json.dumps(body))


# ---------------------------------------------------------------- S5


@pytest.mark.parametrize("plugin", ["qwen3", "aimv2", "siglip2"])
@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 10**7), ("hidden_size", 10**13), ("head_dim", 1 << 20)]
)
def test_s5_sizes_that_no_model_has_are_refused_wherever_they_stand(plugin, key, value):
    if (plugin, key) in (("aimv2", "head_dim"), ("siglip2", "head_dim")):
        pytest.skip("they have no such field")
    items = [{plugin: {"preset": "tiny", "config": {key: value}}} if plugin in str(item) else item for item in TINY]
    if plugin == "siglip2":
        items[0] = {plugin: {"preset": "tiny", "config": {key: value}}}
    error = within(20, lambda: Pipeline.from_plugins(items))
    assert isinstance(error, AssemblyError)


@pytest.mark.parametrize(
    "name", ["../secret", "/dev/zero", "a/../../b", "", ".", "..", "a//b", "C:\\x", "a\\b", "c:x", "a\0b"]
)
def test_s5_names_in_andes_json_stay_in_the_folder(pipeline, tmp_path, name):
    folder = pipeline.save_pretrained(tmp_path / "model")
    manifest = json.loads((folder / "andes.json").read_text())
    for changes in (
        {"files": {**manifest["files"], name: "0" * 64}},
        {"tensors": {**manifest["tensors"], "x": name}},
        {"published": {"tensors": {"x": name}, "metadata": None}},
    ):
        (folder / "andes.json").write_text(json.dumps(manifest))
        signed(folder, **changes)
        error = within(20, lambda: Pipeline.from_pretrained(folder))
        assert isinstance(error, CheckpointError)
        assert "outside its folder" in error.what
    assert not confined(name)


@pytest.mark.parametrize(
    "changes", [{"files": 3}, {"tensors": {"x": 3}}, {"extra": 1}, {"plan": None}, {"published": {"tensors": 3}}]
)
def test_s5_a_manifest_of_other_types_is_refused(pipeline, tmp_path, changes):
    folder = pipeline.save_pretrained(tmp_path / "model")
    signed(folder, **changes)
    with pytest.raises(AndesError):
        Pipeline.from_pretrained(folder)


@pytest.mark.skipif(os.name == "nt", reason="no devices and pipes in folders")
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_s5_devices_and_pipes_in_a_checkpoint_are_refused(pipeline, tmp_path, name, kind):
    folder = pipeline.save_pretrained(tmp_path / "model")
    replaced(folder / name, kind)
    assert isinstance(within(60, lambda: Pipeline.from_pretrained(folder).chat("x", max_tokens=1)), CheckpointError)


def replaced(path, kind):
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(kind)


@pytest.mark.skipif(os.name == "nt", reason="no devices and pipes in folders")
def test_s5_files_of_a_folder_are_plain_and_in_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    os.mkfifo(tmp_path / "in" / "pipe")
    files = FolderFiles(tmp_path / "in")
    for name in ("../secret", "pipe", str(tmp_path / "secret")):
        assert name not in files
        assert isinstance(within(10, lambda name=name: files.read(name)), CheckpointError)


# ---------------------------------------------------------------- S6


class Remote(BaseHTTPRequestHandler):
    """Redirects to what its path names, drips headers, and redirects slowly without end."""

    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path == "/headers":
            for _ in range(200):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1])
                time.sleep(0.1)
        elif self.path == "/redirects" or self.path.startswith("/redirects?"):
            time.sleep(0.4)
            self.moved("/redirects?" + str(len(self.server.paths)))
        elif self.path.startswith("/to?"):
            self.moved(self.path.partition("?")[2])
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.picture)

    def moved(self, where):
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def remote(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    buffer = BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    with ThreadingHTTPServer(("127.0.0.1", 0), Remote) as server:
        server.daemon_threads, server.paths, server.picture = True, [], buffer.getvalue()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def names(monkeypatch):
    """Names and what they resolve to, one list after another; connections go to this machine whatever the address."""
    known, asked, connect = {}, [], socket.create_connection

    def resolve(host, port, *_, **__):
        found = known.get(host, [host])
        found = found.pop(0) if isinstance(found[0], list) and len(found) > 1 else found
        found = found[0] if isinstance(found[0], list) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (one, port)) for one in found]

    def dial(address, *args, **options):
        asked.append(address[0])
        return connect(("127.0.0.1", address[1]), *args, **options)

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    monkeypatch.setattr("socket.create_connection", dial)
    return known, asked


@pytest.mark.parametrize("path", ["/headers", "/redirects"])
def test_s6_one_deadline_for_headers_and_redirects(remote, path):
    start = time.monotonic()
    with pytest.raises(InputError, match="cannot be fetched") as caught:
        load_image(
            f"http://127.0.0.1:{remote.server_port}{path}",
            allow_remote=True,
            limits=ImageLimits(timeout=1.0, allow_private=True),
        )
    assert time.monotonic() - start < 2.5
    assert "not complete after 1.0 s" in caught.value.why


def test_s6_names_that_take_long_to_resolve_count_too(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(20))
    start = time.monotonic()
    with pytest.raises(InputError, match="cannot be fetched"):
        load_image("http://example.org/a.png", allow_remote=True, limits=ImageLimits(timeout=0.3))
    assert time.monotonic() - start < 2


PRIVATE = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "::1",
           "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
           "::127.0.0.1", "64:ff9b:1::1", "2001:0:7f00:1::1", "fec0::1", "ff02::1", "224.0.0.1",
           "192.0.0.8"]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
@pytest.mark.parametrize("redirected", [False, True])
def test_s6_private_addresses_are_refused_also_after_redirects(remote, names, address, redirected):
    known, asked = names
    known |= {"public.example": ["93.184.215.14"], "inside.example": ["93.184.215.14", address]}
    inside = f"http://inside.example:{remote.server_port}/a.png"
    url = f"http://public.example:{remote.server_port}/to?{inside}" if redirected else inside
    with pytest.raises(InputError, match="cannot be fetched") as caught:
        load_image(url, allow_remote=True)
    assert "no public address" in caught.value.why
    assert "allow_private=True" in caught.value.why
    assert asked == ["93.184.215.14"] * redirected
    assert load_image(url, allow_remote=True, limits=ImageLimits(allow_private=True)).size == (3, 2)


def test_s6_a_name_that_changes_its_address_is_asked_where_it_was_checked(remote, names):
    known, asked = names
    known["rebinding.example"] = [["93.184.215.14"], ["93.184.215.14"], ["127.0.0.1"]]
    url = f"http://rebinding.example:{remote.server_port}/a.png"
    assert load_image(url, allow_remote=True).size == (3, 2)
    assert asked == ["93.184.215.14"]
    with pytest.raises(InputError, match="cannot be fetched"):
        load_image(url, allow_remote=True)
    assert asked == ["93.184.215.14"]


def test_s6_behind_a_proxy_names_are_checked_and_the_proxy_is_asked(remote, names, monkeypatch):
    known, asked = names
    known |= {"proxy": ["10.0.0.9"], "inside.example": ["10.0.0.1"], "public.example": ["93.184.215.14"]}
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://proxy:{remote.server_port}")
    assert load_image("http://public.example/a.png", allow_remote=True).size == (3, 2)
    assert asked == ["proxy"]
    with pytest.raises(InputError, match="cannot be fetched"):
        load_image("http://inside.example/a.png", allow_remote=True)
    assert asked == ["proxy"]


# ---------------------------------------------------------------- S8


def deep(levels, key=None, inner=1):
    for _ in range(levels):
        inner = [inner] if key is None else {key: inner}
    return inner


def test_s8_the_limit_is_the_same_for_text_and_values():
    for inner in (deep(MOST_LEVELS), deep(MOST_LEVELS, "k")):
        bounded(inner)
        assert parse_json(json.dumps(inner)) == inner
        for outer in ([inner], {"k": inner}, (inner,)):
            for read in (bounded, lambda value: parse_json(json.dumps(value))):
                with pytest.raises(ValueError, match="inside one another"):
                    read(outer)
    around = []
    around += [around, around]
    with pytest.raises(ValueError, match="inside one another"):
        bounded(around)
    for text in ("[" * 10**5, '{"a":' * 10**5, "[" * 10**5 + "]" * 10**5):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_json(text)
    for text in ("a = " + "[" * 10**4 + "]" * 10**4, "a" + ".a" * 10**4 + " = 1", "[" + "a." * 10**4 + "a]\nb = 1"):
        with pytest.raises(ValueError, match="inside one another"):
            parse_toml(text)


@pytest.mark.parametrize("key", [None, "content", "type", "image_url"])
def test_s8_deep_messages_in_python_are_refused(pipeline, key):
    tower = deep(10**4, key)
    text = {"type": "text", "text": "x"}
    for messages in (
        tower,
        [tower],
        [{"role": tower, "content": "x"}],
        [{"role": "user", "content": tower}],
        [{"role": "user", "content": [{**text, "type": tower}]}],
        [{"role": "user", "content": [{**text, "text": tower}]}],
        [{"role": "user", "content": [{"type": "image", "image": tower}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": tower}}]}],
        [{"role": "user", "content": [tower]}],
    ):
        with pytest.raises(InputError):
            pipeline.generate(messages)


@pytest.mark.parametrize("key", [None, "config"])
def test_s8_deep_options_and_plans_are_refused(key):
    tower = deep(10**4, key)
    for items in (tower, [tower], [{"qwen3": tower}], [{"qwen3": {"config": {"rope_scaling": tower}}}, "mlp", "aimv2"],
                  [{"qwen3": {"preset": tower}}, "mlp", "aimv2"]):  # fmt: skip
        with pytest.raises(AssemblyError):
            Pipeline.from_plugins(items)
    with pytest.raises(AssemblyError):
        Pipeline.from_plugins(TINY, image={"max_size": tower})
    for plan in (tower, {"plugins": [{"name": "x", "options": {"a": tower}}]}, {"plugins": tower}):
        with pytest.raises(PlanError):
            Plan.from_dict(plan)


@pytest.mark.parametrize("name", ["andes.json", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_s8_deep_files_of_a_checkpoint_are_refused(pipeline, tmp_path, name):
    folder = pipeline.save_pretrained(tmp_path / "model")
    if name == "config.json":
        (folder / "andes.json").unlink()
    (folder / name).write_text('{"a":' * 10**5 + "1" + "}" * 10**5)
    with pytest.raises(CheckpointError):
        Pipeline.from_pretrained(folder).chat("x", max_tokens=1)


def test_s8_deep_recipes_are_refused(tmp_path):
    for name, text in (("p.toml", "plugins = " + "[" * 10**4 + "]" * 10**4), ("p.json", "[" * 10**5)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="cannot be read"):
            Pipeline.from_config(tmp_path / name)
