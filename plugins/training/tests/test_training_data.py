"""Training data: one set of samples in every format gives the same batches; mixtures; what a bad sample does."""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import attrs
import pytest
import torch
from andes_training.data.bad import FILE, REASONS, BadSample, BadSamples
from andes_training.data.boxes import find_boxes
from andes_training.data.lines import JsonLines
from andes_training.data.rows import RowMaker, Thinking
from andes_training.data.samples import Samples, stage_samples
from andes_training.data.shards import find_files, open_shard
from andes_training.feed import packed
from andes_training.loss import next_token_loss
from andes_training.packing import collate
from andes_training.reading import in_order, make_rows, stage_maker, stage_processor
from andes_training.recipe import DataRecipe, StageRecipe, load_recipe
from andes_training.run import StageRun
from andes_training.state import states
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, TrainingError
from andes_sdk.types import Position

PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "sft"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins(PLUGINS, seed=1)


def png(number: int, size: tuple[int, int] = (28, 28)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (20 * number % 256, 99, 255 - 9 * number % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def talk(number: int, picture: dict | None) -> list[dict]:
    content = [{"type": "text", "text": f"what is number {number}?"}]
    if picture is not None:
        content.insert(0, picture)
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": f"it is {number} " * (1 + number % 3)},
    ]


COUNT = 11


def write_lines(folder: Path, name: str = "data.jsonl", numbers: range = range(COUNT)) -> Path:
    lines = []
    for n in numbers:
        (folder / f"{n}.png").write_bytes(png(n))
        lines.append(json.dumps({"messages": talk(n, {"type": "image_url", "image_url": {"url": f"{n}.png"}})}))
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def write_parquet(path: Path, *, nested: bool = False, numbers: range = range(COUNT), rows: int = 4) -> Path:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    import pyarrow.parquet as pq

    talks = [talk(n, {"type": "image"}) for n in numbers]
    if nested:  # one type per column: every content is a list of parts
        for conversation in talks:
            conversation[1]["content"] = [{"type": "text", "text": conversation[1]["content"]}]
    table = {
        "messages": talks if nested else [json.dumps(t) for t in talks],
        "images": [[{"bytes": png(n), "path": f"{n}.png"}] for n in numbers],
        "unrelated": list(numbers),
    }
    pq.write_table(pa.table(table), path, row_group_size=rows)
    return path


def write_tar(path: Path, numbers: range = range(COUNT)) -> Path:
    wds = pytest.importorskip("webdataset", reason="the format's own library is not installed")
    with wds.TarWriter(str(path)) as sink:
        for n in numbers:
            sink.write({"__key__": f"sample{n:04d}", "json": {"messages": talk(n, {"type": "image"})}, "png": png(n)})
    return path


def rows_of(source: DataRecipe, maker, folder: Path = Path(), **options) -> list:
    return [row for _, row in make_rows(stage_samples([source], folder), maker, seed=3, epoch=1, **options)]


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.ids, y.ids)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.media["image"].data, y.media["image"].data)
        for x, y in zip(a, b, strict=True)
    )


# ---------------------------------------------------------------- formats


