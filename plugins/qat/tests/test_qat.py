"""Grids by hand, gradients by hand, and the whole way: train, take out, record, pack, open; the same bits all along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from andes_compression.compress import recipe_for, write
from andes_packing import Artefact
from andes_packing.formats import FORMATS, find
from andes_qat.compressors import gptq, nearest
from andes_qat.fake import codes_of, plain_scale, rounded, rounded_input
from andes_qat.grids import grid
from andes_qat.layers import HeldLinear, RoundLinear, put_in
from andes_qat.record import read_record
from andes_qat.stage import QATStage
from andes_training.loop import train
from andes_training.recipe import load_recipe
from attrs import evolve
from safetensors.torch import load_file, save_file
from torch import nn

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, CheckpointError, ConfigError, TrainingError
from andes_sdk.numbers import numbers_of
from andes_sdk.testing.material import answer_to_everything, conversation

VISION: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp"]
QUERY = "language_model.model.layers.0.self_attn.q_proj"
MODEL: list[Any] = [*VISION, {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- grids


def test_absmean_is_the_rule_of_bitnet_on_ternary_grids_and_the_largest_elsewhere() -> None:
    weight = torch.tensor([[0.5, -1.0, 0.25, 0.25] + [0.0] * 124])
    scale = plain_scale(weight, None, grid("ternary_g128", ""))
    assert float(scale) == float(np.float16(2.0 / 128))
    four = plain_scale(weight, None, grid("w4_g128", ""))
    assert float(four) == float(np.float16(1.0 / 7))
    mask = torch.zeros(1, 128, dtype=torch.bool)
    mask[0, ::4] = True  # of every four the first
    assert float(plain_scale(weight, mask, grid("nm14_w2", ""))) == float(np.float16(0.5 / 3))


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "f16"])
def test_codes_at_given_scales_are_those_of_the_format(name: str) -> None:
    target, weight = grid(name, ""), noise(20, 256)
    wanted = target.form.quantise(weight.numpy())
    mask = None if not target.sparse else torch.from_numpy(wanted.values != 0)
    if name in ("nm14_w4", "nm28_w4"):  # survivors may be rounded to zero there: take the magnitudes
        from andes_sparsity.masks import keep_mask

        mask = keep_mask(weight.abs(), target.n, target.m)
    codes, scales = codes_of(weight, torch.from_numpy(wanted.scales.astype(np.float32)), mask, target)
    assert np.array_equal(scales.numpy(), wanted.scales)
    # the format multiplies with 1 / scale: a tie may fall to the other side, which no value of this noise does
    assert np.array_equal(codes.numpy(), wanted.values)


def test_three_bits_stay_within_minus_four_and_three_and_fit_the_four_bit_format() -> None:
    target, weight = grid("w3_g32", ""), noise(16, 64)
    codes = nearest(weight, target)
    assert (codes.values.min(), codes.values.max()) >= (-4, 3)
    assert codes.values.max() <= 3
    assert np.array_equal(find("w4_g32").unpack(find("w4_g32").pack(codes), 16, 64).values, codes.values)


def test_gradients_of_lsq_and_seq_are_those_of_their_papers() -> None:
    # one group of the grid -1, 0, 1 at scale 0.5: ratios 0.4, -0.8, 1.3, -2.6 and zeros
    weight = torch.zeros(1, 128)
    weight[0, :4] = torch.tensor([0.2, -0.4, 0.65, -1.3])
    target, upstream = grid("ternary_g128", ""), torch.zeros(1, 128)
    upstream[0, :4] = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    gain = 128**-0.5
    # code - ratio inside, code outside; codes are 0, -1, 1, -1
    for rule, scale, passes in (
        ("lsq", -0.4 * 1 + (-1 + 0.8) * 10 + 1 * 100 - 1 * 1000, [1.0, 10.0, 0.0, 0.0]),
        ("seq", -0.4 * 1 + (-1 + 0.8) * 10 + (1 - 1.3) * 100 - 1 * 1000, [1.0, 10.0, 100.0, 0.0]),
    ):
        w, s = weight.clone().requires_grad_(), torch.full((1, 1), 0.5).requires_grad_()
        out = rounded(w, s, None, target, rule)
        assert out[0, :4].tolist() == [0.0, -0.5, 0.5, -0.5]
        out.backward(upstream)
        assert w.grad is not None
        assert s.grad is not None
        assert w.grad[0, :4].tolist() == passes
        assert float(s.grad) == pytest.approx(scale * gain, rel=1e-5)


def test_inputs_are_rounded_to_even_steps_of_one_scale_and_clipped() -> None:
    x = torch.tensor([0.04, 0.06, -12.9, 20.0])
    assert torch.allclose(rounded_input(x, torch.tensor(0.1), 8), torch.tensor([0.0, 0.1, -12.8, 12.7]))


def test_a_layer_measures_its_input_and_rounds_afterwards() -> None:
    layer = nn.Linear(128, 16)
    one = put_in(layer, grid("w8", ""), "lsq", 8, "calibrated", None)
    assert isinstance(layer, RoundLinear)
    layer(torch.tensor([[2.0, -6.35] + [0.0] * 126]))
    one.observing = False
    one.settle_input("layer")
    assert one.input_range() is not None
    assert one.input_range().scale == pytest.approx(0.05)  # type: ignore[union-attr]
    other = put_in(nn.Linear(128, 16), grid("w8", ""), "lsq", 8, "learned", None)
    with pytest.raises(ConfigError, match="input range"):
        other.settle_input("other")


def test_gptq_loses_less_of_the_output_than_rounding() -> None:
    weight, x = noise(32, 256), noise(512, 256, seed=1) @ noise(256, 256, seed=2)
    gram = x.double().T @ x.double()
    for name in ("w4_g128", "ternary_g128", "nm14_w4"):
        target = grid(name, "")

        def lost(codes: Any) -> float:
            return float((x @ (torch.from_numpy(codes.weights()) - weight).T).square().sum())

        ours = gptq(weight, gram, target, 0.01)
        target.form.pack(ours)
        assert lost(ours) < 0.8 * lost(nearest(weight, target))


# ---------------------------------------------------------------- trained, recorded, packed

OPTIONS = {
    "sparse": 'body = "nm14_w4", embedding = "w4_g32", head = "w4_g32", vision = "w8", activations = 8',
    "ternary": 'body = "ternary_g128", scales = "seq", ranges = "calibrated", activations = 16',
    "plain": 'body = "nm14_w2", scales = "absmean", roles = { v = "w8" }',
}


def write_run(folder: Path, options: str, stage: str = "steps = 6") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Picture().save(folder / "p.png")
    lines = []
    for i in range(8):
        answer = {"role": "assistant", "content": f"it is number {i} " * (1 + i % 3)}
        user = {"role": "user", "content": [{"type": "image", "image": "p.png"}, {"type": "text", "text": f"{i}?"}]}
        lines.append(json.dumps({"messages": [user, answer]}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(
        f"""
