"""Damaged packed files: an error of ours, or the plan and the weights that were packed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_packing.header import PREAMBLE, aligned
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError
from andes_sdk.testing.damage import CASES, altered, catalogue, damaged

TINY: list[Any] = [{"siglip2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("packed") / "whole.andes"
    pipeline = Pipeline.from_plugins(TINY, seed=3)
    pack_model(pipeline.model, default_recipe(pipeline.model, "w4_g32"), path, plan=pipeline.plan)
    return path


@pytest.fixture(scope="module")
def raw(packed: Path) -> bytes:
    return packed.read_bytes()


@pytest.fixture(scope="module")
def right(packed: Path) -> Pipeline:
    return Pipeline.from_pretrained(packed, verify=True)


def opened(path: Path, content: bytes, *, verify: bool) -> Pipeline | None:
    """The pipeline with its model built, or None where the file was refused."""
    path.unlink(missing_ok=True)  # a file that is mapped is not written to
    path.write_bytes(content)
    try:
        pipe = Pipeline.from_pretrained(path, verify=verify)
        assert pipe.tokenizer.decode(pipe.tokenizer.encode("red")) == "red"
        assert not any(t.is_meta for t in [*pipe.model.parameters(), *pipe.model.buffers()])
    except (AndesError, AssemblyError):
        return None
    return pipe


def differing(found: Pipeline, right: Pipeline) -> list[str]:
    one, other = found.model.state_dict(), right.model.state_dict()
    assert one.keys() == other.keys()
    return [name for name in other if not torch.equal(one[name], other[name])]


@CASES
@given(data=st.data(), verify=st.booleans())
def test_fuzz_any_byte_of_packed_files(packed, raw, right, data, verify):
    """What opens has the plan that was saved; with `verify` also the weights, else only others where bytes changed."""
    start = aligned(PREAMBLE.size + PREAMBLE.unpack(raw[: PREAMBLE.size])[3])
    content = data.draw(damaged(raw, data.draw(st.sampled_from([None, start]))))
    found = opened(packed.with_name("fuzz.andes"), content, verify=verify)
    if found is None:
        assert content != raw
        return
    assert found.plan == right.plan
    assert len(content) == len(raw)
    places = {**found.artefact.tensors, **found.artefact.header.files}
    parts = {n: slice(start + p.offset, start + p.offset + p.nbytes) for n, p in places.items()}
    changed = {name for name, part in parts.items() if content[part] != raw[part]}
    assert not (verify and changed)
    tied = {alias for alias, name in found.artefact.header.tied.items() if name in changed}
    assert set(differing(found, right)) <= changed | tied


def with_header(raw: bytes, header: Any) -> bytes:
    """An artefact with another header and its right checksum, as a stranger may write it."""
    magic, version, zero, length, _ = PREAMBLE.unpack(raw[: PREAMBLE.size])
    body = json.dumps(header).encode()
    head = PREAMBLE.pack(magic, version, zero, len(body), hashlib.sha256(body).digest()) + body
    return head.ljust(aligned(len(head)), b"\0") + raw[aligned(PREAMBLE.size + length) :]


@CASES
@given(data=st.data())
def test_fuzz_headers_of_packed_files(packed, raw, right, data):
    """A header whose checksum is right: what opens is a whole model, of the plan that the header names."""
    header = json.loads(raw[PREAMBLE.size : PREAMBLE.size + PREAMBLE.unpack(raw[: PREAMBLE.size])[3]])
    part = data.draw(st.sampled_from(sorted(header)))
    changed = {**header, part: data.draw(altered(header[part]))}
    found = opened(packed.with_name("fuzz.andes"), with_header(raw, changed), verify=True)
    if found is not None:
        names = [p["name"] for p in changed["plan"]["plugins"]]
        assert list(found.plan.names) == names
        if changed["plan"] == header["plan"]:
            assert not differing(found, right)