def test_the_same_samples_give_the_same_batches_in_every_format(tmp_path: Path, pipeline: Pipeline) -> None:
    paths = [
        write_lines(tmp_path),
        write_parquet(tmp_path / "text.parquet"),
        write_parquet(tmp_path / "nested.parquet", nested=True),
        write_tar(tmp_path / "shard.tar"),
    ]
    first, *others = [rows_of(DataRecipe(path=p, flip=True, shift=0.1), pipeline.processor) for p in paths]
    assert len(first) == COUNT
    assert [same(first, other) for other in others] == [True, True, True]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_a_folder_and_a_pattern_of_shards_equal_one_file(tmp_path: Path, pipeline: Pipeline, kind: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    for folder, pieces in ((whole, [range(COUNT)]), (parts, [range(4), range(4, 9), range(9, COUNT)])):
        for index, numbers in enumerate(pieces):
            name = f"part-{index}.{kind}"
            if kind == "jsonl":
                write_lines(folder, name, numbers)
            elif kind == "parquet":
                write_parquet(folder / name, numbers=numbers)
            else:
                write_tar(folder / name, numbers)
    expected = rows_of(DataRecipe(path=whole / f"part-0.{kind}"), pipeline.processor)
    assert same(expected, rows_of(DataRecipe(path=Path("parts")), pipeline.processor, tmp_path))
    assert same(expected, rows_of(DataRecipe(path=Path(f"parts/part-?.{kind}")), pipeline.processor, tmp_path))


def test_what_hugging_face_datasets_writes_is_read(tmp_path: Path, pipeline: Pipeline) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    numbers = range(COUNT)
    data = datasets.Dataset.from_dict(
        {
            "messages": [json.dumps(talk(n, {"type": "image"})) for n in numbers],
            "image": [Image.open(io.BytesIO(png(n))) for n in numbers],
        },
        features=datasets.Features({"messages": datasets.Value("string"), "image": datasets.Image()}),
    )
    data.to_parquet(tmp_path / "hf.parquet")
    expected = rows_of(DataRecipe(path=write_lines(tmp_path)), pipeline.processor)
    assert same(expected, rows_of(DataRecipe(path=tmp_path / "hf.parquet"), pipeline.processor))


def test_a_shard_holds_what_the_webdataset_library_finds_in_it(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="the format's own library is not installed")
    path = tmp_path / "odd.tar"
    with wds.TarWriter(str(path)) as sink:
        sink.write({"__key__": "a/one", "json": {"messages": []}, "left.png": b"1", "right.png": b"22"})
        sink.write({"__key__": "a/two", "txt": "a caption", "jpg": png(2)})
        sink.write({"__key__": "b/" + "x" * 120, "json": {"messages": [1]}})  # a name that needs a second header
    with open(path, "rb") as file:
        members = ({**member, "__url__": ""} for member in wds.tariterators.tar_file_iterator(file))
        theirs = list(wds.tariterators.group_by_keys(members))
    shard = open_shard(path)
    assert [shard.where(i).removeprefix(f"{path}:") for i in range(len(shard))] == [s["__key__"] for s in theirs]
    assert shard.entry(0)["images"] == [
        {"path": "left.png", "bytes": theirs[0]["left.png"]},
        {"path": "right.png", "bytes": theirs[0]["right.png"]},
    ]
    assert shard.entry(1)["messages"][1] == {"role": "assistant", "content": "a caption"}
    assert shard.entry(2) == {"messages": [1]}


def test_pictures_are_named_by_url_by_name_or_by_turn(tmp_path: Path, pipeline: Pipeline) -> None:
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(png(len(name) + (name == "two.png")))

    def line(*parts: dict, **more) -> str:
        return json.dumps(
            {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "y"}], **more}
        )

    def url(name: str) -> dict:
        return {"type": "image_url", "image_url": {"url": name}}

    (tmp_path / "d.jsonl").write_text(
        "\n".join(
            [
                line(url("one.png"), url("two.png")),
                line({"type": "image"}, {"type": "image"}, images=["one.png", "two.png"]),
                line(url("one.png"), url("two.png"), images=["two.png", "one.png"]),
                line({"type": "image", "image": "one.png"}, {"type": "image", "image": "two.png"}),
            ]
        )
    )
    rows = rows_of(DataRecipe(path=tmp_path / "d.jsonl"), pipeline.processor)
    assert len(rows) == 4
    assert all(torch.equal(rows[0].media["image"].data, row.media["image"].data) for row in rows)


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for n in range(400):
            file.write(json.dumps({"n": n, "filler": "x" * 50_000}) + "\n\n")
    tracemalloc.start()
    shard = JsonLines(path)
    assert [shard.entry(n)["n"] for n in (0, 399, 7)] == [0, 399, 7]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peak < 1_000_000  # one line, and sixteen bytes a sample
    assert shard.where(399) == f"{path}:799"  # empty lines count


