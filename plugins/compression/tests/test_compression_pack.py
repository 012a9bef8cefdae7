"""Artefacts: complete, exact, mapped, deterministic; anything damaged is refused with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe, groups, resolve
from andes_packing import Artefact
from andes_packing.formats import FORMATS, Codes, Grid, Integer, find
from andes_packing.header import PREAMBLE, aligned
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError, ConfigError

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
BODY = "language_model.model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.set_num_threads(1)
    return Pipeline.from_plugins(list(TINY), image={"min_size": 28}, seed=3)


@pytest.fixture(scope="module")
def packed(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "tiny.andes"
    make(pipeline, path)
    return path.read_bytes()


def make(pipeline: Pipeline, path: Path, body: str = "nm14_w4", change: dict[str, str] | None = None, **options: Any):
    recipe = default_recipe(pipeline.model, body, head="w4_g32", vision="w8") | (change or {})
    return pack_model(pipeline.model, recipe, path, plan=pipeline.plan, **options)


def rewritten(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """An artefact with another header, whole and with a right checksum, as an attacker would write it."""
    magic, version, _, length, _ = PREAMBLE.unpack(data[: PREAMBLE.size])
    header = json.loads(data[PREAMBLE.size : PREAMBLE.size + length])
    change(header)
    body = json.dumps(header).encode()
    head = PREAMBLE.pack(magic, version, 0, len(body), hashlib.sha256(body).digest()) + body
    return head.ljust(aligned(len(head)), b"\0") + data[aligned(PREAMBLE.size + length) :]


def refused(tmp_path: Path, data: bytes, match: str, **options: Any) -> None:
    path = tmp_path / "bad.andes"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        Artefact.open(path, **options)


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("body", FORMATS)
def test_every_format_dequantises_to_what_it_quantised(pipeline: Pipeline, tmp_path: Path, body: str) -> None:
    artefact = make(pipeline, tmp_path / "a.andes", body)
    artefact.verify()
    state, weights = artefact.dequantised_state(), pipeline.model.state_dict()
    assert state.keys() == weights.keys()
    for name, tensor in weights.items():
        entry = artefact.tensors.get(artefact.header.tied.get(name, name))
        assert entry is not None
        expected = tensor
        if not entry.format.startswith("raw:"):
            codes = find(entry.format).quantise(tensor.numpy().reshape(entry.matrix))
            expected = torch.from_numpy(codes.weights()).reshape(tensor.shape)
        assert torch.equal(state[name], expected), name


def test_the_default_recipe_covers_each_part_in_its_type(pipeline: Pipeline, tmp_path: Path) -> None:
    artefact = make(pipeline, tmp_path / "a.andes")
    chosen = {name: entry.format for name, entry in artefact.tensors.items()}
    assert chosen[BODY] == "nm14_w4"
    assert chosen[EMBEDDING] == "w4_g32"
    assert chosen["mlp.0.weight"] == "w8"
    assert chosen["vision_encoder.preprocessor.patchifier.proj.weight"] == "w8"  # a convolution
    assert chosen["vision_encoder.preprocessor.pos_embed"] == "f16"
    assert chosen["mlp.0.bias"] == chosen["language_model.model.norm.weight"] == "raw:float32"
    assert HEAD not in chosen
    assert artefact.header.tied == {HEAD: EMBEDDING}
    assert artefact.plan.names == ("aimv2", "mlp", "qwen3")


def test_without_a_head_type_the_head_is_as_the_body(pipeline: Pipeline) -> None:
    assert default_recipe(pipeline.model, "w4_g128")[EMBEDDING] == "w4_g128"


def test_a_head_of_its_own_is_packed_as_such(tmp_path: Path) -> None:
    untied = {"qwen3": {"preset": "tiny", "config": {"tie_word_embeddings": False}}}
    pipe = Pipeline.from_plugins([*TINY[:2], untied])
    artefact = make(pipe, tmp_path / "a.andes")
    assert artefact.header.tied == {}
    assert (artefact.tensors[HEAD].group, artefact.tensors[HEAD].format) == ("head", "w4_g32")
    assert artefact.tensors[EMBEDDING].group == "embedding"


def test_a_layer_as_wide_as_its_vocabulary_is_no_head() -> None:
    vocabulary = Pipeline.from_plugins(list(TINY)).model.text.vocab_size
    config = {"tie_word_embeddings": False, "intermediate_size": vocabulary}
    model = Pipeline.from_plugins([*TINY[:2], {"qwen3": {"preset": "tiny", "config": config}}]).model
    assert [name for name, group in groups(model).items() if group == "head"] == [HEAD]
    chosen = default_recipe(model, "nm14_w4", head="w4_g32")
    assert {form for name, form in chosen.items() if ".layers." in name} == {"nm14_w4"}


def test_packing_twice_gives_the_same_bytes(pipeline: Pipeline, packed: bytes, tmp_path: Path) -> None:
    again = make(pipeline, tmp_path / "again.andes")
    assert again.path.read_bytes() == packed
    assert again.digest == Artefact.open(again.path).digest


def test_bfloat16_weights_pack_as_their_float32_values(pipeline: Pipeline, tmp_path: Path) -> None:
    half = Pipeline.from_plugins(list(TINY), seed=3, dtype="bfloat16")
    artefact = make(half, tmp_path / "a.andes")
    weight = half.model.state_dict()[BODY].float().numpy()
    np.testing.assert_array_equal(artefact.array(BODY), find("nm14_w4").quantise(weight).weights())


def test_codes_of_a_compressor_are_stored_as_they_are(pipeline: Pipeline, tmp_path: Path) -> None:
    shape = tuple(pipeline.model.state_dict()[BODY].shape)
    values = np.zeros(shape, np.int8)
    values[:, ::4] = np.arange(shape[0])[:, None] % 15 - 7
    codes = Codes(values, np.full((shape[0], 1), 0.125, np.float16), 128)
    artefact = make(pipeline, tmp_path / "a.andes", codes={BODY: codes})
    np.testing.assert_array_equal(artefact.array(BODY), values * np.float32(0.125))
    with pytest.raises(ConfigError, match="another shape"):
        make(pipeline, tmp_path / "a.andes", codes={BODY: Codes(values[1:], codes.scales[1:], 128)})
    with pytest.raises(ConfigError, match="not packed"):
        make(pipeline, tmp_path / "a.andes", codes={"mlp.0.bias": codes})


def test_progress_counts_every_weight_once(pipeline: Pipeline, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    make(pipeline, tmp_path / "a.andes", progress=lambda name, count: seen.append((name, count)))
    assert sum(count for _, count in seen) == pipeline.model.parameter_count()
    assert len({name for name, _ in seen}) == len(seen)


# ---------------------------------------------------------------- mapped


def test_weights_are_mapped_and_aligned_not_copied(pipeline: Pipeline, tmp_path: Path) -> None:
    artefact = make(pipeline, tmp_path / "a.andes")
    assert isinstance(artefact.data.base, np.memmap)
    for name, entry in artefact.tensors.items():
        raw = entry.format.startswith("raw:")
        found = artefact.array(name) if raw else artefact.packed(name)
        assert np.shares_memory(found, artefact.data), name
        assert found.ctypes.data % 64 == 0, name
        assert not found.flags.writeable
        assert found.flags.c_contiguous


def test_raw_tensors_have_no_packed_bytes_and_unknown_ones_are_named(pipeline: Pipeline, tmp_path: Path) -> None:
    artefact = make(pipeline, tmp_path / "a.andes")
    with pytest.raises(ConfigError, match="stored as raw:float32"):
        artefact.packed("mlp.0.bias")
    with pytest.raises(ConfigError, match=r"nothing\.weight"):
        artefact.array("nothing.weight")
    np.testing.assert_array_equal(artefact.packed(HEAD), artefact.packed(EMBEDDING))


# ---------------------------------------------------------------- back into torch


def test_the_reference_runs_with_the_dequantised_weights(pipeline: Pipeline, tmp_path: Path) -> None:
    artefact = make(pipeline, tmp_path / "a.andes", "w4_g32")
    reference = Pipeline.from_pretrained(artefact.path)
    for name, tensor in artefact.dequantised_state().items():
        assert torch.equal(reference.model.state_dict()[name], tensor), name
    model = reference.model.language_model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert reference.plan.image == {"min_size": 28}
    assert reference.tokenizer.encode("a word") == pipeline.tokenizer.encode("a word")
    assert isinstance(reference.chat("hello", max_tokens=2), str)


def test_in_16_bits_the_reference_answers_like_the_model(pipeline: Pipeline, tmp_path: Path) -> None:
    recipe = {"*": "f16"}
    path = pack_model(pipeline.model, recipe, tmp_path / "a.andes", plan=pipeline.plan).path
    inputs = pipeline.prepare([{"role": "user", "content": "two words"}])
    ours, theirs = (p.session().prefill(inputs) for p in (pipeline, Pipeline.from_pretrained(path)))
    # float16 keeps 11 bits of each weight: logits of order 1 differ by their sum of rounding errors
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=5e-3)
    assert not torch.equal(ours, theirs)


def test_an_artefact_of_other_modules_than_its_plan_builds_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    options = {"preset": "tiny", "config": {"intermediate_size": 128}}
    plugins = [attrs.evolve(p, options=options) if p.name == "qwen3" else p for p in pipeline.plan.plugins]
    wider = attrs.evolve(pipeline.plan, plugins=tuple(plugins))
    recipe = default_recipe(pipeline.model, "w8")
    pack_model(pipeline.model, recipe, tmp_path / "a.andes", plan=wider)
    with pytest.raises(CheckpointError, match="does not fit"):
        _ = Pipeline.from_pretrained(tmp_path / "a.andes").model


def test_the_tokenizer_travels_inside(pipeline: Pipeline, packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.andes"
    path.write_bytes(packed)
    (tmp_path / "saved").mkdir()
    (tmp_path / "out").mkdir()
    pipeline.tokenizer.save(tmp_path / "saved")
    for file in Artefact.open(path).extract(tmp_path / "out"):
        assert file.read_bytes() == (tmp_path / "saved" / file.name).read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


# ---------------------------------------------------------------- damage


def test_an_artefact_cut_anywhere_is_refused(packed: bytes, tmp_path: Path) -> None:
    for length in (0, 1, 63, 64, 100, 5000, len(packed) // 2, len(packed) - 1):
        refused(tmp_path, packed[:length], "truncated|is no artefact")


def test_an_artefact_that_is_too_long_is_refused(packed: bytes, tmp_path: Path) -> None:
    refused(tmp_path, packed + b"\0", "longer than it says")


def test_other_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, b"PK\x03\x04" + bytes(200), "is no artefact")
    for path in (tmp_path / "absent.andes", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            Artefact.open(path)


def test_a_later_version_is_refused(packed: bytes, tmp_path: Path) -> None:
    later = packed[:8] + (2).to_bytes(4, "little") + packed[12:]
    refused(tmp_path, later, "later version")


def test_damaged_weights_are_found_by_verify_and_named(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.andes"
    path.write_bytes(packed)
    artefact = Artefact.open(path)
    at = len(packed) - artefact.header.nbytes + artefact.tensors[BODY].offset + 5
    path.write_bytes(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :])
    Artefact.open(path)  # reads no weights, so it cannot know
    with pytest.raises(CheckpointError, match=BODY.replace(".", r"\.")):
        Artefact.open(path, verify=True)


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused_or_meaningless(packed: bytes, tmp_path: Path, at: float, bit: int) -> None:
    position = int(at * len(packed))
    data = bytearray(packed)
    data[position] ^= 1 << bit
    path = tmp_path / "flipped.andes"
    path.write_bytes(data)
    try:
        artefact = Artefact.open(path, verify=True)
    except CheckpointError:
        return
    start = len(packed) - artefact.header.nbytes
    # only padding between the parts, and what the preamble reserves, may change without being seen
    places = [*artefact.tensors.values(), *artefact.header.files.values()]
    assert not any(start + p.offset <= position < start + p.offset + p.nbytes for p in places)
    (length,) = {PREAMBLE.unpack(data[: PREAMBLE.size])[3]}
    assert not PREAMBLE.size <= position < PREAMBLE.size + length


def test_a_damaged_tokenizer_is_not_extracted(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.andes"
    path.write_bytes(packed)
    artefact = Artefact.open(path)
    at = len(packed) - artefact.header.nbytes + artefact.header.files["tokenizer.json"].offset
    path.write_bytes(packed[:at] + b"?" + packed[at + 1 :])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Artefact.open(path).extract(tmp_path)


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for step in path[:-1]:
            header = header[step]
        header[path[-1]] = to

    return change


def _move(header: dict[str, Any]) -> None:
    header["tensors"][BODY]["offset"] = header["tensors"][EMBEDDING]["offset"]


def _escape(header: dict[str, Any]) -> None:
    header["files"]["../../escaped"] = header["files"].pop("tokenizer.json")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set("tensors", BODY, "nbytes", to=64), "64 bytes for shape"),
        (_set("tensors", BODY, "shape", to=[64, 4800000]), "bytes for shape"),
        (_set("tensors", BODY, "shape", to=[-64, -48]), "bytes for shape"),
        (_set("tensors", BODY, "shape", to=[3072]), "bytes for shape"),
        (_set("tensors", BODY, "shape", to="big"), "header that is none"),
        (_set("tensors", BODY, "format", to="w8"), "bytes for shape"),
        (_set("tensors", BODY, "format", to="raw:object"), "bytes for shape"),
        (_set("tensors", BODY, "offset", to=1 << 60), "overlap or lie outside"),
        (_set("tensors", BODY, "offset", to=-64), "overlap or lie outside"),
        (_set("tensors", BODY, "offset", to=7), "overlap or lie outside"),
        (_move, "overlap or lie outside"),
        (_set("formats", "nm14_w4", "low", to=-7), "was another one"),
        (_set("formats", "nm15_w4", to={}), "not known here"),
        (_set("tied", BODY, to=EMBEDDING), "tied to"),
        (_set("tied", "x", to="nowhere"), "tied to"),
        (_escape, "outside its folder"),
        (_set("nbytes", to=128), "longer than it says"),
        (_set("plan", to=[]), "header that is none"),
        (_set("surprise", to=1), "header that is none"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    packed: bytes, tmp_path: Path, change: Callable[[dict[str, Any]], None], match: str
) -> None:
    refused(tmp_path, rewritten(packed, change), match)


def test_a_header_that_is_no_object_is_refused(packed: bytes, tmp_path: Path) -> None:
    for body in (b"[]", b"{", b"\xff", b"[" * 100_000):
        head = PREAMBLE.pack(packed[:8], 1, 0, len(body), hashlib.sha256(body).digest()) + body
        refused(tmp_path, head.ljust(aligned(len(head)), b"\0"), "header that is none")


def test_a_format_of_a_plugin_is_needed_to_open_what_it_packed(pipeline: Pipeline, tmp_path: Path) -> None:
    two = Integer(name="w2_g64", group=64, grid=Grid(bits=2, low=-2, high=1))
    path = make(pipeline, tmp_path / "a.andes", change={BODY: "w2_g64"}, formats=[two]).path
    weight = pipeline.model.state_dict()[BODY].numpy()
    np.testing.assert_array_equal(Artefact.open(path, formats=[two]).array(BODY), two.quantise(weight).weights())
    with pytest.raises(CheckpointError, match="install the plugin"):
        Artefact.open(path)
    with pytest.raises(CheckpointError, match="was another one"):
        Artefact.open(path, formats=[attrs.evolve(two, grid=Grid(bits=2, low=-1, high=2))])


# ---------------------------------------------------------------- failures leave nothing behind


def test_a_failure_leaves_the_earlier_artefact_and_nothing_else(tmp_path: Path) -> None:
    pipe = Pipeline.from_plugins(list(TINY))
    artefact = make(pipe, tmp_path / "a.andes")
    before = artefact.path.read_bytes()
    with torch.no_grad():
        pipe.model.state_dict()[BODY][1, 2] = torch.nan
    with pytest.raises(CheckpointError, match=r"q_proj\.weight \(nm14_w4\)"):
        make(pipe, tmp_path / "a.andes")
    assert artefact.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.andes"]


def test_a_folder_is_not_overwritten(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        make(pipeline, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        make(pipeline, tmp_path / "file" / "a.andes")


def test_a_model_without_weights_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without weights"):
        pack_model(pipeline.meta_model(), {"*": "w8"}, tmp_path / "a.andes", plan=pipeline.plan)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"*": "nm14w4"}, "did you mean"),
        ({"*": "w8", "*.no_such_matrix.*": "w8"}, "matches no matrix"),
        ({"*": "w8", "mlp.0.bias": "w8"}, "matches no matrix"),
        ({"mlp.*": "w8"}, "no format for some matrices"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(pipeline: Pipeline, recipe: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve(pipeline.model, recipe)


def test_the_last_pattern_wins(pipeline: Pipeline) -> None:
    chosen = resolve(pipeline.model, {"*": "w8", "*.q_proj.*": "w4_g32", BODY: "f16"})
    assert chosen[BODY] == "f16"
    assert chosen[BODY.replace(".0.", ".1.")] == "w4_g32"
    assert chosen["mlp.0.weight"] == "w8"
