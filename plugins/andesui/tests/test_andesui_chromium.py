"""Two pages with known boxes in real Chromium, a run that is killed and goes on; skipped where there is none."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from andes_andesui.browser import Browser, chromium, served
from andes_andesui.render import render
from andes_andesui.screens import Options, plan
from PIL import Image
from typer.testing import CliRunner

from andes_sdk.cli import app
from andes_sdk.errors import BackendUnavailable


def missing() -> str:
    try:
        chromium()
    except BackendUnavailable as error:
        return str(error).replace("\n", " ")
    return ""


WHY = missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)

STYLE = """<meta name="viewport" content="width=device-width,initial-scale=1"><style>
*{margin:0;padding:0;border:0}body>*{position:absolute;font:16px sans-serif}</style>"""
FIRST = f"""<!doctype html><title>first</title>{STYLE}
<button style="left:10px;top:20px;width:80px;height:30px">Save</button>
<button aria-label="search" style="left:100px;top:20px;width:30px;height:30px">
  <svg width="20" height="20"><circle cx="9" cy="9" r="8"/></svg></button>
<a href="#" style="left:10px;top:60px;width:60px;height:20px">More</a>
<a href="#" style="left:110px;top:60px;width:60px;height:20px">more</a>
<button style="left:10px;top:100px;width:80px;height:30px">Under</button>
<div style="left:5px;top:95px;width:90px;height:40px;background:red"></div>
<button style="left:10px;top:150px;width:80px;height:30px;visibility:hidden">Hidden</button>
<button style="left:160px;top:150px;width:80px;height:30px">Outside</button>
<div style="left:10px;top:190px;width:50px;height:20px;overflow:hidden"><button style="width:90px">Cut</button></div>
<button style="left:120px;top:110px;width:4px;height:4px" aria-label="tiny"></button>"""
SECOND = f"""<!doctype html><title>second</title>{STYLE}
<label for="f" style="left:10px;top:10px">Name</label>
<input id="f" value="Ada" style="left:10px;top:40px;width:90px;height:20px">
<input type="checkbox" checked aria-label="Fresh" style="left:10px;top:70px;width:20px;height:20px">
<p style="left:10px;top:100px;font:20px/30px monospace;text-transform:uppercase">ab c</p>"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "first.html").write_text(FIRST)
    (folder / "second.html").write_text(SECOND)
    return folder