def test_files_that_cannot_be_read_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "data.tar.gz").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    whole = write_tar(tmp_path / "whole.tar").read_bytes()
    (tmp_path / "short.tar").write_bytes(whole[: whole.rindex(b"PNG") + 5])
    (tmp_path / "text.tar").write_bytes(b"no archive at all" * 40)
    (tmp_path / "text.parquet").write_bytes(b"PAR1 no")
    for name, message in {
        "gone.jsonl": "cannot be read", "gone.tar": "cannot be read", "gone.parquet": "cannot be read",
        "data.csv": "format of the data is unknown", "data.tar.gz": "unpack it", "empty.jsonl": "holds no sample",
        "short.tar": "unexpected end", "text.tar": "no whole tar", "text.parquet": "no Parquet",
        "*.png": "no data file",
    }.items():  # fmt: skip
        with pytest.raises(TrainingError) as caught:
            stage_samples([DataRecipe(path=Path(name))], tmp_path)
        assert message in str(caught.value), name
        assert caught.value.who == str(tmp_path / name)
    with pytest.raises(TrainingError, match="mixes formats"):
        find_files(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TrainingError, match="needs pyarrow") as caught:
        open_shard(tmp_path / "text.parquet")
    assert "andes-training[data]" in caught.value.fix


# ---------------------------------------------------------------- order and mixtures


def mixture(folder: Path, *sizes: int, **options: list) -> Samples:
    recipes = []
    for i, size in enumerate(sizes):
        (folder / f"{i}.jsonl").write_text("".join(f'{{"file": {i}, "n": {n}}}\n' for n in range(size)))
        recipes.append(DataRecipe(path=Path(f"{i}.jsonl"), **{k: v[i] for k, v in options.items()}))
    return stage_samples(recipes, folder)


def counts(samples: Samples, epoch: int) -> list[int]:
    found = Counter(samples[i].entry["file"] for i in samples.order(5, epoch))
    return [found[i] for i in range(len(samples.sources))]


def test_weights_share_the_mixture_and_budgets_are_kept(tmp_path: Path) -> None:
    # 60 samples lie in the two weighted files: 3 to 1 makes 45 and 15; the third gives 7, the fourth all of its 4 twice
    assert counts(mixture(tmp_path, 20, 40, weight=[3.0, 1.0]), 0) == [45, 15]
    assert counts(mixture(tmp_path, 20, 40, 9, weight=[3.0, 1.0, 0.0], samples=[0, 0, 7]), 4) == [45, 15, 7]
    assert counts(mixture(tmp_path, 5, 4, samples=[3, 0], repeat=[1, 2]), 1) == [3, 8]
    # 1 : 1 : 1 over ten samples: the largest remainder goes to the first
    assert counts(mixture(tmp_path, 3, 3, 4, weight=[1.0, 1.0, 1.0]), 0) == [4, 3, 3]
    facts = mixture(tmp_path, 20, 40, weight=[3.0, 1.0]).facts()
    assert [(f["samples"], f["per_epoch"], f["share"]) for f in facts] == [(20, 45, 0.75), (40, 15, 0.25)]


def test_a_share_goes_on_where_the_last_epoch_stopped(tmp_path: Path) -> None:
    samples = mixture(tmp_path, 10, 4, samples=[4, 0])
    seen = [[samples[i].entry["n"] for i in samples.order(0, e) if samples[i].entry["file"] == 0] for e in range(5)]
    assert [len(part) for part in seen] == [4] * 5
    # 5 epochs of 4 are two whole passes over 10
    assert Counter(n for part in seen for n in part) == dict.fromkeys(range(10), 2)
    first = [n for part in seen[:3] for n in part][:8]
    assert len(set(first)) == 8


