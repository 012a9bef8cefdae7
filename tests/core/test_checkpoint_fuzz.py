"""Damaged checkpoints: an error of ours, or a right result; never another exception, never other weights."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        2**31,
        2**70,
        10**30,
        1e308,
        -0.5,
        "",
        "x" * 40,
        "../..",
        "\ud800",
        [],
        [1],
        {},
        {"a": 1},
    ]
)


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> dict[str, Path]:
    """One checkpoint in our layout, one published in shards, one published as `.bin`."""
    root = tmp_path_factory.mktemp("material")
    pipeline = Pipeline.from_plugins(TINY, seed=5)
    found = {"andes": pipeline.save_pretrained(root / "andes")}
    for name in ("shards", "bin"):
        folder = found[name] = pipeline.save_pretrained(root / name, layout="published")
        tensors = load_file(folder / "model.safetensors")
        if name == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            weight_map = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(tensors)}
            for file in set(weight_map.values()):
                save_file({n: tensors[n] for n, f in weight_map.items() if f == file}, folder / file)
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()
    return found


def outcome(folder: Path) -> dict[str, torch.Tensor] | None:
    """The weights, or None if the SDK refused the checkpoint in its own words."""
    try:
        pipeline = Pipeline.from_pretrained(folder)
        model = pipeline.model
    except (AndesError, AssemblyError):
        return None
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert pipeline.tokenizer.encode("red")
    return model.state_dict()


def copied(source: Path, folder: str) -> Path:
    return Path(shutil.copytree(source, Path(folder) / "model"))


def assert_same(found: dict[str, torch.Tensor] | None, source: Path) -> None:
    if found is not None:
        right = Pipeline.from_pretrained(source).model.state_dict()
        assert found.keys() == right.keys()
        assert [name for name in right if not torch.equal(found[name], right[name])] == []


def damage(content: bytes, data: st.DataObject, limit: int) -> bytes:
    """Flip bits, cut, insert or repeat, within the first `limit` bytes."""
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    at = data.draw(st.integers(0, max(0, min(limit, len(content)) - 1)))
    if kind == "flip":
        changed = bytearray(content)
        changed[at] ^= data.draw(st.integers(1, 255))
        return bytes(changed)
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at:]
    return content[:at] + content[at + data.draw(st.integers(1, 16)) :]


@given(data=st.data())
def test_fuzz_any_byte_of_our_layout(material, data):
    with tempfile.TemporaryDirectory() as root:
        folder = copied(material["andes"], root)
        path = folder / data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
        content = path.read_bytes()
        path.write_bytes(damage(content, data, len(content)))
        found = outcome(folder)
        if path.read_bytes() != content and path.name != "andes.json":
            assert found is None  # checksums: nothing changed may pass
        assert_same(found, material["andes"])


@given(data=st.data())
def test_fuzz_headers_of_published_safetensors(material, data):
    with tempfile.TemporaryDirectory() as root:
        folder = copied(material["shards"], root)
        path = sorted(folder.glob("*.safetensors"))[data.draw(st.integers(0, 1))]
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(damage(content, data, end))
        # a name or shape that still fits nothing else is refused; a changed weight would be another outcome
        assert_same(outcome(folder), material["shards"])


@given(data=st.data())
def test_fuzz_bin_files(material, data):
    with tempfile.TemporaryDirectory() as root:
        folder = copied(material["bin"], root)
        path = folder / "pytorch_model.bin"
        content = path.read_bytes()
        path.write_bytes(damage(content, data, len(content)))
        outcome(folder)  # the format has no checksums that torch verifies: other numbers may come, other exceptions not


def mutate(value: object, data: st.DataObject, depth: int = 0) -> object:
    """Replace, remove or rename something, somewhere in a JSON value."""
    if isinstance(value, dict) and value and (depth == 0 or data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from(sorted(value)))
        kind = data.draw(st.sampled_from(["inside", "inside", "replace", "remove", "rename"]))
        if kind == "remove":
            return {k: v for k, v in value.items() if k != key}
        if kind == "rename":
            return {(k + "x" if k == key else k): v for k, v in value.items()}
        new = mutate(value[key], data, depth + 1) if kind == "inside" else data.draw(ODD)
        return value | {key: new}
    return data.draw(ODD)


@given(data=st.data())
def test_fuzz_json_of_published_checkpoints(material, data):
    with tempfile.TemporaryDirectory() as root:
        folder = copied(material["shards"], root)
        names = ["config.json", "model.safetensors.index.json", "tokenizer_config.json"]
        path = folder / data.draw(st.sampled_from(names))
        path.write_text(json.dumps(mutate(json.loads(path.read_text()), data)))
        outcome(folder)


@given(data=st.data())
def test_fuzz_json_of_our_manifest(material, data):
    with tempfile.TemporaryDirectory() as root:
        folder = copied(material["andes"], root)
        path = folder / "andes.json"
        before = json.loads(path.read_text())
        after = mutate(before, data)
        path.write_text(json.dumps(after))
        found = outcome(folder)
        if after != before:
            assert found is None
