"""The data of andes-nano: training takes every line, and tests hold words that training never shows."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from andes_training.data.inspection import problems
from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe, load_recipe, open_pipeline

EXAMPLE = Path(__file__).parents[2] / "examples" / "nano"
PARTS = [
    "reading", "elements", "line", "paragraph", "shapes", "two", "chart", "digit", "easy", "sums", "thought", "call",
    "word", "small-shapes", "small-digit", "small-easy",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("easy_vqa", reason="pictures of the example")
    if not Path("/usr/share/fonts/truetype/dejavu").is_dir():
        pytest.skip("the example's fonts are not installed: apt-get install fonts-dejavu")
    folder = tmp_path_factory.mktemp("nano")
    photos = ["photo"] if importlib.util.find_spec("skimage") else []
    command = [sys.executable, EXAMPLE / "prepare.py", *PARTS, *photos, "--limit", "6", "--out", folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_held_out_puzzles_are_in_no_training_data() -> None:
    made = """if True:
        import json, random, language
        from held_out import OUT, drawn, learnt, pairs_of, rows_of
        known = learnt([
            language.reasoning(random.Random(f"nano/train/{part}/{n}"), "train", False)
            for part, count in language.LINES.items() for n in range(count)
        ])
        asked = [pairs_of(row)[0][0] for part in language.LINES for row in rows_of(OUT / f"{part}.jsonl")]
        assert drawn("Calculate 1 + 2.") == drawn("State the final answer to 1 + 2 =") in known
        print(json.dumps([len(asked), [question for question in asked if drawn(question) in known]]))
    """
    done = subprocess.run([sys.executable, "-c", made], cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [400, []]


@pytest.mark.parametrize("split", ["train", "test"])
def test_training_takes_every_line(data: Path, split: str) -> None:
    files = sorted((data / split).glob("*.jsonl"))
    assert len(files) >= len(PARTS)
    samples = stage_samples([DataRecipe(path=path) for path in files], data)
    assert len(samples) == 6 * len(files)
    assert list(problems(samples)) == []


def test_words_of_tests_are_in_no_training_page(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    spec = importlib.util.spec_from_file_location("nano_words", EXAMPLE / "words.py")
    assert spec is not None
    assert spec.loader is not None
    words = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(words)
    for split in ("train", "test"):
        lines = [json.loads(text) for text in (data / split / "line.jsonl").read_text().splitlines()]
        read = [line["conversations"][0][1]["content"] for line in lines]
        # a line that is too long ends in the middle of its last word
        found = [w for text in read for w in text.split()[:-1] if re.fullmatch("[A-Za-z]+", w)]
        assert found
        assert {words.held_out(w) for w in found} == {split == "test"}


@pytest.mark.parametrize("made", ["folder", "file"])
def test_what_the_command_did_not_make_is_not_replaced(tmp_path: Path, made: str) -> None:
    folder = tmp_path / "mine"
    mine = folder / "thesis.txt" if made == "folder" else folder
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("years of work")
    command = [sys.executable, str(EXAMPLE / "held_out.py"), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no priors.json" in done.stderr
    assert mine.read_text() == "years of work"


def test_the_recipe_on_a_grid_begins_and_is_taught_with_weights_that_lie_here() -> None:
    recipe = load_recipe(EXAMPLE / "8-compress.toml")
    started, taught = open_pipeline(recipe), recipe.pipeline["plugins"][0]["qat"]["teacher"]  # type: ignore[index]
    assert started.model.parameter_count() == 9_001_024
    assert Path(taught).resolve() == (EXAMPLE / recipe.start).resolve()
    screens = {one.path.stem: one for one in recipe.stages[0].data}
    assert {name: screens[name].on_error for name in ("desktop", "mobile")} == {"desktop": "skip", "mobile": "skip"}