def test_order_follows_from_seed_and_epoch_and_nothing_else(tmp_path: Path) -> None:
    options = {"weight": [2.0, 1.0, 0.0], "samples": [0, 0, 5]}
    samples = mixture(tmp_path, 8, 30, 12, **options)
    orders = {(s, e): list(samples.order(s, e)) for s in (0, 1) for e in (0, 1, 7)}
    again = mixture(tmp_path, 8, 30, 12, **options)
    assert all(list(again.order(s, e)) == order for (s, e), order in orders.items())
    assert len({tuple(order) for order in orders.values()}) == 6
    # without shares it is the plain permutation
    plain = mixture(tmp_path, 6, 5)
    expected = list(range(11))
    random.Random("9/2").shuffle(expected)
    assert list(plain.order(9, 2)) == expected
    assert len(plain[1:4]) == 3
    assert plain[-1].entry == plain[10].entry
    with pytest.raises(IndexError):
        plain[11]


def test_a_budget_of_tokens_counts_pictures(tmp_path: Path, pipeline: Pipeline) -> None:
    path = write_lines(tmp_path)
    rows = rows_of(DataRecipe(path=path), pipeline.processor)
    mean = sum(len(r.ids) for r in rows) / COUNT
    recipe = StageRecipe(stage="sft", data=[DataRecipe(path=path, tokens=round(4 * mean))], steps=1)
    told = {}
    run = stage_run(pipeline, recipe, tmp_path, tell=lambda kind, values: told.update({kind: values}))
    stream = packed(run)
    next(stream)
    stream.close()
    assert told["data"]["sources"][0]["per_epoch"] == 4
    assert told["data"]["sources"][0]["mean_tokens"] == pytest.approx(mean)


def test_contradictory_mixtures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="says twice"):
        mixture(tmp_path, 3, weight=[1.0], repeat=[2])
    with pytest.raises(TrainingError, match="has none"):
        mixture(tmp_path, 3, 3, weight=[1.0, 0.0])


def stage_run(pipeline: Pipeline, recipe: StageRecipe, folder: Path, **options) -> StageRun:
    stage = pipeline.pick("training_stages", recipe.stage)
    return StageRun(
        pipeline=pipeline, recipe=recipe, stage=stage, samples=stage_samples(recipe.data, folder), **options
    )


def test_batches_do_not_depend_on_workers_and_repeat_from_any_position(tmp_path: Path, pipeline: Pipeline) -> None:
    path = write_lines(tmp_path)
    (tmp_path / "data.jsonl").write_text("{broken\n" + path.read_text() + '{"messages": 1}\n')
    source = DataRecipe(path=path, flip=True, rotate=20.0, on_error="skip")

    def batches(count: int, workers: int, position: Position) -> list:
        recipe = StageRecipe(stage="sft", data=[source], steps=1, max_patches=64, workers=workers)
        stream = packed(stage_run(pipeline, recipe, tmp_path, position=position))
        found = [next(stream) for _ in range(count)]
        stream.close()
        return found

    def equal(a: list, b: list) -> bool:
        return all(
            p == q and torch.equal(x.ids, y.ids) and torch.equal(x.media["image"].data, y.media["image"].data)
            for (p, x), (q, y) in zip(a, b, strict=True)
        )

    expected = batches(8, 1, Position())
    assert {p.epoch for p, _ in expected} >= {0, 1, 2}
    assert equal(batches(8, 4, Position()), expected)
    for done in (1, 2, 5):
        assert equal(batches(8 - done, 3, expected[done - 1][0]), expected[done:])


def test_in_order_keeps_order_and_passes_errors_on() -> None:
    assert list(in_order(lambda x: x * x, range(50), workers=3)) == [x * x for x in range(50)]

    def fail(x: int) -> int:
        if x == 7:
            raise TrainingError("seven")
        return x

    with pytest.raises(TrainingError, match="seven"):
        list(in_order(fail, range(20), workers=3))


# ---------------------------------------------------------------- bad samples


def answer(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}], **more}


def with_picture(part: dict, **more) -> dict:
    return {
        "messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}],
        **more,
    }


