"""Files that are written: read again by this plugin, by `gguf`, and by llama.cpp."""

import gguf
import numpy as np
import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_gguf import Gguf, GgufExport, container
from andes_gguf.architecture import fields_of
from andes_gguf.export import GgufExporter
from andes_gguf.small import write_small
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.testing.reference import ReferenceLanguageModel, ReferenceTokenizer

IDS = [5, 77, 200, 12, 130, 9, 33, 250, 61, 18] * 8
SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
QWEN3 = {"qwen3": {"preset": "tiny", "config": SIZES}}


def pipeline(item, *more, **arguments):
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", item, *more], **arguments)


def reading(path):
    return pipeline({"gguf": {"path": str(path)}})


@torch.no_grad()
def logprobs(pipe, ids):
    model, ids = pipe.model.language_model, torch.tensor(ids)
    hidden = model.hidden_states(model.embed(ids), torch.arange(len(ids)), PackedAttention([Segment(len(ids))]))
    return torch.log_softmax(model.logits(hidden)[-1].double(), -1).numpy()


def same_weights(one, two):
    a, b = (pipe.model.language_model.state_dict() for pipe in (one, two))
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def variants():
    for name in ("llama", "qwen2", "qwen3"):
        for scaling in ("none", "linear", "yarn"):
            extra = {f"{name}.rope.scaling.type": scaling, f"{name}.rope.scaling.factor": 4.0}
            if scaling == "yarn":
                extra[f"{name}.rope.scaling.original_context_length"] = 128
                extra[f"{name}.rope.scaling.yarn_beta_fast"] = 16.0
            yield name, {"extra": extra, "tied": scaling == "none"}
    yield "llama", {"arrays": {"rope_freqs.weight": np.array([1, 1.5, 3, 8], np.float32)}}


@pytest.mark.parametrize(("name", "options"), list(variants()))
def test_written_and_read_again_a_model_is_the_same(tmp_path, name, options):
    first = reading(write_small(tmp_path / "a.gguf", name, **options))
    report = GgufExporter().export(first, tmp_path / "b.gguf")
    again = reading(tmp_path / "b.gguf")
    assert report["lossless"]
    assert {row["type"] for row in report["tensors"] if len(row["shape"]) == 2} == {"F16"}
    assert same_weights(first, again)
    one, two = (fields_of(container.read(tmp_path / f"{x}.gguf")) for x in "ab")
    # factors are written from the frequencies, which are float32
    assert two.pop("rope_factors", []) == pytest.approx(one.pop("rope_factors", []), rel=1e-6)
    assert two == one
    texts = ("the rain, the cat", "  12 Ünïcode 图\n", "<|im_end|>")
    assert [first.tokenizer.encode(t) for t in texts] == [again.tokenizer.encode(t) for t in texts]
    for key in ("eos", "pad", "vocab_size"):
        assert getattr(first.tokenizer, key) == getattr(again.tokenizer, key)
    assert first.tokenizer.placeholder("image") == again.tokenizer.placeholder("image")
    assert first.tokenizer.vocabulary.template == again.tokenizer.vocabulary.template


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "TQ1_0", "TQ2_0", "BF16"])
def test_llama_cpp_computes_what_the_dequantised_weights_do(tmp_path, llama_cpp, kind):
    path = tmp_path / "model.gguf"
    report = GgufExporter(type=kind).export(pipeline(QWEN3), path)
    row = next(r for r in report["tensors"] if r["name"] == "blk.0.attn_q.weight")
    assert row["type"] == kind
    again = reading(path)
    assert again.model.text.vocab_size == 512
    ours, theirs = logprobs(again, IDS), llama_cpp(path).logprobs(IDS, 512)
    # llama.cpp rounds the activations of a product: not at all beside F32, to 11 or 8 bits of mantissa beside F16 and
    # BF16, and to 8-bit integers per block beside quantised weights (seen: 1e-6, 1e-4, 1e-3, 5e-3)
    bound = {"F32": 1e-4, "F16": 2e-3, "BF16": 1e-2}.get(kind, 3e-2)
    assert np.abs(ours - theirs).max() < bound
    assert ours.std() > 10 * bound or kind in ("Q8_0", "Q4_0", "TQ1_0", "TQ2_0")
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999


def test_the_tokens_of_the_qwen_vocabulary_are_llama_cpps(tmp_path, llama_cpp):
    path = tmp_path / "model.gguf"
    small = {**SIZES, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 151_936}
    pipe = pipeline({"qwen3": {"preset": "0.6b", "config": {**small, "num_key_value_heads": 4,
                                                            "num_attention_heads": 4}}})  # fmt: skip
    GgufExporter(type="F16").export(pipe, path)
    server, again = llama_cpp(path), reading(path)
    texts = (
        "Hello, world!  two  spaces",
        "12345 3.14\n\n\tdef f(x):",
        "图片里有什么？ naïve",
        "<|im_end|> <img>",
        "It's 🙂",
    )
    for text in texts:
        ids = pipe.tokenizer.encode(text)
        assert server.tokenize(text) == ids
        assert again.tokenizer.encode(text) == ids
    assert again.tokenizer.placeholder("image") == pipe.tokenizer.placeholder("image")
    assert again.tokenizer.eos == pipe.tokenizer.eos
    question = [{"role": "user", "content": "Why <|im_end|>?"}]
    one, two = (p.prepare(question, think=think).ids.tolist() for p in (pipe, again) for think in (False,))
    assert one == two


