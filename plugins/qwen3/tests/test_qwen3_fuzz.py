"""Damaged tokenizer files: an error of ours, or a tokenizer whose ids lie in its vocabulary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from andes_qwen3.tokenizer import QwenTokenizer
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk.errors import AndesError, AssemblyError
from andes_sdk.testing.damage import CASES, altered, damaged
from andes_sdk.types import Slot, Turn

TURNS = [Turn("user", ("What is", Slot("image"), " red <|im_end|>?")), Turn("assistant", ("<think>x</think> Blue é",))]
SAID = "<think>x</think> Blue é"


class Layouts(dict[str, dict[str, bytes]]):
    """Not to be written out with a failing case."""

    def __repr__(self) -> str:
        return "layouts"


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    """The tiny tokenizer in each of the layouts that are read: file -> content."""
    folder = tmp_path_factory.mktemp("whole")
    QwenTokenizer.find("", None, tiny=True, thinking=True).save(folder)
    one = {path.name: path.read_bytes() for path in folder.iterdir()}
    content, config = json.loads(one["tokenizer.json"]), json.loads(one["tokenizer_config.json"])
    model, tokens = content["model"], content["added_tokens"]
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokens}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    parts = {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges]).encode(),
        "added_tokens.json": json.dumps({t["content"]: t["id"] for t in tokens}).encode(),
        "tokenizer_config.json": json.dumps({**config, "added_tokens_decoder": decoder}).encode(),
    }
    return Layouts({"one": one, "parts": parts})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(folder: Path, files: dict[str, bytes]) -> tuple[int, ...] | None:
    """The ids of a conversation, or None where the files were refused."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        tokenizer = QwenTokenizer.load(folder)
        rendered = tokenizer.render(TURNS, think=False, generate=False)
        learned = tokenizer.decode([i for i, mark in zip(rendered.ids, rendered.supervised, strict=True) if mark])
    except (AndesError, AssemblyError):
        return None
    assert all(0 <= i < tokenizer.vocab_size for i in rendered.ids)
    assert 0 <= tokenizer.eos < tokenizer.vocab_size
    assert rendered.ids.count(tokenizer.placeholder("image")) == 1
    assert isinstance(learned, str)
    assert len(rendered.ids) == len(rendered.supervised)
    return rendered.ids


def test_the_layouts_of_these_tests_are_right(folder, layouts):
    assert read(folder, layouts["one"]) == read(folder, layouts["parts"]) is not None


@CASES
@given(kind=st.sampled_from(["one", "parts"]), data=st.data())
def test_fuzz_any_byte_of_tokenizers(folder, layouts, kind, data):
    files = layouts[kind]
    name = data.draw(st.sampled_from(sorted(files)))
    read(folder, {**files, name: data.draw(damaged(files[name]))})


@CASES
@given(kind=st.sampled_from(["one", "parts"]), data=st.data())
def test_fuzz_data_of_tokenizers(folder, layouts, kind, data):
    files: dict[str, Any] = layouts[kind]
    name = data.draw(st.sampled_from([name for name in sorted(files) if name.endswith(".json")]))
    content = data.draw(altered(json.loads(files[name])))
    read(
        folder,
        {**files, name: json.dumps(content, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")},
    )


@CASES
@given(digits=st.sampled_from([1, 9, 10, 19, 20, 21, 4300, 5000]), number=st.integers(0, 300))
def test_fuzz_numbers_of_tokens(folder, layouts, digits, number):
    """Ids of any length, which the quick look at a vocabulary reads without a parser."""
    text = layouts["one"]["tokenizer.json"]
    found = list(re.finditer(rb'": (\d+)[,}]', text))
    start, end = found[number % len(found)].span(1)
    read(folder, {**layouts["one"], "tokenizer.json": text[:start] + b"9" * digits + text[end:]})


@CASES
@given(name=st.sampled_from(["one", "parts"]), gone=st.data())
def test_fuzz_files_of_tokenizers_that_are_gone(folder, layouts, name, gone):
    files = dict(layouts[name])
    del files[gone.draw(st.sampled_from(sorted(files)))]
    read(folder, files)