BOX = "<|box_start|>({},{}),({},{})<|box_end|>"
BAD = [
    ("{", "json", "is not JSON"),
    ("[]", "json", "is not a sample"),
    ('{"text": "x"}', "shape", "is not a sample"),
    (json.dumps(answer("x") | {"messages": [{"role": "owner", "content": "x"}]}), "message", "unknown role"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "unsupervised", "no assistant text"),
    (json.dumps(with_picture({"type": "image_url", "image_url": {"url": "gone.png"}})), "picture", "gone.png"),
    (json.dumps(with_picture({"type": "image_url", "image_url": {"url": "torn.png"}})), "picture", "cannot be decoded"),
    (json.dumps(with_picture({"type": "image_url", "image_url": {"url": "https://x/y.png"}})), "picture", "remote"),
    (json.dumps(with_picture({"type": "image"})), "picture", "more pictures than it has"),
    (json.dumps(with_picture({"type": "text", "text": "?"}, images=["torn.png"])), "picture", "show 0 of 1 pictures"),
    (json.dumps(answer(BOX.format(1, 2, 3, 1001))), "box", "outside"),
    (json.dumps(answer(BOX.format(-1, 2, 3, 4))), "box", "outside"),
    (json.dumps(answer(BOX.format(9, 2, 3, 4))), "box", "swapped"),
    (json.dumps(answer("<|box_start|>(1;2)<|box_end|>")), "box", "not written as one"),
    (json.dumps(answer("<|box_start|>(1,2)")), "box", "not closed"),
    (json.dumps(answer("<think>so</think>4", think=False)), "think", "`think` is false"),
    (json.dumps(answer("4", think=True)), "think", "`think` is true"),
    (json.dumps(answer("4", think="no")), "think", "`think` is 'no'"),
    (json.dumps(answer("\n<think>so</think>4")), "think", "space before"),
    (json.dumps(answer("word " * 400)), "tokens", "too long for the stage"),
    (json.dumps(with_picture({"type": "image_url", "image_url": {"url": "wide.png"}})), "patches", "too many patches"),
]


def write_bad(folder: Path, *lines: str) -> Path:
    (folder / "torn.png").write_bytes(png(1, (90, 90))[:-40])
    (folder / "wide.png").write_bytes(png(1, (280, 280)))
    path = folder / "bad.jsonl"
    path.write_text("\n".join([json.dumps(answer("fine")), *lines, json.dumps(answer(BOX.format(0, 0, 1000, 1000)))]))
    return path


def strict(pipeline: Pipeline) -> RowMaker:
    return RowMaker(pipeline.processor, max_tokens=200, max_patches=100)


@pytest.mark.parametrize(("line", "reason", "message"), BAD, ids=[f"{r}: {m}" for _, r, m in BAD])
def test_a_bad_sample_is_named_with_its_line_and_reason(
    tmp_path: Path, pipeline: Pipeline, line: str, reason: str, message: str
) -> None:
    path = write_bad(tmp_path, line)
    with pytest.raises(BadSample) as caught:
        rows_of(DataRecipe(path=path), strict(pipeline))
    assert caught.value.reason == reason
    assert caught.value.who == f"{path}:2"
    assert message in str(caught.value)


def test_every_reason_is_met_and_skipped_samples_are_counted_once(tmp_path: Path, pipeline: Pipeline) -> None:
    path = write_bad(tmp_path, *(line for line, _, _ in BAD))
    samples = stage_samples([DataRecipe(path=path, on_error="skip")], tmp_path)
    bad = BadSamples.open(tmp_path, Position())
    for epoch in (0, 1):
        rows = [row for _, row in make_rows(samples, strict(pipeline), seed=0, epoch=epoch, bad=bad)]
        assert len(rows) == 2
    assert bad.counts() == Counter(reason for _, reason, _ in BAD)
    assert set(bad.counts()) == set(REASONS)
    written = [json.loads(text) for text in (tmp_path / FILE).read_text().splitlines()]
    assert sorted(row["where"] for row in written) == sorted(f"{path}:{n}" for n in range(2, 2 + len(BAD)))
    assert bad.finish(Position(epoch=2))["skipped"] == len(BAD)
    # a stage that ends after three samples of the first epoch has nothing of what lay ahead
    early = [row for row in written if (row["epoch"], row["offset"]) < (0, 3)]
    assert bad.finish(Position(offset=3))["skipped"] == len(early) < len(BAD)
    assert [json.loads(text) for text in (tmp_path / FILE).read_text().splitlines()] == early