@pytest.mark.parametrize(
    ("form", "kind"), [("w4_g32", "Q4_0"), ("w8", "Q8_0"), ("nm14_w4", "Q4_0"), ("ternary_g128", "Q4_0")]
)
def test_a_packed_artefact_becomes_a_file_without_loss(tmp_path, form, kind):
    pipe = pipeline(QWEN3)
    recipe = default_recipe(pipe.model, form)
    pack_model(pipe.model, recipe, tmp_path / "model.andes", plan=pipe.plan)
    packed = Pipeline.from_pretrained(tmp_path / "model.andes", backend="torch")
    report = GgufExporter().export(packed, tmp_path / "model.gguf")
    assert report["lossless"]
    assert {row["type"] for row in report["tensors"] if len(row["shape"]) == 2} == {kind}
    assert same_weights(packed, reading(tmp_path / "model.gguf"))


def test_the_report_states_the_error_of_every_tensor(tmp_path):
    pipe, path = pipeline(QWEN3), tmp_path / "model.gguf"
    report = GgufExporter(type="TQ2_0").export(pipe, path)
    state = pipe.model.language_model.state_dict()
    rows = {row["name"]: row for row in report["tensors"]}
    reader = gguf.GGUFReader(path)
    assert [t.name for t in reader.tensors] == list(rows)
    for tensor in reader.tensors:
        row = rows[tensor.name]
        assert row["type"] == tensor.tensor_type.name
        assert row["lossless"] == (row["max_error"] == 0)
    read = gguf.quants.dequantize(next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight").data, 35)
    wrong = np.abs(read - state["model.layers.1.mlp.up_proj.weight"].numpy()).max()
    assert rows["blk.1.ffn_up.weight"]["max_error"] == pytest.approx(wrong)
    assert rows["token_embd.weight"]["type"] == "F16"
    assert rows["output_norm.weight"] == {
        "name": "output_norm.weight", "type": "F32", "shape": [256], "lossless": True, "max_error": 0.0,
        "relative_error": 0.0,
    }  # fmt: skip
    assert not report["lossless"]
    assert "vision" in report["left_out"]
    assert report["bytes"] == path.stat().st_size


def test_embeddings_may_have_a_type_of_their_own(tmp_path):
    pipe = pipeline(QWEN3, {"gguf-export": {"type": "Q4_0", "embedding": "Q8_0"}})
    report = pipe.pick("exporters", "gguf").export(pipe, tmp_path / "model.gguf")
    kinds = {row["name"]: row["type"] for row in report["tensors"]}
    assert (kinds["token_embd.weight"], kinds["blk.0.attn_k.weight"]) == ("Q8_0", "Q4_0")


def test_llama_31_frequencies_are_written_as_divisors(tmp_path, llama_cpp):
    pipe = reading(write_small(tmp_path / "a.gguf", half=False))
    model = pipe.model.language_model
    config = model.config
    config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    before = logprobs(pipe, IDS)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    GgufExporter(type="F32").export(pipe, tmp_path / "b.gguf")
    ours = logprobs(pipe, IDS)
    assert np.abs(ours - before).max() > 1e-2
    assert np.abs(ours - llama_cpp(tmp_path / "b.gguf").logprobs(IDS, len(ours))).max() < 1e-4
    assert np.abs(ours - logprobs(reading(tmp_path / "b.gguf"), IDS)).max() < 1e-5


def test_what_llama_cpp_has_no_words_for_is_refused_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    other = pipeline(ReferenceLanguageModel(), ReferenceTokenizer())
    with pytest.raises(ConfigError, match="this language model cannot be written"):
        GgufExporter().export(other, out / "x.gguf")
    odd = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    with pytest.raises(ConfigError, match="rope_type 'dynamic'"):
        GgufExporter().export(pipeline({"qwen3": {"preset": "tiny", "config": odd}}), out / "x.gguf")
    with pytest.raises(CheckpointError, match=r"rows of 48 are not whole blocks of 32") as caught:
        GgufExporter(type="Q8_0").export(pipeline({"qwen3": {"preset": "tiny"}}), out / "x.gguf")
    assert "choose" in caught.value.fix
    assert not out.exists() or not list(out.iterdir())
    with pytest.raises(ValueError, match="Q5"):
        GgufExport(type="Q5_K")


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pipeline(QWEN3).save_pretrained(tmp_path / "saved")
    run = CliRunner().invoke
    done = run(app, ["export", "gguf", str(tmp_path / "saved"), str(tmp_path / "a.gguf"), "--set", "type=Q8_0"])
    assert done.exit_code == 0, done.output
    assert "blk.0.attn_q.weight" in done.output
    assert "left_out: vision encoder and projector" in done.output
    config = tmp_path / "again.toml"
    config.write_text(
        f'plugins = [{{aimv2 = {{preset = "tiny"}}}}, "mlp", {{gguf = {{path = "{tmp_path / "a.gguf"}"}}}}]'
    )
    done = run(app, ["export", "gguf", str(config), str(tmp_path / "b.gguf"), "--json"])
    assert done.exit_code == 0, done.output
    assert '"lossless": true' in done.output
    assert same_weights(reading(tmp_path / "a.gguf"), reading(tmp_path / "b.gguf"))
    for words, message in (
        (["gguff", "x", "y"], "no exporter 'gguff'"),
        (["gguf", "x", "y", "--set", "kind=Q8_0"], "unknown option 'kind'"),
        (["gguf", "x", "y", "--set", "type=Q5"], "Q5"),
        (["aimv2", "x", "y"], "no exporter 'aimv2'"),
    ):
        done = run(app, ["export", *words])
        assert done.exit_code == 1
        assert message in done.output


def test_the_page_lists_the_exporters_options():
    from pathlib import Path

    page = Path(__file__).parents[3] / "docs" / "plugins" / "gguf.md"
    if not page.is_file():
        pytest.skip("the documentation is not here")
    text = page.read_text(encoding="utf-8")
    assert "`type`" in text
    assert "`embedding`" in text
    assert Gguf.__doc__
