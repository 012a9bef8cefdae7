"""Damaged recipes, data files, states and lists of bad samples: an error of ours, or a right result."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_training.best import best_states
from andes_training.data.bad import FILE, BadSample, BadSamples
from andes_training.data.inspection import inspect
from andes_training.data.rows import RowMaker
from andes_training.data.samples import stage_samples
from andes_training.data.statistics import statistics
from andes_training.recipe import DataRecipe, Recipe, StageRecipe, load_recipe, open_pipeline
from andes_training.report import _stages, _table
from andes_training.resume import check_saved
from andes_training.state import Learner, Saved, load_state, read_saved, save_state
from attrs import astuple
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError, TrainingError
from andes_sdk.testing.damage import CASES, ODD_TOML, altered, catalogue, damaged, to_toml
from andes_sdk.testing.reference import REFERENCES
from andes_sdk.types import Position

OURS = (AndesError, AssemblyError)


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    (made / "data.jsonl").write_text(json.dumps(ENTRIES[0]) + "\n")
    return made


# ---------------------------------------------------------------- recipes

RECIPE: dict[str, Any] = {
    "name": "r", "seed": 1, "precision": "no", "threads": 1, "start": "gone/model", "timeout": 60.0,
    "pipeline": {"plugins": ["gone", {"gone2": {"preset": "tiny"}}], "image": {"max_size": 56}, "seed": 2},
    "stages": [
        {"stage": "a", "steps": 3, "warmup": 1, "schedule": "wsd", "decay": 1, "rates": {"encoder": 1e-3},
         "data": [{"path": "data.jsonl", "weight": 1.0}, {"path": "{folder}/data.jsonl", "weight": 2.0, "flip": True}],
         "lora": {"rank": 4, "targets": ["mlp"], "name": "x"}, "image": {"max_size": 28}},
        {"stage": "b", "epochs": 1, "data": [{"path": "data.jsonl", "samples": 2}], "lora": {"name": "x2"},
         "validation": [{"path": "data.jsonl", "samples": 2}], "validate_every": 1},
    ],
}  # fmt: skip


def check_recipe(path: Path) -> None:
    """What is read has a digest, learning rates that are numbers, and data and a pipeline that open or are refused."""
    try:
        recipe = load_recipe(path)
    except OURS:
        return
    assert recipe.digest() == load_recipe(path).digest()
    assert json.loads(json.dumps(recipe.facts())) == recipe.facts() or "NaN" in json.dumps(recipe.facts())
    for stage in recipe.stages:
        assert all(0 <= stage.scale(step, 0.5) < float("inf") for step in (0, 1, 2))
        for data in (stage.data, stage.validation):
            try:
                samples = stage_samples(data, recipe.folder)
                assert all(share >= 0 for share in samples.shares() if not any(d.tokens for d in data))
            except OURS:
                pass
    with pytest.raises(OURS):  # its plugins and its checkpoint are nowhere
        open_pipeline(recipe)


@CASES
@given(recipe=altered(RECIPE, (*ODD_TOML, "x/" * 3000, "a/" + "x" * 300)))
def test_fuzz_recipes(folder, recipe):
    (folder / "r.toml").write_bytes(to_toml(recipe))
    check_recipe(folder / "r.toml")


@CASES
@given(content=damaged(to_toml(RECIPE)))
def test_fuzz_bytes_of_recipes(folder, content):
    (folder / "b.toml").write_bytes(content)
    check_recipe(folder / "b.toml")


# ---------------------------------------------------------------- data


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 99, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def url(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(number)).decode()


def turns(number: int, picture: Any) -> list[Any]:
    parts = [picture, {"type": "text", "text": f"number {number}?"}] if picture else f"number {number}?"
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": f"<|box_start|>(1,2)<|box_end|>{number}"},
    ]


ENTRIES: list[dict[str, Any]] = [
    {"messages": turns(0, {"type": "image_url", "image_url": {"url": url(0)}}), "think": False, "id": 7},
    {"conversations": [turns(1, {"type": "image"}), turns(1, {"type": "image"})], "images": [url(1)], "system": "be"},
    {"messages": turns(2, {"type": "image", "image": "a.png"}), "images": [{"path": "a.png", "bytes": None}]},
    {"messages": turns(3, None), "image": None, "answer": "3"},
]
LINES = "".join(json.dumps(entry) + "\n" for entry in ENTRIES).encode()


@pytest.fixture(scope="module")
def maker() -> RowMaker:
    return RowMaker(Pipeline.from_plugins([made() for made in REFERENCES.values()]).processor, max_tokens=4096)


def read(path: Path, maker: RowMaker) -> list[Any] | None:
    """What each sample of a file holds, or None for one that cannot be used; None for the file if it is refused."""
    try:
        samples = stage_samples([DataRecipe(path=path)], Path())
    except OURS:
        return None
    found: list[Any] = []
    for index in range(len(samples)):
        assert samples.where(index)
        try:
            talks = inspect(samples[index])
            found.append([[(m["role"], m["content"]) for m in talk] for talk in talks])
        except BadSample:
            found.append(None)
        try:
            row = maker.row(samples[index], random.Random(0))
            assert found[-1] is not None
            assert len(row.ids) == len(row.labels)
        except BadSample:
            pass
    assert statistics(samples).samples == len(samples)
    return found


@CASES
@given(number=st.integers(0, len(ENTRIES) - 1), data=st.data())
def test_fuzz_lines_of_data(folder, maker, number, data):
    """A line is used or refused; its neighbours are what they were."""
    (folder / "a.png").write_bytes(png(2))
    entries = [*ENTRIES]
    entries[number] = data.draw(altered(entries[number]))
    (folder / "lines.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = read(folder / "lines.jsonl", maker)
    assert found is not None
    assert len(found) == len(ENTRIES)
    assert all(one is not None for i, one in enumerate(found) if i != number)


@CASES
@given(content=damaged(LINES))
def test_fuzz_bytes_of_lines_of_data(folder, maker, content):
    (folder / "a.png").write_bytes(png(2))
    (folder / "bytes.jsonl").write_bytes(content)
    found = read(folder / "bytes.jsonl", maker)
    kept = [line for line in LINES.split(b"\n")[:-1] if line in content.split(b"\n")]
    assert sum(one is not None for one in found or ()) >= len(kept)


def parquet(nested: bool) -> bytes:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    import pyarrow.parquet as pq

    talks = [turns(n, {"type": "image"}) for n in range(4)]
    for talk in talks if nested else ():
        talk[1]["content"] = [{"type": "text", "text": talk[1]["content"]}]
    table = {
        "messages": talks if nested else [json.dumps(talk) for talk in talks],
        "images": [[{"bytes": png(n), "path": f"{n}.png"}] for n in range(4)],
        "when": pa.array([0, 1, 2, 3], pa.timestamp("s")),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer, row_group_size=2, compression="snappy" if nested else "none")
    return buffer.getvalue()


@CASES
@given(nested=st.booleans(), data=st.data())
def test_fuzz_bytes_of_parquet(folder, maker, nested, data):
    content = data.draw(damaged(PARQUET.setdefault(nested, parquet(nested))))
    path = folder / f"{len(SEEN)}.parquet"
    SEEN.append(path)
    path.write_bytes(content)
    found = read(path, maker)
    path.unlink()
    assert found is None or len(found) <= 64


PARQUET: dict[bool, bytes] = {}
SEEN: list[Path] = []


def tar(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for n in range(3):
            key = f"{'folder' * (30 if n == 1 else 1)}/é{n}"
            talk = {"messages": turns(n, {"type": "image"})}
            members = {"json": json.dumps(talk).encode(), "png": png(n)} if n < 2 else {"png": png(n), "txt": b"a word"}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


TARS = [tar(tarfile.PAX_FORMAT), tar(tarfile.GNU_FORMAT)]


def checked(block: bytes) -> bytes:
    """A header of tar with its right checksum."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


