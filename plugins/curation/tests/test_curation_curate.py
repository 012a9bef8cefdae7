"""Curation of whole data sets: what comes out, that it can be stopped, and that Ray gives what one machine gives."""

import json
from collections import Counter

import pytest
from andes_curation.curate import CurationRecipe, curate, load_curation
from andes_curation.references import change_pictures, pictures
from attrs import field, frozen
from PIL import Image

from andes_sdk import hookimpl
from andes_sdk.errors import AssemblyError, PluginBroken, TrainingError

CALLS = Counter()


@frozen
class Long:
    """Drops long answers; counts how often it looks."""

    limit: int
    name = "long"
    version = "long/1"
    waits = False

    def describe(self, sample):
        CALLS["describe"] += 1
        return {"length": len(sample["messages"][-1]["content"])}

    def decide(self, facts):
        return [f"{f['length']} characters" if f["length"] > self.limit else None for f in facts]

    def apply(self, samples):
        held = list(samples)
        yield from zip(held, self.decide([self.describe(s) for s in held]), strict=True)


@frozen
class Odd:
    """A plain filter that passes samples on in another order."""

    name = "odd"

    def apply(self, samples):
        held = list(samples)
        yield from ((s, "even" if s["n"] % 2 == 0 else None) for s in reversed(held))


@frozen
class Loses:
    """A broken filter."""

    name = "loses"

    def apply(self, samples):
        yield from ((s, None) for s in list(samples)[1:])


@frozen(eq=False, kw_only=True)
class Own:
    """Filters of this file."""

    contract = "1.0"
    limit: int = field(default=4)

    @hookimpl
    def andes_data_filters(self):
        return [Long(self.limit), Odd(), Loses()]


