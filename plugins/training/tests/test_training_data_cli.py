"""`andes data`: check names every bad sample, stats counts by hand, preview is one page that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from andes_training.data.statistics import histogram
from andes_training.reading import make_rows, read_samples
from andes_training.recipe import DataRecipe
from PIL import Image
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app

BOX = "<|box_start|>(100,200),(300,400)<|box_end|>"


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def line(text: str, *pictures: str, question: str = "?") -> str:
    parts = [{"type": "image_url", "image_url": {"url": p}} for p in pictures]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return json.dumps({"messages": [user, {"role": "assistant", "content": text}]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (56, 28), "red").save(tmp_path / "a.png")
    Image.new("RGB", (600, 300), "blue").save(tmp_path / "b.png")
    lines = [
        line("yes", "a.png"),
        line("yes", "a.png"),
        line(f"here {BOX}", "b.png", question="<where>?"),
        line("<think>hm</think>no"),
    ]
    (tmp_path / "good.jsonl").write_text("\n".join(lines))
    bad = [lines[0], "{", line(BOX.replace("400", "4000")), "", line("x", "gone.png"), line("x" * 3000)]
    (tmp_path / "bad.jsonl").write_text("\n".join(bad))
    (tmp_path / "recipe.toml").write_text(
        'name = "t"\n[pipeline]\n'
        'plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, "sft"]\n'
        '[[stages]]\nstage = "sft"\nsteps = 1\nmax_tokens = 400\ndata = [{ path = "bad.jsonl", on_error = "skip" }]\n'
        '[[stages]]\nstage = "sft"\nsteps = 1\n'
        'data = [{ path = "good.jsonl", weight = 1.0 }, { path = "no.jsonl", samples = 3 }]\n'
    )
    return tmp_path


def test_check_names_every_bad_sample_and_leaves_with_one(folder: Path) -> None:
    code, text = invoke("check", str(folder / "bad.jsonl"))
    assert code == 1
    told = [row.removeprefix(f"{folder}/") for row in text.splitlines()]
    assert [row.split(": ")[:2] for row in told[:3]] == [
        ["bad.jsonl:2", "json"],
        ["bad.jsonl:3", "box"],
        ["bad.jsonl:5", "picture"],
    ]
    assert told[3] == "5 samples, 3 problems (json: 1, box: 1, picture: 1)"
    assert invoke("check", str(folder / "good.jsonl"))[0] == 0


def test_check_with_a_recipe_knows_lengths_and_all_its_data(folder: Path) -> None:
    code, text = invoke("check", "--recipe", str(folder / "recipe.toml"), "--json", "--workers", "2")
    assert code == 1
    facts = json.loads(text)
    assert facts["reasons"] == {"file": 1, "json": 1, "box": 1, "picture": 1, "tokens": 1}
    assert facts["samples"] == 9
    long = next(p for p in facts["problems"] if p["reason"] == "tokens")
    assert long["where"] == f"{folder}/bad.jsonl:6"
    assert "max_tokens is 400" in long["why"]
    assert next(p for p in facts["problems"] if p["reason"] == "file")["where"] == f"{folder}/no.jsonl"


def test_wrong_use_is_told(folder: Path) -> None:
    assert invoke("check")[0] == 2
    code, text = invoke("check", str(folder / "good.jsonl"), "--recipe", str(folder / "recipe.toml"), "--stage", "7")
    assert (code, "no stage 7" in text) == (1, True)
    assert invoke("stats", str(folder / "no.jsonl"))[0] == 1


def test_stats_counts_by_hand(folder: Path) -> None:
    code, text = invoke("stats", str(folder / "good.jsonl"), "--json")
    assert code == 0
    (facts,) = json.loads(text)
    assert facts["samples"] == facts["conversations"] == 4
    assert facts["turns"] == {"user": 4, "assistant": 4}
    assert facts["thinking"] == 1
    assert facts["characters"] == 3 * len("?") + len("<where>?") + 2 * len("yes") + len(f"here {BOX}") + 19
    assert facts["pictures"]["count"] == 3
    assert facts["pictures"]["samples_without"] == 1
    assert facts["pictures"]["megapixels"] == round((2 * 56 * 28 + 600 * 300) / 1e6, 3)
    sides = facts["pictures"]["longer_side"]
    assert (sides["<= 224"], sides["<= 896"], sum(sides.values())) == (2, 1, 3)
    assert facts["duplicates"] == {"extra": 1, "groups": [[f"{folder}/good.jsonl:1", f"{folder}/good.jsonl:2"]]}
    assert "tokens" not in facts


def test_stats_lengths_are_those_of_the_packs(folder: Path) -> None:
    arguments = (str(folder / "good.jsonl"), "--recipe", str(folder / "recipe.toml"), "--stage", "1")
    (facts,) = json.loads(invoke("stats", *arguments, "--json")[1])
    pipe = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    samples = read_samples(DataRecipe(path=folder / "good.jsonl"), folder)
    rows = [row for _, row in make_rows(samples, pipe.processor, seed=0, epoch=0)]
    lengths = [len(row.ids) for row in rows]
    pictured = [row for row in rows if "image" in row.media]
    assert facts["tokens"]["total"] == sum(lengths)
    assert facts["tokens"]["max"] == max(lengths)
    assert facts["tokens"]["image"] == sum(h * w // 4 for row in pictured for h, w in row.media["image"].sizes)
    assert sum(facts["tokens"]["histogram"].values()) == 4
    shown = invoke("stats", *arguments)[1]
    assert "█" in shown
    assert "duplicates" in shown


def test_a_histogram_by_hand() -> None:
    bins = histogram([1, 2, 3, 4, 5, 8, 9, 64])
    assert list(bins) == ["<= 1", "<= 2", "<= 4", "<= 8", "<= 16", "<= 32", "<= 64"]
    assert list(bins.values()) == [1, 1, 2, 2, 1, 0, 1]
    assert histogram([]) == {}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))


def test_the_page_shows_pictures_boxes_text_and_what_is_wrong(folder: Path) -> None:
    out = folder / "page.html"
    code, _ = invoke("preview", str(folder / "good.jsonl"), str(folder / "bad.jsonl"), "-o", str(out), "-n", "9")
    assert code == 0
    page = out.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert sum(tag == "article" for tag, _ in tags.found) == 9
    assert sum(a.get("class") == "bad" for _, a in tags.found) == 3
    (box,) = [a for tag, a in tags.found if tag == "rect"]
    assert [box[k] for k in ("x", "y", "width", "height")] == ["100", "200", "200", "200"]
    assert "&lt;where&gt;?" in page
    # nothing is fetched from anywhere
    sources = [a["src"] for tag, a in tags.found if tag == "img"]
    assert len(sources) == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    sizes = {Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))).size for s in sources}
    assert sizes == {(56, 28), (600, 300)}


def test_the_page_of_a_seed_is_always_the_same(folder: Path) -> None:
    def page(seed: str) -> str:
        invoke("preview", str(folder / "good.jsonl"), "-o", str(folder / "p.html"), "-n", "2", "--seed", seed)
        return (folder / "p.html").read_text()

    assert page("1") == page("1")
    assert len({page(str(seed)) for seed in range(6)}) > 1


def test_a_preview_says_in_json_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    code, output = invoke("preview", str(folder / "good.jsonl"), "-o", str(tmp_path / "p.html"), "-n", "1", "--json")
    assert code == 0
    assert json.loads(output) == {"samples": 1, "page": str(tmp_path / "p.html")}
