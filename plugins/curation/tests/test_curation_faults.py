"""What a data set can make leave the machine: pictures of its own folder."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import pytest
from andes_curation.curate import CurationRecipe, curate
from PIL import Image

SECRET = "the secret"


@pytest.fixture
def judge():
    """A server that gives five of five, and remembers what it was sent."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": '{"score": 5}'}}]}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def curated(tmp_path, address, *sources, **options):
    lines = []
    for source in sources:
        part = {"type": "image_url", "image_url": {"url": source}}
        user = {"role": "user", "content": [part, {"type": "text", "text": source[:40]}]}
        lines.append(json.dumps({"messages": [user, {"role": "assistant", "content": "yes"}]}))
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "d.jsonl").write_text("\n".join(lines))
    plugin = {"curation": {"judge": "big", "server": address, **options}}
    recipe = CurationRecipe(data=[tmp_path / "data" / "d.jsonl"], plugins=[plugin], filters=["score"], workers=1)
    report = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    curate(recipe, report)
    return [json.loads(line)["reason"] for line in (report / "dropped.jsonl").read_text().splitlines()]


def test_s2_a_judge_gets_only_pictures_from_the_datas_folder(tmp_path, judge):
    address, asked = judge
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.txt").write_text(SECRET)
    (data / "secret.png").write_text(SECRET)
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    (data / "link.png").symlink_to(tmp_path / "outside.png")
    (data / "folder").symlink_to(tmp_path)
    Image.new("RGB", (4, 4)).save(data / "good.jpg")
    bad = ["../secret.txt", str(tmp_path / "secret.txt"), (tmp_path / "secret.txt").as_uri(), "secret.png",
           "../outside.png", "link.png", "folder/outside.png", "http://127.0.0.1:9/x.png", "FILE:///etc/passwd",
           "data:text/plain;base64," + base64.b64encode(SECRET.encode()).decode(), "/dev/zero",
           "gone.png"]  # fmt: skip
    reasons = curated(tmp_path, address, *bad, "good.jpg")
    assert len(reasons) == len(bad)
    assert all(reason.startswith("a picture is not sent: ") for reason in reasons)
    (body,) = asked
    url = body["messages"][1]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(url.partition(",")[2]) == (data / "good.jpg").read_bytes()


def test_s2_further_folders_are_named_by_the_user(tmp_path, judge):
    address, asked = judge
    (tmp_path / "pictures").mkdir()
    buffer = BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    (tmp_path / "pictures" / "p.png").write_bytes(buffer.getvalue())
    assert len(curated(tmp_path, address, "../pictures/p.png")) == 1
    assert not asked
    assert curated(tmp_path, address, "../pictures/p.png", folders=[str(tmp_path / "pictures")]) == []
    assert len(asked) == 1


def test_s2_remote_pictures_are_fetched_here_and_only_if_asked_for(tmp_path, judge, monkeypatch):
    address, asked = judge
    buffer = BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    monkeypatch.setattr("andes_sdk.inputs.sources._fetch", lambda *_: buffer.getvalue())
    assert len(curated(tmp_path, address, "http://example.org/p.png")) == 1
    assert curated(tmp_path, address, "http://example.org/p.png", remote=True) == []
    assert asked[0]["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