def test_too_many_bad_samples_stop_the_run(tmp_path: Path, pipeline: Pipeline) -> None:
    path = write_bad(tmp_path, *["{"] * 5)
    rows_of(DataRecipe(path=path, on_error="skip", max_errors=5), pipeline.processor)
    with pytest.raises(TrainingError, match="5 samples cannot be used, max_errors is 4") as caught:
        rows_of(DataRecipe(path=path, on_error="skip", max_errors=4), pipeline.processor)
    assert "json: 5" in caught.value.why
    (tmp_path / "only.jsonl").write_text("{\n{\n")
    with pytest.raises(TrainingError, match="no sample of the stage can be used"):
        rows_of(DataRecipe(path=tmp_path / "only.jsonl", on_error="skip"), pipeline.processor)


def test_a_run_that_goes_on_reads_as_if_it_had_never_stopped(tmp_path: Path, pipeline: Pipeline) -> None:
    path = write_bad(tmp_path, *(line for line, _, _ in BAD))
    samples = stage_samples([DataRecipe(path=path, on_error="skip")], tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(make_rows(samples, strict(pipeline), seed=0, epoch=0, bad=BadSamples.open(whole, Position(stage=1))))
    # stopped after its sixth sample, with everything noted that a thread had prepared ahead, and a torn line
    list(make_rows(samples, strict(pipeline), seed=0, epoch=0, bad=BadSamples.open(parts, Position(stage=1))))
    with open(parts / FILE, "a") as file:
        file.write('{"stage": 1, "ep')
    bad = BadSamples.open(parts, Position(stage=1, offset=6))
    assert len((parts / FILE).read_text().splitlines()) < len(BAD)
    list(make_rows(samples, strict(pipeline), seed=0, epoch=0, start=6, bad=bad))
    assert (parts / FILE).read_text() == (whole / FILE).read_text()
    assert bad.counts() == Counter(reason for _, reason, _ in BAD)
    # another stage counts anew and keeps the lines
    assert BadSamples.open(parts, Position(stage=2)).counts() == {}
    assert (parts / FILE).read_text() == (whole / FILE).read_text()


def write_run(folder: Path, on_error: str = "skip") -> Path:
    lines = write_lines(folder).read_text().splitlines()
    lines[3:3], lines[8:8] = ["{"], ['{"messages": [{"role": "user", "content": "no answer"}]}']
    (folder / "data.jsonl").write_text("\n".join(lines))
    (folder / "recipe.toml").write_text(
        'name = "t"\nthreads = 1\n[pipeline]\n'
        'plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, "sft"]\n'
        '[[stages]]\nstage = "sft"\nsteps = 9\nmax_patches = 48\ncheckpoint_every = 2\n'
        f'data = [{{ path = "data.jsonl", flip = true, on_error = "{on_error}" }}]\n'
    )
    return folder / "recipe.toml"


class Seen:
    def __init__(self) -> None:
        self.events: list = []

    def show(self, event) -> None:
        self.events.append(event)

    def losses(self) -> list[float]:
        return [e.values["loss"] for e in self.events if e.kind == "step"]


def train(recipe: Path, out: Path, *overrides: str) -> Seen:
    loaded, seen = load_recipe(recipe, overrides), Seen()
    Pipeline.from_plugins(**loaded.pipeline).train(loaded, out, progress=seen)
    return seen


def test_skipped_samples_do_not_break_a_resumed_run(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    expected = train(recipe, tmp_path / "whole")
    summary = [e.values for e in expected.events if e.kind == "bad-samples"]
    assert [s["reasons"] for s in summary] == [{"json": 1, "unsupervised": 1}]

    class Stop(Exception):
        pass

    class Stopping(Seen):
        def show(self, event) -> None:
            super().show(event)
            if event.kind == "step" and event.step == 5:
                raise Stop

    loaded = load_recipe(recipe)
    with pytest.raises(Stop):
        Pipeline.from_plugins(**loaded.pipeline).train(loaded, tmp_path / "cut", progress=Stopping())
    assert states(tmp_path / "cut")
    resumed = train(recipe, tmp_path / "cut")
    assert resumed.losses() == expected.losses()[4:]
    assert (tmp_path / "cut" / FILE).read_text() == (tmp_path / "whole" / FILE).read_text()


def test_a_run_that_failed_on_a_bad_sample_may_go_on_and_skip_it(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, on_error="fail")
    with pytest.raises(BadSample):
        train(recipe, tmp_path / "out")
    text = recipe.read_text().replace('"fail"', '"skip", max_errors = 2')
    recipe.write_text(text)
    assert len(train(recipe, tmp_path / "out", "stages.0.workers=2").losses()) > 0


def test_what_a_later_stage_would_stop_at_is_told_before_the_first_step(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    whole = recipe.read_text()
    second = whole[whole.index("[[stages]]") :]
    for change, message in {
        "data.jsonl": "cannot be read",
        "flip = true": "says twice",
        "max_patches = 48": "unknown option 'size'",
    }.items():
        new = {"data.jsonl": "gone.jsonl", "flip = true": "weight = 1, repeat = 2"}.get(change, "image = { size = 9 }")
        recipe.write_text(whole + second.replace(change, new))
        with pytest.raises((TrainingError, AssemblyError)) as caught:
            train(recipe, tmp_path / "out")
        assert message in str(caught.value)
        assert not states(tmp_path / "out")


PLAIN = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "x", "gone.png", "\ud800"])
PARTS = st.dictionaries(
    st.sampled_from(["type", "text", "image", "image_url", "url", "bytes", "path"]),
    st.sampled_from(["text", "image", "image_url", "<think>", "<|box_start|>", "gone.png"]) | PLAIN
    | st.dictionaries(st.sampled_from(["url", "bytes", "path", "detail"]), PLAIN, max_size=2),
    max_size=3,
)  # fmt: skip
MESSAGES = st.lists(
    PLAIN
    | st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "x"]) | PLAIN,
            "content": st.lists(PARTS | PLAIN, max_size=3) | PLAIN | st.just("<think>x"),
        },
    ),
    max_size=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "messages": MESSAGES | PLAIN,
            "conversations": st.lists(MESSAGES | PLAIN, max_size=2) | PLAIN,
            "images": st.lists(PARTS | PLAIN, max_size=2) | PLAIN,
            "think": PLAIN,
        },
    )
)
def test_no_line_whatever_is_in_it_stops_a_run_that_skips(tmp_path: Path, pipeline: Pipeline, entry: dict) -> None:
    (tmp_path / "f.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps(answer("fine")))
    samples = stage_samples([DataRecipe(path=tmp_path / "f.jsonl", on_error="skip")], tmp_path)
    bad = BadSamples.open(tmp_path, Position())
    rows = [row for _, row in make_rows(samples, pipeline.processor, seed=0, epoch=0, bad=bad)]
    assert len(rows) + sum(bad.counts().values()) == 2


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BadSample("x", reason="box", who="f:1", why="y", fix="z")))
    assert (error.what, error.reason, error.who, error.to_dict()["reason"]) == ("x", "box", "f:1", "box")


