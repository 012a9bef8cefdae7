"""Files as they are and as they may be damaged; `gguf`'s own reader is the oracle."""

import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from andes_gguf import Gguf, architecture, container
from andes_gguf.small import write_small
from andes_gguf.vocabulary import from_metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, CheckpointError, ConfigError

TINY = Gguf.testing["path"]
RAW = Path(TINY).read_bytes()


def with_small(tmp_path, architecture="llama", **options):
    return Gguf(path=str(write_small(tmp_path / "model.gguf", architecture, **options)))


def test_metadata_and_tensors_are_those_that_gguf_reads():
    ours, theirs = container.read(TINY), gguf.GGUFReader(TINY)
    pairs = {key: f.contents() for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
    assert dict(ours.metadata) == pairs
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.array(tensor.name), expected)


def test_values_of_every_type_are_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    made = {"u8": 200, "i8": -3, "u16": 60000, "i16": -3, "u32": 2**32 - 1, "i32": -3, "u64": 2**63, "i64": -(2**62)}
    kinds = {"u": "uint", "i": "int"}
    for key, value in made.items():
        getattr(writer, f"add_{kinds[key[0]]}{key[1:]}")(key, value)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "图 🙂")
    lists = {
        "texts": ["a", "", "é"],
        "numbers": [1, -2],
        "floats": [0.5, 0.25],
        "flags": [True, False],
        "deep": [[1], [2]],
    }
    for key, value in lists.items():
        writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = dict(container.read(tmp_path / "x.gguf").metadata)
    assert found.pop("general.architecture") == "llama"
    assert found == {**made, "f32": 0.5, "f64": 0.1, "yes": True, "text": "图 🙂", **lists}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is no GGUF file"),
        (b"PK\x03\x04" + bytes(100), "is no GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "has version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60) + bytes(100), "is truncated or damaged"),
        # an array of 2^60 strings
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**60),
            "is truncated or damaged",
        ),
        (RAW[:-1], "is truncated or damaged"),
        (RAW[: len(RAW) // 2], "is truncated or damaged"),
    ],
    ids=["empty", "zip", "version 1", "big-endian", "long key", "long array", "last byte", "half"],
)
def test_what_is_no_whole_file_is_refused(tmp_path, raw, message):
    (tmp_path / "x.gguf").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        container.read(tmp_path / "x.gguf")


def test_a_file_that_is_not_there_is_one_of_all_problems_of_the_list():
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins(["aimv2", "mlp", {"gguf": {"path": "nowhere.gguf"}}, "no-such-plugin"])
    assert "nowhere.gguf: cannot be read" in str(caught.value)
    assert len(caught.value.problems) == 2


def usable(path):
    """Everything that reads a file, short of the model."""
    file = container.read(path)
    architecture.fields_of(file)
    from_metadata(file.metadata, str(path))


@settings(max_examples=150)
@given(where=st.integers(0, len(RAW) - 1))
def test_cut_anywhere_a_file_is_refused(tmp_path_factory, where):
    path = tmp_path_factory.mktemp("cut") / "x.gguf"
    path.write_bytes(RAW[:where])
    with pytest.raises(CheckpointError):
        container.read(path)


HEAD = RAW.index(b"blk.0.attn_q.weight")