def sample(n, answer, image=None):
    parts = [{"type": "image", "image": image}] if image else []
    question = {"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}
    return {"n": n, "messages": [question, {"role": "assistant", "content": answer}]}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    lines = [json.dumps(sample(n, "x" * (1 + n % 7), "red.png")) for n in range(40)]
    (folder / "train.jsonl").write_text("\n".join([*lines, "{broken"]))
    return folder / "train.jsonl"


def run(data, out, *names, **options):
    recipe = CurationRecipe(data=[data], plugins=[Own()], filters=list(names), **options)
    return curate(recipe, out)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_kept_dropped_and_baselines_are_written_with_every_reason(data, tmp_path):
    report = run(data, tmp_path / "out", "long", "odd")
    kept = [n for n in range(40) if 1 + n % 7 <= 4 and n % 2]
    out = tmp_path / "out"
    assert [row["n"] for row in lines(out / "kept.jsonl")] == kept
    dropped = lines(out / "dropped.jsonl")
    assert len(dropped) + len(kept) == report["samples"] == 41
    assert dropped[-1]["where"] == f"{data}:41"
    assert dropped[-1]["filter"] == "reading"
    assert {"where": f"{data}:5", "filter": "long", "reason": "5 characters"} in dropped
    assert {"where": f"{data}:1", "filter": "odd", "reason": "even"} in dropped
    assert sorted({d["filter"] for d in report["dropped"]}) == ["long", "odd", "reading"]
    longest = [row["n"] for row in lines(out / "length.jsonl")]
    assert len(longest) == len(kept)
    assert all(n % 7 >= 3 for n in longest)
    by_chance = [row["n"] for row in lines(out / "random.jsonl")]
    assert len(set(by_chance)) == len(kept)
    assert by_chance != [r["n"] for r in lines(out / "kept.jsonl")]
    assert report["sets"]["all"]["means"]["long.length"] == {"mean": 3.875, "samples": 40}
    assert report["sets"]["kept"]["answer_characters"] < report["sets"]["length"]["answer_characters"]
    page = (out / "report.html").read_text()
    assert "5 characters" in page
    assert f"{data}:5" in page


def test_what_is_written_can_be_read_from_where_it_lies(data, tmp_path):
    run(data, tmp_path / "out", "odd")
    again = run(tmp_path / "out" / "kept.jsonl", tmp_path / "deeper" / "still", "odd")
    assert again["kept"] == again["samples"] == 20
    first = lines(tmp_path / "deeper" / "still" / "kept.jsonl")[0]
    (place,) = pictures(first)
    assert (tmp_path / "deeper" / "still" / place).resolve() == data.parent / "red.png"


def test_facts_are_kept_by_content_so_that_only_new_samples_are_looked_at(data, tmp_path):
    CALLS.clear()
    run(data, tmp_path / "out", "long", workers=1)
    assert CALLS["describe"] == 40
    text = data.read_text().splitlines()
    text[7] = json.dumps(sample(99, "new", "red.png"))
    data.write_text("\n".join(reversed(text)))
    run(data, tmp_path / "out", "long", workers=1)
    assert CALLS["describe"] == 41
    Image.new("RGB", (8, 8), "blue").save(data.parent / "red.png")
    run(data, tmp_path / "out", "long", workers=1)
    assert CALLS["describe"] == 81, "another picture under the same name is another sample"


# Ray warns of its own deprecated settings while it copies them
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_two_processes_and_ray_decide_as_one_does(data, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    text = data.read_text().splitlines()[:40]
    data.write_text("\n".join(json.dumps({**json.loads(line), "copy": c}) for c in range(5) for line in text))
    try:
        reports = [
            run(data, tmp_path / name, "long", "odd", engine=engine, workers=workers)
            for name, engine, workers in (("one", "local", 1), ("two", "local", 2), ("ray", "ray", 2))
        ]
    finally:
        ray.shutdown()
    first = (tmp_path / "one" / "kept.jsonl").read_text()
    assert (tmp_path / "two" / "kept.jsonl").read_text() == (tmp_path / "ray" / "kept.jsonl").read_text() == first
    assert reports[0]["sets"] == reports[1]["sets"] == reports[2]["sets"]


def test_a_filter_that_loses_samples_and_one_that_does_not_exist_are_errors(data, tmp_path):
    with pytest.raises(PluginBroken, match="decides on 40 samples with 39 answers"):
        run(data, tmp_path / "out", "loses")
    with pytest.raises(TrainingError, match="no filter 'lnog'"):
        run(data, tmp_path / "out", "lnog")
    with pytest.raises(TrainingError, match="lists 'odd' twice"):
        run(data, tmp_path / "out", "odd", "odd")


def test_pictures_in_bytes_become_files_and_their_names_follow(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    Image.new("RGB", (8, 8), "green").save(tmp_path / "green.png")
    content = (tmp_path / "green.png").read_bytes()
    said = [json.dumps(sample(n, "x", "g.png")["messages"]) for n in range(3)]
    table = pa.table({"n": [1, 2, 3], "messages": said, "images": [[{"bytes": content, "path": "g.png"}]] * 3})
    parquet.write_table(table, tmp_path / "data.parquet")
    run(tmp_path / "data.parquet", tmp_path / "out", "odd")
    (one, two) = lines(tmp_path / "out" / "kept.jsonl")
    assert (one["n"], two["n"]) == (1, 3)
    (place,) = pictures(one)
    assert (tmp_path / "out" / place).read_bytes() == content
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1


def test_a_recipe_file_is_checked(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('data = ["a.jsonl"]\nplugins = ["curation"]\nfilters = ["modality"]\nengine = "spark"\n')
    with pytest.raises(AssemblyError) as caught:
        load_curation(path)
    assert "'engine' must be in" in str(caught.value)
    assert load_curation(path, engine="ray").engine == "ray"


def test_changing_pictures_leaves_names_of_bytes_alone():
    entry = {
        "images": ["a.png", {"bytes": b"1", "path": "b"}, {"path": "c.png", "bytes": None}],
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b"}}, {"type": "image"}]}
        ],
        "prompt": [
            {"role": "user", "content": [{"type": "image", "image": "d.png"}, {"type": "text", "text": "a.png"}]}
        ],
    }
    changed = change_pictures(entry, lambda s: s if isinstance(s, bytes) else f"/x/{s}")
    assert changed["images"] == ["/x/a.png", {"bytes": b"1", "path": "b"}, {"path": "/x/c.png", "bytes": None}]
    assert changed["messages"][0]["content"][0]["image_url"]["url"] == "b"
    assert changed["prompt"][0]["content"] == [
        {"type": "image", "image": "/x/d.png"},
        {"type": "text", "text": "a.png"},
    ]
