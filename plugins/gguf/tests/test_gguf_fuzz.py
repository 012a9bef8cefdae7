"""Damaged GGUF files: an error of ours, or a model whose other tensors are what they were."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_gguf import Gguf, container
from andes_gguf.architecture import stored_name
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError
from andes_sdk.testing.damage import CASES, altered, catalogue, damaged

RAW = Path(Gguf.testing["path"]).read_bytes()
WHOLE = container.read(Gguf.testing["path"])
START = min(t.offset for t in WHOLE.tensors.values())
DATA = {name: slice(t.offset, t.offset + t.nbytes) for name, t in WHOLE.tensors.items()}
NUMBERS = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("fuzz")


def opened(folder: Path, content: bytes) -> Pipeline | None:
    """The pipeline with its model built, or None where the file was refused."""
    path = folder / f"{next(NUMBERS)}.gguf"
    path.write_bytes(content)
    try:
        pipe = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"gguf": {"path": str(path)}}], seed=1)
        ids = pipe.prepare("red and blue").ids.tolist()
        assert all(0 <= i < pipe.tokenizer.vocab_size for i in ids)
        assert not any(t.is_meta for t in [*pipe.model.parameters(), *pipe.model.buffers()])
    except (AndesError, AssemblyError):
        return None
    finally:
        path.unlink()
    return pipe


@pytest.fixture(scope="module")
def right(folder: Path) -> dict[str, torch.Tensor]:
    pipe = opened(folder, RAW)
    assert pipe is not None
    return dict(pipe.model.language_model.named_parameters())


@CASES
@given(data=st.data())
def test_fuzz_any_byte_of_gguf_files(folder, right, data):
    """Weights have no checksum in this format: what changed is seen in its tensor, and nowhere else."""
    content = data.draw(damaged(RAW, data.draw(st.sampled_from([None, START]))))
    pipe = opened(folder, content)
    if pipe is None or len(content) != len(RAW) or content[:START] != RAW[:START]:
        return
    found = dict(pipe.model.language_model.named_parameters())
    assert found.keys() == right.keys()
    differing = {
        str(stored_name(n)) for n in found if not torch.equal(found[n].view(torch.int32), right[n].view(torch.int32))
    }
    assert differing == {name for name, part in DATA.items() if content[part] != RAW[part]}


def packed(value: Any) -> tuple[int, bytes]:
    """Type and bytes of a value of GGUF; a list takes the type of its first item."""
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int() if -(1 << 63) <= value < 1 << 63:
            return (4, struct.pack("<I", value)) if 0 <= value < 1 << 32 else (11, struct.pack("<q", value))
        case float() | int():
            return 6, struct.pack("<f", value) if abs(value) < 1e38 else struct.pack("<I", 0x7F800000)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return 8, struct.pack("<Q", len(text)) + text
        case list():
            items = [packed(v) for v in value]
            kind = items[0][0] if items else 4
            kept = [body for k, body in items if k == kind]
            return 9, struct.pack("<IQ", kind, len(kept)) + b"".join(kept)
    return packed("" if value is None else str(value))


def rewritten(metadata: dict[str, Any], tensors: dict[str, Any]) -> bytes:
    """The file with other metadata and other heads of its tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, body = packed(value)
        head += packed(key)[1] + struct.pack("<I", kind) + body
    for name, (shape, kind, offset) in tensors.items():
        head += packed(name)[1] + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n % 2**64) for n in shape)
        head += struct.pack("<IQ", kind % 2**32, offset % 2**64)
    return head + bytes(-len(head) % 32) + RAW[START:]


HEADS = {n: (list(t.shape[::-1]), int(t.kind), t.offset - START) for n, t in WHOLE.tensors.items()}


def test_the_rewritten_file_of_these_tests_is_right(folder, right):
    pipe = opened(folder, rewritten(dict(WHOLE.metadata), HEADS))
    assert pipe is not None
    assert all(torch.equal(tensor, right[name]) for name, tensor in pipe.model.language_model.named_parameters())


@CASES
@given(metadata=altered(dict(WHOLE.metadata)))
def test_fuzz_metadata_of_gguf_files(folder, right, metadata):
    if not isinstance(metadata, dict):
        return
    pipe = opened(folder, rewritten(metadata, HEADS))
    if pipe is not None:
        found = dict(pipe.model.language_model.named_parameters())
        assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in right.items()}


@CASES
@given(data=st.data())
def test_fuzz_heads_of_tensors_in_gguf_files(folder, right, data):
    """Other sizes, types and places, some of which fit the file."""
    heads = dict(HEADS)
    name = data.draw(st.sampled_from(sorted(heads)))
    shape, kind, offset = heads.pop(name)
    odd = st.sampled_from([0, 1, 2, 31, 32, 64, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    change = data.draw(st.sampled_from(["shape", "kind", "offset", "name", "gone"]))
    if change == "shape":
        shape = data.draw(st.lists(odd, min_size=0, max_size=5) | st.permutations(shape) | st.just([*shape, 1]))
    kind = data.draw(st.integers(0, 42)) if change == "kind" else kind
    offset = data.draw(odd) if change == "offset" else offset
    if change != "gone":
        heads[data.draw(st.sampled_from(["", "x", *heads])) if change == "name" else name] = (shape, kind, offset)
    pipe = opened(folder, rewritten(dict(WHOLE.metadata), heads))
    if pipe is not None:
        found = dict(pipe.model.language_model.named_parameters())
        assert {n: tensor.shape for n, tensor in found.items()} == {n: t.shape for n, t in right.items()}