@settings(max_examples=200)
@given(where=st.integers(0, HEAD), value=st.integers(0, 255))
def test_with_any_byte_of_the_header_changed_a_file_is_refused_or_read(tmp_path_factory, where, value):
    path = tmp_path_factory.mktemp("flip") / "x.gguf"
    path.write_bytes(RAW[:where] + bytes([value]) + RAW[where + 1 :])
    try:
        usable(path)
    except (CheckpointError, ConfigError):
        return


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.block_count": None}, "lacks llama.block_count"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "lacks llama.attention.layer_norm_rms_epsilon"),
        ({"llama.attention.sliding_window": 128}, "has llama.attention.sliding_window = 128"),
        ({"llama.expert_count": 8}, "has llama.expert_count = 8"),
        ({"llama.some_new_rule": 1.5}, "has llama.some_new_rule = 1.5"),
        ({"llama.rope.dimension_count": 4}, "has llama.rope.dimension_count 4, heads of 8"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "longrope"),
        ({"llama.attention.head_count_kv": 3}, "3 KV heads for 4 query heads"),
        ({"llama.block_count": 10**9}, "no tensor blk.999999999"),
        ({"llama.attention.head_count": 0}, "has metadata that cannot be|has sizes that cannot be"),
        ({"llama.rope.freq_base": "fast"}, "has metadata that cannot be"),
        ({"split.count": 2}, "llama-gguf-split"),
    ],
)
def test_metadata_that_cannot_be_computed_is_refused_before_anything_is_built(tmp_path, extra, message):
    with pytest.raises(CheckpointError) as caught:
        with_small(tmp_path, extra=extra)
    assert re.search(message, str(caught.value))


def test_values_that_change_nothing_are_accepted(tmp_path):
    extra = {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.attention.causal": True}
    assert with_small(tmp_path, extra=extra).config == Gguf(path=TINY).config


def test_another_architecture_is_named(tmp_path):
    path = write_small(tmp_path / "x.gguf", "gemma3")
    with pytest.raises(CheckpointError, match="has the architecture 'gemma3'"):
        Gguf(path=str(path))


def test_tensors_that_are_missing_or_too_many_are_all_named(tmp_path):
    more = {"blk.0.attn_q_norm.weight": np.ones(8, np.float32), "blk.1.attn_q.bias": np.ones(32, np.float32)}
    plugin = with_small(tmp_path, arrays=more)
    with pytest.raises(CheckpointError) as caught:
        plugin.andes_language_model()
    assert "blk.0.attn_q_norm.weight: extra" in str(caught.value)
    assert "blk.1.attn_q.bias: extra" in str(caught.value)
    # a bias at the first layer says that there is one at every layer, at o too
    plugin = with_small(tmp_path, arrays={"blk.0.attn_q.bias": np.ones(32, np.float32)})
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_output\.bias: missing"):
        plugin.andes_language_model()


def test_on_the_meta_device_no_weight_is_read(tmp_path):
    import torch

    plugin = with_small(tmp_path)
    (tmp_path / "model.gguf").unlink()
    with torch.device("meta"):
        model = plugin.andes_language_model()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with pytest.raises(CheckpointError, match="cannot be read"):
        plugin.andes_language_model()


def test_sizes_that_are_not_those_of_the_file_are_refused():
    sizes = dict(Gguf(path=TINY).config)
    assert Gguf(path=TINY, config=sizes).config == sizes
    with pytest.raises(ConfigError, match="is not that of the file: head_dim"):
        Gguf(path=TINY, config={**sizes, "head_dim": 16})
    with pytest.raises(ConfigError, match="no file is given"):
        Gguf()
    with pytest.raises(ConfigError, match="vocab_size is missing; colour is unknown; head_dim is '8'"):
        Gguf(config={**{k: v for k, v in sizes.items() if k != "vocab_size"}, "colour": 1, "head_dim": "8"})


def test_names_are_those_of_gguf():
    for kind in ("LLAMA", "QWEN2", "QWEN3"):
        table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind], 3)
        for name in ("model.embed_tokens", "model.norm", "lm_head", "model.layers.2.self_attn.q_proj",
                     "model.layers.2.self_attn.k_proj", "model.layers.2.self_attn.v_proj",
                     "model.layers.2.self_attn.o_proj", "model.layers.2.input_layernorm",
                     "model.layers.2.post_attention_layernorm", "model.layers.2.mlp.gate_proj",
                     "model.layers.2.mlp.up_proj", "model.layers.2.mlp.down_proj"):  # fmt: skip
            assert architecture.stored_name(f"{name}.weight") == table.get_name(f"{name}.weight", [".weight"])
    for norm in ("q_norm", "k_norm"):
        name = f"model.layers.1.self_attn.{norm}.weight"
        assert architecture.stored_name(name) == table.get_name(name, [".weight"])
