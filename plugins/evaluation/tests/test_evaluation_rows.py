"""Rows from files: TSV, JSON Lines, Parquet, folders of `datasets`, and the Hub's cache."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from andes_evaluation.rows import Place, find, tsv_rows

from andes_sdk.errors import InputError

PLACE = Place(names=("Thing_TEST", "thing"), hub="someone/thing", config="small", split="test")


def test_a_tsv_gives_its_fields_and_leaves_out_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "thing_test.tsv").write_text('\ufeffindex\tquestion\tA\n1\t"two\nlines"\t\n2\tq\ta "quoted"\n')
    rows = list(find(PLACE, tmp_path))
    assert rows == [{"index": "1", "question": "two\nlines"}, {"index": "2", "question": "q", "A": 'a "quoted"'}]


def test_a_picture_that_rows_share_is_written_once(tmp_path: Path) -> None:
    long = base64.b64encode(b"x" * 100).decode()
    path = tmp_path / "t.tsv"
    path.write_text(f"index\timage\n5\t{long}\n6\t5\n")
    assert [row["image"] for row in tsv_rows(path)] == [long, long]
    path.write_text("index\timage\n6\t5\n")
    with pytest.raises(InputError, match="takes the picture of row '5'"):
        list(tsv_rows(path))


def test_json_lines_are_objects(tmp_path: Path) -> None:
    path = tmp_path / "thing.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row["a"] for row in find(PLACE, path)] == [1, 2]
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(InputError, match="got list"):
        list(find(PLACE, path))
    path.write_text("{oops\n")
    with pytest.raises(InputError, match=r"thing.jsonl:1"):
        list(find(PLACE, path))


def test_json_is_a_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    path.write_text('[{"question": "q"}]')
    assert list(find(PLACE, tmp_path)) == [{"question": "q"}]
    for wrong, told in (('{"question": "q"}', "holds no rows"), ('["q"]', "holds no rows"), ("[{", "cannot be read")):
        path.write_text(wrong)
        with pytest.raises(InputError, match=told):
            list(find(PLACE, path))


def test_a_data_set_saved_on_disk_keeps_its_pictures_encoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    image = {"bytes": b"encoded", "path": None}
    features = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    made = datasets.Dataset.from_dict({"question": ["q"], "image": [image]}, features=features)
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "Thing_TEST")
    assert list(find(PLACE, tmp_path)) == [{"question": "q", "image": image}]
    made.save_to_disk(tmp_path / "alone")
    assert [row["question"] for row in find(PLACE, tmp_path / "alone")] == ["q"]
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match="no split 'test'"):
        find(PLACE, tmp_path / "other")


def parquet(path: Path, name: str) -> None:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(arrow.table({"question": [name]}), path)


def test_parquet_of_the_split_and_configuration_is_read(tmp_path: Path) -> None:
    for config in ("small", "large"):
        for split in ("test", "train"):
            parquet(tmp_path / "thing" / config / f"{split}-00000-of-00001.parquet", f"{config} {split}")
    assert [row["question"] for row in find(PLACE, tmp_path)] == ["small test"]
    with pytest.raises(InputError, match="several configurations"):
        find(Place(names=("thing",)), tmp_path)
    with pytest.raises(InputError, match="no split 'val'"):
        find(Place(names=("thing",), split="val"), tmp_path)
    (tmp_path / "thing.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read"):
        list(find(PLACE, tmp_path / "thing.parquet"))


def test_the_hubs_cache_is_looked_into_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "datasets--someone--thing"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    parquet(root / "snapshots" / ("a" * 40) / "data" / "test-00000-of-00001.parquet", "cached")
    assert [row["question"] for row in find(PLACE, None)] == ["cached"]
    (root / "snapshots" / ("a" * 40) / "THING.json").write_text('[{"question": "of that name"}]')
    assert [row["question"] for row in find(PLACE, None)] == ["of that name"]
    with pytest.raises(InputError, match="was not found") as caught:
        find(Place(names=("absent",), hub="someone/absent"), tmp_path)
    assert "absent.tsv" in caught.value.why
    assert "the Hugging Face cache: someone/absent" in caught.value.why


def test_a_table_with_too_many_fields_and_a_path_that_is_not_there_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1\t2\t3\n")
    with pytest.raises(InputError, match="row 2 has 3 fields, the head 2"):
        list(tsv_rows(path))
    with pytest.raises(InputError, match="no such file or folder"):
        find(PLACE, tmp_path / "nothing")
    path.rename(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"the suffix is '\.csv'"):
        find(PLACE, tmp_path / "t.csv")