def screens(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "screens.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("size", "scale"), [("224x224", 1.0), ("200x300m", 2.0)])
def test_boxes_are_where_the_page_puts_them(kit: Path, tmp_path: Path, size: str, scale: float) -> None:
    options = Options(
        sources=(str(kit),), sizes=(size,), themes=("light",), scales=(scale,), characters=True, test_share=0.0
    )
    render(options, tmp_path / "out")
    first, second = screens(tmp_path / "out")
    width, height = (int(part.strip("m")) * scale for part in size.split("x"))
    assert (first["width"], first["height"], first["touch"]) == (width, height, "m" in size)
    found = {e.get("name") or e["text"]: [side / scale for side in e["box"]] for e in first["elements"]}
    assert found == {
        "Save": [10, 20, 90, 50],
        "search": [100, 20, 130, 50],
        "More": [10, 60, 70, 80],
        "more": [110, 60, 170, 80],
    }
    assert {e["text"]: e["unique"] for e in first["elements"]} == {"Save": True, "": True, "More": False, "more": False}
    assert first["refused"] == {"covered": 1, "hidden": 1, "outside": 1, "cut": 1, "small": 1}
    by_role = {e["role"]: e for e in second["elements"] if e["role"] != "text"}
    assert by_role["field"]["name"] == "Name"
    assert by_role["field"]["state"] == {"value": "Ada"}
    assert by_role["checkbox"]["state"] == {"checked": True}
    (label, text) = (e for e in second["elements"] if e["role"] == "text")
    assert (label["text"], text["text"]) == ("Name", "AB C")
    letters, boxes = zip(*((c[0], c[1:]) for c in text["characters"]), strict=True)
    assert letters == ("A", "B", "C")
    wide = boxes[1][0] - boxes[0][0]  # of one letter; a space lies between the second and the third
    assert boxes[2][0] - boxes[1][0] == pytest.approx(2 * wide, abs=0.1)
    assert [text["box"][0], text["box"][2]] == pytest.approx([boxes[0][0], boxes[2][2]], abs=0.1)


def test_what_is_in_a_box_is_what_the_picture_shows_there(tmp_path: Path) -> None:
    folder = tmp_path / "colours"
    folder.mkdir()
    style = "left:{}px;top:40px;width:30px;height:20px;background:{}"
    icon = '<svg width="1" height="1"></svg>'
    buttons = "".join(
        f'<button style="{style.format(20 + 50 * n, colour)}" aria-label="{colour}">{icon}</button>'
        for n, colour in enumerate(("red", "lime", "blue"))
    )
    (folder / "page.html").write_text(f"<!doctype html>{STYLE}{buttons}")
    out = tmp_path / "out"
    render(Options(sources=(str(folder),), sizes=("224x224",), themes=("light",), scales=(1.5,)), out)
    (seen,) = screens(out)
    with Image.open(out / seen["image"]) as picture:
        shown = {
            e["name"]: {picture.convert("RGB").getpixel((x, y)) for x in (x1 + 2, x2 - 3) for y in (y1 + 2, y2 - 3)}
            for e in seen["elements"]
            for x1, y1, x2, y2 in [e["box"]]
        }
    assert shown == {"red": {(255, 0, 0)}, "lime": {(0, 255, 0)}, "blue": {(0, 0, 255)}}


@pytest.mark.parametrize("head", [STYLE, "<style>p{font:20px serif}</style>", "<body style='height:3000px'>"])
@pytest.mark.parametrize(("size", "scale"), [("300x200", 1.0), ("300x200", 1.5), ("200x300", 1.0), ("200x300", 3.0)])
def test_pictures_are_those_that_playwright_takes(kit: Path, head: str, size: str, scale: float) -> None:
    (kit / "first.html").write_text(f"<!doctype html>{head}<p>a page that a phone may show smaller</p>")
    options = Options(sources=(str(kit),), sizes=(size,), themes=("light",), scales=(scale,))
    screen = plan(options)[0]
    assert screen.app.root is not None
    with served(screen.app.root) as address, Browser.opened(options, (), {screen.app.root: address}) as browser:
        ours, _ = browser.shoot(screen)
        ((page, _),) = browser.pages.values()
        theirs = page.screenshot(animations="allow", caret="initial")
    pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in (ours, theirs)]
    assert pictures[0].size == pictures[1].size
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_one_browser_takes_true_pictures_at_all_scales_again_and_again(tmp_path: Path) -> None:
    options = Options(
        sources=("generated:2:3",), sizes=("300x200", "200x300"), themes=("light",), scales=(1.0, 2.0), pages=2, views=4
    )
    with Browser.opened(options, (), {}) as browser:
        first = [browser.shoot(screen) for screen in plan(options)]
        for screen, (content, found) in zip(plan(options), first, strict=True):
            again, _ = browser.shoot(screen)
            page, _ = browser.pages[screen.size, screen.theme, screen.scale]
            theirs = page.screenshot(animations="allow", caret="initial")
            pictures = [Image.open(io.BytesIO(one)).convert("RGB") for one in (content, again, theirs)]
            assert found["scale"] == screen.scale
            assert pictures[0].size == (screen.size.width * screen.scale, screen.size.height * screen.scale)
            assert pictures[0].tobytes() == pictures[1].tobytes() == pictures[2].tobytes()


def test_a_run_that_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "andes_sdk", "ui", "render", "generated:8:2", "--pages", "1", "--sizes", "small"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*call, "--out", str(killed), "--json"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    path, end = killed / "screens.jsonl", time.monotonic() + 120
    while time.monotonic() < end and not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = path.read_bytes().count(b"\n")
    assert 2 <= before < 8
    options = Options(sources=("generated:8:2",), pages=1, sizes=("small",))
    facts = render(options, killed)
    assert facts["rendered"] == 8 - before
    assert render(options, whole, jobs=2)["rendered"] == 8
    assert render(options, whole)["rendered"] == 0
    by_id = [{row["id"]: row for row in screens(folder)} for folder in (killed, whole)]
    assert by_id[0] == by_id[1]
    for name in ("train/grounding.jsonl", "test/qa.jsonl", "train/lines/description.jsonl", "report.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(p.name for p in (killed / "screens").iterdir()) == sorted(
        p.name for p in (whole / "screens").iterdir()
    )


def test_a_page_that_fails_is_a_line_with_its_reason(kit: Path, tmp_path: Path) -> None:
    (kit / "a b%20.html").write_text('<script>addEventListener("load", () => document.body.remove())</script>')
    out = tmp_path / "out"
    options = Options(sources=(str(kit),), sizes=("200x300",), themes=("light",))
    facts = render(options, out)
    assert facts["failed"] == 1
    (error,) = (row["error"] for row in screens(out) if "error" in row)
    assert "TypeError" in error
    (kit / "a b%20.html").write_text("<button>Now</button>")
    facts = render(options, out)  # what failed is tried again
    assert (facts["rendered"], facts["failed"], facts["screens"]) == (1, 0, 3)


def test_the_command_renders_and_preview_shows_it(kit: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    asked = ["ui", "render", str(kit), "--out", out, "--sizes", "224x224", "--themes", "light", "--test-share", "0"]
    result = CliRunner().invoke(app, [*asked, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["screens"], facts["failed"], facts["applications"]) == (2, 0, 1)
    page = str(tmp_path / "page.html")
    result = CliRunner().invoke(app, ["data", "preview", f"{out}/train/lines/grounding.jsonl", "-o", page, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 2