@CASES
@given(form=st.integers(0, 1), right=st.booleans(), data=st.data())
def test_fuzz_bytes_of_tars(folder, maker, form, right, data):
    """Also headers whose checksums are right: whoever makes a header that lies computes it."""
    raw = TARS[form]
    if right:
        at = 512 * data.draw(st.integers(0, len(raw) // 512 - 1))
        block = data.draw(damaged(raw[at : at + 512])).ljust(512, b"\0")[:512]
        content = raw[:at] + checked(block) + raw[at + 512 :]
    else:
        content = data.draw(damaged(raw))
    (folder / "t.tar").write_bytes(content)
    found = read(folder / "t.tar", maker)
    if content == raw:
        assert found is not None
        assert None not in found
    assert found is None or len(found) <= len(content) // 512


# ---------------------------------------------------------------- states

SAVED = Saved(position=Position(step=3, offset=5), recipe={"name": "r", "stages": [{"steps": 9}]}, data={"a": "b"})


def learner(seed: int) -> Learner:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return Learner(model, optimizer, {"0.weight": torch.randn(2, 3)})


def numbers(one: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in one.tensors()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, bytes]:
    own = learner(1)
    RIGHT.update(numbers(own))
    path = folder / save_state(folder, own, SAVED)
    return {file.name: file.read_bytes() for file in path.iterdir()}


RIGHT: dict[str, torch.Tensor] = {}


def check_state(folder: Path, files: dict[str, bytes], *, exact: bool) -> None:
    """A state is restored to the bit, or nothing has changed."""
    path = folder / "fuzzed"
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).unlink(missing_ok=True)  # what was read may still be mapped
        (path / name).write_bytes(content)
    try:
        saved = read_saved(path)
        assert json.loads(json.dumps(saved.recipe)) == saved.recipe or "NaN" in json.dumps(saved.recipe)
        check_saved(saved, Recipe(name="r", stages=[StageRecipe(stage="s", data=[], steps=9)], folder=folder), path)
    except TrainingError:
        pass
    fresh = learner(2)
    before = numbers(fresh)
    try:
        load_state(path, fresh)
    except TrainingError:
        assert same(numbers(fresh), before)
        return
    assert numbers(fresh).keys() == RIGHT.keys()
    if exact:
        assert same(numbers(fresh), RIGHT)


@CASES
@given(data=st.data())
def test_fuzz_any_byte_of_states(folder, state, data):
    name = data.draw(st.sampled_from(sorted(state)))
    check_state(folder, {**state, name: data.draw(damaged(state[name]))}, exact=True)


def summed(state: dict[str, bytes]) -> dict[str, bytes]:
    """The same files with right checksums."""
    position = json.loads(state["position.json"])
    position["sha256"] = {n: hashlib.sha256(c).hexdigest() for n, c in state.items() if n != "position.json"}
    return {**state, "position.json": json.dumps(position).encode()}


@CASES
@given(data=st.data())
def test_fuzz_data_of_states(folder, state, data):
    """Facts, the index and heads of tensors that say something else, with right checksums."""
    kind = data.draw(st.sampled_from(["position", "index", "head"]))
    if kind == "position":
        changed = data.draw(altered(json.loads(state["position.json"])))
        check_state(folder, {**state, "position.json": json.dumps(changed).encode()}, exact=True)
    elif kind == "index":
        changed = data.draw(altered(json.loads(state["index.json"]), (*PLACES, None, 1, [])))
        check_state(folder, summed({**state, "index.json": json.dumps(changed).encode()}), exact=True)
    else:
        name = next(name for name in state if name.endswith(".safetensors"))
        raw = state[name]
        end = 8 + int.from_bytes(raw[:8], "little")
        body = json.dumps(data.draw(altered(json.loads(raw[8:end])))).encode()
        check_state(folder, summed({**state, name: len(body).to_bytes(8, "little") + body + raw[end:]}), exact=False)


PLACES = ("state-00001.safetensors", "../..", "index.json", "\ud800", "x" * 5000)

# ---------------------------------------------------------------- what was skipped

ROW = {"stage": 0, "epoch": 0, "offset": 1, "file": "a", "where": "a:1", "reason": "json", "what": "w", "why": ""}


def check_bad(folder: Path, content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    try:
        bad = BadSamples.open(folder, Position(step=3, epoch=1))
    except OURS:
        assert (folder / FILE).read_bytes() == content
        return
    assert sum(bad.counts().values()) <= 3
    bad.take(BadSample("w", who="z:1"), DataRecipe(path=Path("z"), on_error="skip"), epoch=1, offset=1)
    assert bad.finish(Position(step=9, epoch=2))["skipped"] == sum(bad.counts().values())


@CASES
@given(number=st.integers(0, 2), data=st.data())
def test_fuzz_rows_of_bad_samples(folder, number, data):
    rows: list[Any] = [{**ROW, "where": f"a:{n}", "offset": n} for n in range(3)]
    rows[number] = data.draw(altered(rows[number]))
    check_bad(folder, "".join(json.dumps(row) + "\n" for row in rows).encode())


@CASES
@given(data=st.data())
def test_fuzz_bytes_of_bad_samples(folder, data):
    rows = [{**ROW, "where": f"a:{n}", "offset": n} for n in range(3)]
    content = data.draw(damaged("".join(json.dumps(row) + "\n" for row in rows).encode()))
    check_bad(folder, content)


# ---------------------------------------------------------------- what a run told

STEP = {"index": 0, "stage": "a", "step": 1, "loss": 0.5, "tokens": 7, "samples": 2, "seconds": 0.25, "rate": 1e-3}


@CASES
@given(number=st.integers(0, 2), data=st.data())
def test_fuzz_metrics(folder, number, data):
    """Rows of steps give a table, or are refused."""
    rows: list[Any] = [{**STEP, "step": n} for n in range(3)]
    rows[number] = data.draw(altered(rows[number]))
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        stages = _stages(path)
    except OURS:
        return
    assert sum(map(len, stages)) == 3
    assert "<td>" in _table(stages)


@CASES
@given(data=st.data())
def test_fuzz_best_states(folder, data):
    whole = {"step": 3, "validation_loss": 0.5, "state": "state-00-00000003", "data": "ab"}
    raw = (
        json.dumps(data.draw(altered(whole))).encode()
        if data.draw(st.booleans())
        else data.draw(damaged(json.dumps(whole).encode()))
    )
    (folder / "best-00.json").write_bytes(raw)
    try:
        found = best_states(folder)
    except OURS:
        return
    assert [*map(type, astuple(found[0]))] == [int, str, float, str, str]