name = "qat"
seed = 3
threads = 1
[pipeline]
plugins = [{{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny" }} }},
           {{ qat = {{ rate = 3e-3, encoder_rate = 1e-4, every = 2, calibrate = 2, {options} }} }}]
[[stages]]
stage = "qat"
{stage}
max_tokens = 200
checkpoint_every = 3
data = [{{ path = "data.jsonl" }}]
"""
    )
    return folder / "recipe.toml"


class Picture:
    def save(self, path: Path) -> None:
        from PIL import Image

        Image.new("RGB", (28, 28), (200, 30, 90)).save(path)


def trained(recipe: Path, out: Path) -> Pipeline:
    loaded = load_recipe(recipe)
    pipe = Pipeline.from_plugins(**loaded.pipeline)
    train(pipe, loaded, out)
    return pipe


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_is_packed_is_what_was_trained_to_the_bit(tmp_path: Path, kind: str) -> None:
    pipe = trained(write_run(tmp_path, OPTIONS[kind]), tmp_path / "out")
    record = read_record(tmp_path / "out" / "qat")
    state = {n: p.detach().clone() for n, p in pipe.model.named_parameters()}
    assert record.numbers == numbers_of(pipe.model)
    for name, codes in record.codes.items():
        assert torch.equal(state[name], torch.from_numpy(codes.weights()))
    if kind == "sparse":
        body = [n for n, t in record.targets.items() if t.name == "nm14_w4"]
        assert len(body) == 14
        for name in body:
            alive = (record.codes[f"{name}.weight"].values.reshape(-1, 4) != 0).sum(1)
            assert alive.max() == 1
        assert "language_model.lm_head" not in record.targets or not pipe.model.language_model.tied
        assert any(n.startswith("vision_encoder") for n in record.targets)
    assert bool(record.ranges) == ("activations" in OPTIONS[kind])
    inputs = pipe.prepare(conversation(0))
    logits = answer_to_everything(pipe.model, inputs)

    # another process: the saved model, the saved codes, and a file
    again = Pipeline.from_pretrained(tmp_path / "out" / "model", plugins=["qat"])
    made = again.compress("qat", codes=str(tmp_path / "out" / "qat"))
    assert made.report["source"] == "trained"
    assert torch.equal(answer_to_everything(again.model, inputs), logits)
    artefact = write(again, made, tmp_path / "m.andes", recipe_for(again, made, "f16") | recipe_for(again, made, None))
    assert artefact.numbers == record.numbers
    assert artefact.ranges == record.ranges
    dequantised = Artefact.open(tmp_path / "m.andes", verify=True).dequantised_state()
    for name in record.codes:
        assert torch.equal(dequantised[name], state[name])
    if not record.ranges:  # floats go in: the packed model is the trained one, but for what f16 stores
        opened = Pipeline.from_pretrained(tmp_path / "m.andes", backend="torch")
        with torch.no_grad():
            for name, weight in again.model.named_parameters():
                weight.copy_(dequantised[name])
        assert torch.equal(answer_to_everything(opened.model, inputs), answer_to_everything(again.model, inputs))


def test_a_run_that_is_stopped_goes_on_to_the_same_codes(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, OPTIONS["sparse"])
    whole = trained(recipe, tmp_path / "whole")
    load = load_recipe(recipe)
    from andes_training.stopping import Stopped, Stopping

    class Soon(Stopping):
        calls = 0

        @property
        def signal(self) -> int:  # type: ignore[override]
            Soon.calls += 1
            return 15 if Soon.calls == 4 else 0

        @signal.setter
        def signal(self, value: int) -> None:
            pass

    pipe = Pipeline.from_plugins(**load.pipeline)
    with pytest.raises(Stopped):
        train(pipe, load, tmp_path / "parts", stopping=Soon())
    again = Pipeline.from_plugins(**load.pipeline)
    train(again, load, tmp_path / "parts")
    assert numbers_of(again.model) == numbers_of(whole.model) != ""


def test_a_second_stage_goes_on_from_the_codes_of_the_first() -> None:
    layer = nn.Linear(128, 16)
    one = put_in(layer, grid("w4_g128", ""), "lsq", 0, "learned", None)
    before = one.codes()
    model = nn.ModuleDict({"a": layer})
    from andes_qat.layers import take_out

    take_out(model)  # type: ignore[arg-type]
    assert isinstance(layer, HeldLinear)
    again = put_in(layer, grid("w4_g128", ""), "lsq", 0, "learned", None)
    assert np.array_equal(again.codes().values, before.values)
    assert np.array_equal(again.codes().scales, before.scales.astype(np.float16))


@pytest.mark.parametrize("name", ["nm14_w4", "nm14_w2"])
def test_a_second_stage_keeps_the_zeros_of_the_first(name: str) -> None:
    from andes_qat.layers import take_out

    layer = nn.Linear(128, 16)
    with torch.no_grad():
        layer.weight.copy_(noise(16, 128))
    one = put_in(layer, grid(name, ""), "lsq", 0, "learned", None)
    assert not one.weight_sparse
    one.choose(1)
    before, model = one.codes(), nn.ModuleDict({"a": layer})
    take_out(model)  # type: ignore[arg-type]
    stage = QATStage(
        module_rates={}, scale_rate=1.0, choice=None, rule="lsq", bits=0, kv=0, inputs="learned", calibrate=1,
        every=1, ramp=0.5, hold=0.25,
    )  # fmt: skip
    stage.steps = 8
    again = put_in(layer, grid(name, ""), "lsq", 0, "learned", None)
    for step in range(8):
        stage.before_step(model, step)  # type: ignore[arg-type]
        assert np.array_equal(again.codes().values, before.values)


def test_the_input_of_a_head_that_is_the_embedding_is_rounded_and_packed(tmp_path: Path) -> None:
    options = 'body = "w8", embedding = "w8", head = "w8", activations = 8'
    recipe = write_run(tmp_path, options)
    text = 'qwen3 = { preset = "tiny"'
    recipe.write_text(recipe.read_text().replace(text, f"{text}, config = {{ tie_word_embeddings = true }}"))
    pipe = trained(recipe, tmp_path / "out")
    assert pipe.model.language_model.tied
    record, head = read_record(tmp_path / "out" / "qat"), "language_model.lm_head"
    assert head in record.ranges
    assert f"{head}.weight" not in record.codes
    assert record.numbers == numbers_of(pipe.model)
    rows = noise(3, pipe.model.text.width)
    exact = pipe.model.logits(rows)
    module = pipe.model.get_submodule(head)
    assert isinstance(module, HeldLinear)
    scale = record.ranges[head].scale
    assert torch.equal(exact, rounded_input(rows, torch.tensor(scale), 8) @ module.weight.T)
    again = Pipeline.from_pretrained(tmp_path / "out" / "model", plugins=["qat"])
    made = again.compress("qat", codes=str(tmp_path / "out" / "qat"))
    assert torch.equal(again.model.logits(rows), exact)
    artefact = write(again, made, tmp_path / "m.andes", recipe_for(again, made, "f16") | recipe_for(again, made, None))
    assert artefact.numbers == record.numbers
    assert artefact.ranges == record.ranges


# ---------------------------------------------------------------- refused


def test_damaged_swapped_and_foreign_records_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(write_run(tmp_path, 'body = "w8", activations = 8', "steps = 3"), tmp_path / "out")
    folder = tmp_path / "out" / "qat"
    pipe = Pipeline.from_plugins([*MODEL, "qat"], seed=9)
    with pytest.raises(ConfigError, match="codes of other weights"):
        pipe.compress("qat", codes=str(folder))
    moved = Pipeline.from_pretrained(tmp_path / "out" / "model", plugins=["qat"])
    with torch.no_grad():  # a few steps of fine-tuning after qat: far less than one level
        moved.model.get_submodule(QUERY).weight[3, 5] += 1e-4
    with pytest.raises(ConfigError, match="codes of other weights") as caught:
        moved.compress("qat", codes=str(folder))
    assert caught.value.who == f"{QUERY}.weight"
    assert "undone" in caught.value.why
    saved = moved.save_pretrained(tmp_path / "bf16", dtype="bfloat16")  # as other codes, too
    with pytest.raises(ConfigError, match="codes of other weights"):
        Pipeline.from_pretrained(saved, plugins=["qat"], dtype="float32").compress("qat", codes=str(folder))
    whole = Pipeline.from_pretrained(tmp_path / "out" / "model", plugins=["qat"])
    halved = whole.save_pretrained(tmp_path / "half", dtype="bfloat16")
    again = Pipeline.from_pretrained(halved, plugins=["qat"], dtype="float32")
    assert again.compress("qat", codes=str(folder)).report["source"] == "trained"
    own = read_record(folder)
    for strange, what in (("language_model.nowhere", "no such module"), ("vision_encoder", "no codes")):
        foreign = evolve(own, ranges={**own.ranges, strange: next(iter(own.ranges.values()))})
        monkeypatch.setattr("andes_qat.compressors.read_record", lambda path, foreign=foreign: foreign)
        with pytest.raises(ConfigError, match=what) as caught:
            whole.compress("qat", codes=str(folder))
        assert caught.value.who == strange
    monkeypatch.undo()
    tensors = load_file(folder / "codes.safetensors")
    first = sorted(n for n in tensors if n.endswith(".values"))[0]
    tensors[first][0, 0] ^= 1
    save_file(tensors, folder / "codes.safetensors")
    with pytest.raises(CheckpointError, match="hash"):
        read_record(folder)
    facts = json.loads((folder / "qat.json").read_text())
    name = next(iter(facts["ranges"]))
    for scale in (0.0, float("inf"), -1.0):
        facts["ranges"][name]["scale"] = scale
        (folder / "qat.json").write_text(json.dumps(facts))
        with pytest.raises((CheckpointError, ConfigError)):
            read_record(folder)
    (folder / "qat.json").unlink()
    with pytest.raises(CheckpointError, match=r"qat\.json"):
        read_record(folder)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"body": "w5"}, "no grid 'w5'"),
        ({"body": "w4_g128", "scales": "seq"}, "more levels"),
        ({"body": "", "roles": {"w": "w8"}}, "no matrix has the role 'w'"),
        ({"body": ""}, "nothing is quantised"),
        ({"ramp": 0.6, "hold": 0.6}, "come to rest"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises((ConfigError, AssemblyError)) as caught:
        Pipeline.from_plugins([*MODEL, {"qat": options}]).compress("qat")
    assert what in " ".join(str(e) for e in getattr(caught.value, "exceptions", [caught.value]))


def test_a_role_may_be_given_beside_all_of_its_layers() -> None:
    roles = {"v": "w8", "0.v": "w4_g32", "1.v": "w4_g128"}
    made = Pipeline.from_plugins([*MODEL, {"qat": {"body": "", "roles": roles}}]).compress("qat")
    assert {c.group for c in made.codes.values()} == {32, 128}
    with pytest.raises(ConfigError, match=r"no matrix has the role '2\.v'"):
        Pipeline.from_plugins([*MODEL, {"qat": {"roles": {"2.v": "w8"}}}]).compress("qat")


def test_one_matrix_cannot_have_two_grids() -> None:
    pipe = Pipeline.from_plugins([*MODEL, {"qat": {"embedding": "w8", "head": "w4_g32"}}])
    if not pipe.model.language_model.tied:
        pipe.model.language_model.lm_head.weight = pipe.model.language_model.model.embed_tokens.weight
    with pytest.raises(ConfigError, match="two grids"):
        pipe.compress("qat")


def test_ranges_that_would_never_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="never be used"):
        trained(write_run(tmp_path, 'body = "w8", activations = 8', "steps = 2"), tmp_path / "out")
