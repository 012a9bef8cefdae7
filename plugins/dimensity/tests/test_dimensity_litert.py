"""With LiteRT itself, where its environment is here: a file holds our numbers, and computes what we compute."""

import ctypes
import json
import subprocess

import numpy as np
import pytest
import torch
from andes_adapters.reading import read_adapter
from andes_dimensity import check as checking
from andes_dimensity.adapters import adapter_file
from andes_dimensity.bundle import identity
from andes_dimensity.check import both, check, check_graphs
from andes_dimensity.compiler import compiler
from andes_dimensity.conversations import read, some
from andes_dimensity.environment import HERE, is_ready, python, workplace
from andes_dimensity.export import export
from andes_dimensity.npu import logits
from andes_dimensity.options import Options
from andes_dimensity.reference import DimensityBackend
from PIL import Image
from safetensors.torch import save_file

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError, ConfigError, InputError

here = pytest.mark.skipif(not is_ready(), reason="andes deploy setup dimensity was not run here")


@here
@pytest.mark.slow
def test_a_bundle_of_four_bits_holds_our_codes_and_answers_as_we_do(pipe, tmp_path):
    out = tmp_path / "tiny.litertlm"
    told = export(pipe, out, Options(weights="w4", rows=64, prompt=16, picture="56x56"))
    assert told["weights_exact"] == 1.0
    assert set(told["files"]) == {"text", "embedder", "vision", "projector"}
    with some(pipe, 2) as talks:
        report = check(pipe, out, talks)
    lines = {line.what: line for line in report.lines}
    assert report.fine
    assert lines["codes and scales: text"].figure == 1.0
    assert lines["graph decode"].figure <= 1e-5
    assert lines["next token of decode"].figure == 1.0
    assert lines["conversations"].figure == 1.0
    assert lines["MediaTek's own compiler"].fine is None
    assert lines["MediaTek's plugin: graph vision"].figure == 1.0
    with pytest.raises(ConfigError, match="takes no adapters"):
        adapter_file(pipe, None, out, tmp_path / "none.tflite")
    with pytest.raises(ConfigError, match="takes no adapters"):
        check(pipe, out, talks, adapters=[tmp_path / "any"])
    # another model's file
    other = type(pipe).from_plugins([{p.name: p.options} for p in pipe.plan.plugins], seed=9)
    wrong = {line.what: line for line in check(other, out).lines}
    assert wrong["codes and scales: text"].fine is False
    assert wrong["numbers of the base"].fine is False
    # files cut short or edited
    whole = out.read_bytes()
    at = whole.index(b"im_start")
    edited = whole[:at] + b"IM" + whole[at + 2 :]
    for name, content, part in (
        ("cut", whole[: 1 << 15], "tokenizer"), ("less", whole[:-1], "projector"), ("edited", edited, "metadata"),
        ("options", whole.replace(b'"rows": 64', b'"rows": 32'), "options"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="cut short or edited") as caught:
            check(pipe, tmp_path / name)
        assert part in caught.value.why


@here
@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["aimv2", "siglip2"])
def test_pictures_of_any_shape_go_through_the_graph_that_holds_them(encoder, tmp_path):
    plugins = [{encoder: {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    pipe, out = Pipeline.from_plugins(plugins, seed=3), tmp_path / "tiny.litertlm"
    options = Options(weights="w4", rows=96, prompt=16, buckets="4,16")
    told = export(pipe, out, options)
    assert told["weights_exact"] == 1.0
    assert told["buckets"] == [4, 16]
    with some(pipe, 6) as talks:
        report = check(pipe, out, talks)
    lines = {line.what: line for line in report.lines}
    assert report.fine
    for tokens in (4, 16):
        assert lines[f"graph vision_{tokens}"].figure <= 1e-5
        assert lines[f"graph projector_{tokens}"].figure <= 1e-5
        assert lines[f"conversations, {tokens} tokens a picture"].figure == 1.0
    assert lines["graph end of a picture"].figure == 0.0
    if compiler() is not None:
        assert lines["MediaTek's plugin: graph vision"].figure == 1.0
    # a picture that fills neither graph: LiteRT-LM scales it to 5 x 3 tokens, and both sides see those
    strip = tmp_path / "strip.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (30, 50, 3), np.uint8)).save(strip)
    ask = [{"type": "image", "path": str(strip)}, {"type": "text", "text": "What is it?"}]
    compiled = DimensityBackend(options).compile(pipe.model, device="cpu", dtype="float32")
    with workplace() as place:
        theirs, mine = both(pipe, compiled, out, place, [[{"role": "user", "content": ask}]], lambda _: None, None, 16)
    assert theirs == mine


@here
@pytest.mark.slow
def test_operators_that_the_plugin_refuses_are_told_with_their_layers(pipe, tmp_path):
    export(pipe, tmp_path / "a.tflite", Options(rows=32, prompt=8))  # layout cpu: the cache is written in the graph
    line = check_graphs(tmp_path / "a.tflite").lines[0]
    assert line.fine is False
    assert "8 DYNAMIC_UPDATE_SLICE (layer 0, layer 1)" in line.value
    assert "GATHER_ND (before the layers)" in line.value


def saved(pipe, folder, rank=4, roles="qkvo"):
    """An adapter of random numbers, as peft saves it."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for n in range(pipe.model.text.layers):
        for role in roles:
            name = f"model.layers.{n}.self_attn.{role}_proj"
            rows, columns = pipe.model.language_model.get_submodule(name).weight.shape
            at = f"base_model.model.{name}.lora"
            tensors[f"{at}_A.weight"] = torch.randn(rank, columns, generator=generator)
            tensors[f"{at}_B.weight"] = torch.randn(rows, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [f"{role}_proj" for role in roles]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@here
@pytest.mark.slow
def test_adapters_are_attached_on_both_sides(pipe, tmp_path):
    out = tmp_path / "tiny.litertlm"
    export(pipe, out, Options(rows=64, prompt=16, picture="28x28", lora=16))
    folder = saved(pipe, tmp_path / "sums")
    talk = [[{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}]]
    report = check(pipe, out, talk, adapters=[folder])
    lines = {line.what: line for line in report.lines}
    assert report.fine
    assert lines["graph decode"].figure <= 1e-5  # with a random adapter in it
    assert lines["conversations with adapter sums"].figure == 1.0
    compiled = DimensityBackend(Options(rows=64, prompt=16, lora=16)).compile(pipe.model, device="cpu", dtype="float32")
    with workplace() as place:
        plain, _ = both(pipe, compiled, out, place, talk, lambda _: None)
        adapter = read_adapter("sums", folder, pipe.model.language_model)
        adapted, _ = both(pipe, compiled, out, place, talk, lambda _: None, adapter)
    assert plain != adapted
    told = adapter_file(pipe, folder, out, tmp_path / "sums.tflite")
    assert told["rank"] == 16
    assert told["numbers"] == identity(pipe)["numbers"]
    assert told["numbers"].encode() in (tmp_path / "sums.tflite").read_bytes()
    other = type(pipe).from_plugins([{p.name: p.options} for p in pipe.plan.plugins], seed=9)
    with pytest.raises(ConfigError, match="of another base"):
        adapter_file(other, folder, out, tmp_path / "other.tflite")
    wide = saved(pipe, tmp_path / "wide", rank=20)
    with pytest.raises(ConfigError, match="rank 20"):
        adapter_file(pipe, wide, out, tmp_path / "other.tflite")
    assert not (tmp_path / "other.tflite").exists()


def trained_on(pipe, grid, scales):
    """Layers of the model as training left them: codes and a range of the input, a scale for each by its name."""
    for name, scale in scales.items():
        old = pipe.model.language_model.get_submodule(name)
        pipe.model.language_model.set_submodule(name, grid(old, scale))
    return pipe


@here
@pytest.mark.slow
@pytest.mark.parametrize(("options", "bound"), [({}, 1e-5), ({"activations": "a16"}, 0.01), ({"lora": 16}, 1e-5)])
def test_graphs_for_the_npu_compute_what_the_reference_computes(options, bound, pipe, grid, tmp_path):
    at = "model.layers.0.self_attn."
    # three matrices of one input; k and v are equal, so they are one in the file
    scales = {f"{at}q_proj": 2e-4, f"{at}k_proj": 3e-4, f"{at}v_proj": 3e-4, "model.layers.1.mlp.down_proj": 1e-4}
    pipe = trained_on(pipe, grid, scales)
    made = Options(rows=32, prompt=8, layout="npu", **options)
    told = export(pipe, tmp_path / "a.tflite", made)
    assert told["weights_exact"] == 1.0
    got, want = logits(pipe, tmp_path / "a.tflite", made, count=20)
    assert np.abs(got - want).max() <= bound * np.abs(want).max()
    assert check_graphs(tmp_path / "a.tflite").lines[0].figure == 1.0
    if "activations" in options:
        facts = told["files"]["text"]["activations"]
        assert (facts["exact"], facts["trained"], facts["other"]) == (facts["scales"], 3, [])


@here
def test_the_environment_has_what_is_pinned():
    told = subprocess.run(
        [python(), "-m", "pip", "list", "--format", "json"], capture_output=True, check=True, text=True
    )
    found = {p["name"].lower().replace("_", "-"): p["version"] for p in json.loads(told.stdout)}
    assert (found["litert-torch"], found["litert-lm-api"]) == ("0.10.0", "0.18.1")


@here
@pytest.mark.parametrize("content", [b"", b"LITERTLM", b"ANDESPAK" + bytes(100), b"LITERTLM" + bytes(5000)])
def test_files_that_are_no_bundles_are_refused(content, pipe, tmp_path):
    file = tmp_path / "model.litertlm"
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        check(pipe, file)


def test_static_activations_are_for_graphs_of_the_npu(pipe, tmp_path):
    for name, options in (
        ("a.litertlm", Options(activations="a16", rows=32)),
        ("a.tflite", Options(activations="a16", rows=32)),
        ("a.tflite", Options(activations="a8", rows=32, layout="npu")),
    ):
        with pytest.raises(ConfigError, match="cannot write activations"):
            export(pipe, tmp_path / name, options)


def test_conversations_of_a_file(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    ask = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}
    lines = [
        {"messages": [ask, {"role": "assistant", "content": "It."}]},
        {"messages": [{"role": "user", "content": "x"}]},
    ]
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    first, second = read(file, 10)
    assert first == [
        {"role": "user", "content": [{"type": "image", "path": str(tmp_path / "a.png")}, ask["content"][1]]}
    ]
    assert second == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert len(read(file, 1)) == 1
    assert checking._ours(first[0])["content"] == [
        {"type": "image", "image": str(tmp_path / "a.png")},
        ask["content"][1],
    ]
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.jsonl", 1)


def test_made_up_pictures_have_the_size_that_the_model_sees(pipe):
    sizes = []
    with some(pipe, 2) as talks:
        for talk in talks:
            with Image.open(talk[0]["content"][0]["path"]) as picture:
                sizes.append(picture.size)
    side = max(pipe.processor.preprocessor.min_size, pipe.processor.preprocessor.block)
    assert sizes == [(side, side)] * 2


def test_the_stand_in_is_c_that_a_compiler_takes_without_a_warning(tmp_path):
    found = compiler()
    if found is None:
        pytest.skip("no C compiler")
    strict = [found, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(HERE / "standin.c")]
    done = subprocess.run([*strict, "-o", str(tmp_path / "a.so")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(tmp_path / "a.so"))
    version = (ctypes.c_uint8 * 3)()
    assert library.Neuron_getVersion(version) == 0
    assert list(version) == [9, 0, 3]
    assert library.NeuronExecution_compute() == 1  # what needs a device is refused


@here
def test_graphs_that_are_none_are_refused(tmp_path):
    file = tmp_path / "a.tflite"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"no \.tflite"):
        check_graphs(file)
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_graphs(tmp_path / "none.tflite")