def test_boxes_and_points_are_read() -> None:
    text = f"the button {BOX.format(0, 10, 20, 30)} or the point <|box_start|> (5, 6) <|box_end|>"
    assert find_boxes(text) == [(0, 10, 20, 30), (5, 6, 5, 6)]
    assert find_boxes("no box") == []


# ---------------------------------------------------------------- thinking


def row_of(pipeline: Pipeline, entry: dict, tmp_path: Path):
    (tmp_path / "one.jsonl").write_text(json.dumps(entry))
    return rows_of(DataRecipe(path=tmp_path / "one.jsonl"), pipeline.processor)[0]


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_what_is_learnt_begins_exactly_where_the_prompt_ends(
    pipeline: Pipeline, tmp_path: Path, think: bool, said: bool
) -> None:
    entry = answer("<think>two and two</think>four" if think else "four", **({"think": think} if said else {}))
    row = row_of(pipeline, entry, tmp_path)
    prompt = pipeline.processor.prepare(entry["messages"][:-1], think=think, generate=True).ids
    first = int((row.labels != -100).nonzero()[0])
    assert torch.equal(row.ids[: first + 1], prompt)
    learnt = [int(t) for t in row.labels if t != -100]
    rest = "two and two</think>four" if think else "four"
    assert pipeline.tokenizer.decode(learnt) == rest
    assert learnt[-1] == pipeline.tokenizer.eos


