"""Damaged curation recipes, data and facts: an error of ours, or a report in which every sample has its place."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from andes_curation.curate import curate, load_curation
from andes_curation.facts import Describe, Identify
from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from andes_sdk.assembling.assembly import assemble
from andes_sdk.errors import AndesError, AssemblyError
from andes_sdk.testing.damage import CASES, ODD_TOML, altered, catalogue, damaged, to_toml

OURS = (AndesError, AssemblyError)
FILTERS = ["modality", "duplicates", "boxes", "leak"]


def url(number: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 99, 7)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def turns(picture: Any, number: int) -> list[Any]:
    parts = [picture, {"type": "text", "text": f"number {number}?"}]
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": f"<|box_start|>(1,2)<|box_end|> {number}"},
    ]


ENTRIES: list[dict[str, Any]] = [
    {"messages": turns({"type": "image_url", "image_url": {"url": url(0)}}, 0), "id": 7},
    {"conversations": [turns({"type": "image"}, 1), turns({"type": "image"}, 1)], "images": [url(1)], "system": "be"},
    {"messages": turns({"type": "image", "image": "a.png"}, 2), "images": [{"path": "a.png", "bytes": None}]},
    {"prompt": turns({"type": "image", "image": "b.png"}, 3)[:1], "chosen": "yes", "rejected": "no"},
]
LINES = "".join(json.dumps(entry) + "\n" for entry in ENTRIES).encode()


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    for n, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (8, 8), (9, 9, 90 * n)).save(made / name)
    (made / "data.jsonl").write_bytes(LINES)
    return made


# ---------------------------------------------------------------- recipes

RECIPE: dict[str, Any] = {
    "data": ["data.jsonl"], "filters": FILTERS, "engine": "local", "workers": 1, "seed": 3,
    "plugins": [{"curation": {"modalities": ["text", "image"], "distance": 4, "benchmarks": [], "quota": 5}}],
}  # fmt: skip


def check_recipe(path: Path) -> None:
    try:
        recipe = load_curation(path)
        there = assemble(recipe.plugins, slots_required=False).collections["data_filters"]
        samples = stage_samples([DataRecipe(path=p) for p in recipe.data], recipe.folder)
        for name in {*recipe.filters} & {"modality", "duplicates", "boxes", "leak"} & there.keys():
            assert json.loads(Describe(samples, there[name])(0))
    except OURS as error:
        assert "the filter failed" not in str(error)


@CASES
@given(recipe=altered(RECIPE, (*ODD_TOML, "x/" * 3000, "x" * 300)))
def test_fuzz_recipes_of_curation(folder, recipe):
    (folder / "c.toml").write_bytes(to_toml(recipe))
    check_recipe(folder / "c.toml")


@CASES
@given(content=damaged(to_toml(RECIPE)))
def test_fuzz_bytes_of_recipes_of_curation(folder, content):
    (folder / "b.toml").write_bytes(content)
    check_recipe(folder / "b.toml")


# ---------------------------------------------------------------- data


def described(path: Path) -> list[dict[str, Any]]:
    """What each sample of a file is found to be: `broken`, or its digest and what each filter says."""
    filters = assemble(["curation"], slots_required=False).collections["data_filters"]
    samples, found = stage_samples([DataRecipe(path=path)], Path()), []
    for index in range(len(samples)):
        facts = json.loads(Identify(samples)(index))
        assert facts.keys() == ({"broken"} if "broken" in facts else {"digest"})
        for name in (*FILTERS, "score") if "digest" in facts else ():
            facts[name] = json.loads(Describe(samples, filters[name])(index))
            assert len(filters[name].decide([facts[name]])) == 1
        found.append(facts)
    return found


@CASES
@given(number=st.integers(0, len(ENTRIES) - 1), data=st.data())
def test_fuzz_lines_that_are_curated(folder, number, data):
    """No filter fails; a line's neighbours are described as ever."""
    right = described(folder / "data.jsonl")
    entries = [*ENTRIES]
    entries[number] = data.draw(altered(entries[number], ODD))
    (folder / "lines.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = described(folder / "lines.jsonl")
    assert len(found) == len(right)
    assert all(one == other for i, (one, other) in enumerate(zip(found, right, strict=True)) if i != number)


ODD = (
    *ODD_TOML[:-2],
    "a.png",
    "x" * 300,
    {"bytes": "x"},
    {"path": []},
    {"url": {"url": 1}},
    {"path": "a.png", "bytes": 1},
)


@CASES
@given(content=damaged(LINES))
def test_fuzz_bytes_that_are_curated(folder, content):
    (folder / "bytes.jsonl").write_bytes(content)
    try:
        described(folder / "bytes.jsonl")
    except OURS as error:
        assert "the filter failed" not in str(error)


# ---------------------------------------------------------------- runs


def run(folder: Path, lines: bytes) -> dict[str, Any] | None:
    """The report, with what was kept; None where the run was refused."""
    (folder / "run.jsonl").write_bytes(lines)
    (folder / "run.toml").write_bytes(to_toml({**RECIPE, "data": ["run.jsonl"]}))
    out = folder / "out"
    try:
        curate(load_curation(folder / "run.toml"), out)
    except OURS as error:
        assert "the filter failed" not in str(error)
        return None
    kept, dropped = (
        [json.loads(x) for x in (out / f"{n}.jsonl").read_text().split("\n")[:-1]] for n in ("kept", "dropped")
    )
    return {"kept": kept, "dropped": dropped}


@pytest.fixture(scope="module")
def right(folder: Path) -> dict[str, Any]:
    pytest.importorskip("datasets", reason="the local engine needs it")
    found = run(folder, LINES)
    assert found is not None
    assert len(found["kept"]) + len(found["dropped"]) == len(ENTRIES)
    shutil.copy(folder / "out" / "facts.sqlite", folder / "facts.sqlite")
    return found


WHOLE_RUNS = settings(CASES, max_examples=CASES.max_examples // 4)
"""A run starts what takes most of its time: there are fewer."""


@WHOLE_RUNS
@given(number=st.integers(0, len(ENTRIES) - 1), data=st.data())
def test_fuzz_runs_of_curation(folder, right, number, data):
    entries = [*ENTRIES]
    entries[number] = data.draw(altered(entries[number], ODD))
    found = run(folder, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
    assert found is not None
    assert len(found["kept"]) + len(found["dropped"]) == len(ENTRIES)


@WHOLE_RUNS
@given(data=st.data())
def test_fuzz_kept_facts(folder, right, data):
    """Facts of a run before: the same report, or an error."""
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()
    facts = folder / "out" / "facts.sqlite"
    if data.draw(st.booleans()):
        facts.write_bytes(data.draw(damaged((folder / "facts.sqlite").read_bytes())))
    else:
        shutil.copy(folder / "facts.sqlite", facts)
        with contextlib.closing(sqlite3.connect(facts)) as base, base:
            number, value = data.draw(st.sampled_from(base.execute("SELECT rowid, value FROM facts").fetchall()))
            value = data.draw(damaged(value.encode()).filter(lambda new: new != value.encode()))
            base.execute("UPDATE facts SET value = ? WHERE rowid = ?", (value, number))
    found = run(folder, LINES)
    if found is not None:
        assert found == right