def test_one_model_learns_to_reason_where_it_is_asked_and_not_elsewhere(tmp_path: Path) -> None:
    pipe = Pipeline.from_plugins(PLUGINS, seed=2)
    lines = [json.dumps(answer("<think>hm</think>4")), json.dumps(answer("4"))]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    batch = collate(rows_of(DataRecipe(path=tmp_path / "d.jsonl"), pipe.processor))
    optimizer = torch.optim.AdamW(pipe.model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        next_token_loss(pipe.model, batch)[0].backward()
        optimizer.step()
    assert pipe.chat("?", max_tokens=8, think=False) == "4"
    assert pipe.chat("?", max_tokens=8, think=True) == "<think>hm</think>4"


def test_a_family_without_reasoning_refuses_to_be_asked_for_it(pipeline: Pipeline) -> None:
    assert Thinking.of(pipeline.tokenizer).text == "<think>"
    assert len(Thinking.of(pipeline.tokenizer).ids) == 1


# ---------------------------------------------------------------- a stage's resolution


def test_a_stage_sets_its_own_resolution(pipeline: Pipeline, tmp_path: Path) -> None:
    Image.effect_noise((200, 200), 50).convert("RGB").save(tmp_path / "p.png")
    line = {"messages": talk(1, {"type": "image_url", "image_url": {"url": "p.png"}})}
    (tmp_path / "d.jsonl").write_text(json.dumps(line))
    grids = []
    for size in (56, 112):
        recipe = StageRecipe(
            stage="sft", data=[DataRecipe(path=tmp_path / "d.jsonl")], steps=1, image={"max_size": size}
        )
        maker = stage_maker(pipeline, recipe, pipeline.pick("training_stages", "sft"))
        grids.append(rows_of(recipe.data[0], maker)[0].media["image"].sizes)
    assert grids == [((4, 4),), ((8, 8),)]
    with pytest.raises(AssemblyError) as caught:
        stage_processor(pipeline, attrs.evolve(recipe, image={"max_sise": 1}))
    assert "did you mean 'max_size'" in str(caught.value)


def test_a_pack_has_the_loss_and_gradients_of_its_samples(tmp_path: Path, pipeline: Pipeline) -> None:
    rows = rows_of(DataRecipe(path=write_lines(tmp_path)), pipeline.processor)[:5]
    tokens = sum(collate([r]).tokens for r in rows)
    assert len({collate([r]).tokens for r in rows}) > 1
    pipeline.model.zero_grad()
    packed_loss, _ = next_token_loss(pipeline.model, collate(rows))
    packed_loss.backward()
    gradients = [p.grad.clone() for p in pipeline.model.parameters()]
    pipeline.model.zero_grad()
    total = 0.0
    for row in rows:
        batch = collate([row])
        loss = next_token_loss(pipeline.model, batch)[0] * (batch.tokens / tokens)
        loss.backward()
        total += float(loss.detach())
    assert float(packed_loss.detach()) == pytest.approx(total, abs=1e-5)  # float32, other order of additions
    for a, parameter in zip(gradients, pipeline.model.parameters(), strict=True):
        assert torch.allclose(a, parameter.grad, atol=1e-5)


def test_a_tar_with_folders_and_links_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        text = json.dumps({"messages": []}).encode()
        member = tarfile.TarInfo("d/a.json")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    shard = open_shard(tmp_path / "t.tar")
    assert len(shard) == 1
    assert shard.entry(0) == {"messages": []}
