"""Compressors: what they give is packed as it is, named by one hash, and told."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from andes_compression.compress import recipe_for, write
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_packing import Artefact
from andes_packing.formats import Codes, find
from attrs import evolve, frozen
from torch import Tensor, nn
from typer.testing import CliRunner

from andes_sdk import Pipeline, hookimpl
from andes_sdk.cli import app, loading
from andes_sdk.errors import CheckpointError, ConfigError, PluginBroken
from andes_sdk.numbers import digest, numbers, numbers_of, range_problem
from andes_sdk.testing.material import answer_to_everything, conversation
from andes_sdk.testing.reference import (
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferenceProjector,
    ReferenceTokenizer,
)
from andes_sdk.types import Compressed, Quantised, Range

BASE = (ReferenceEncoder(), ReferenceProjector(), ReferenceLanguageModel(), ReferenceTokenizer())
FORM = find("w4_g32")
QUERY = "language_model.blocks.0.q"


def coarse(weight: Tensor) -> Codes:
    """Codes that no search would choose."""
    values = torch.clamp((weight.detach() / 0.25).round(), -8, 7).numpy().astype(np.int8)
    return Codes(values, np.full((len(values), -(-values.shape[1] // 32)), 0.25, np.float32), 32)


class Coarse(nn.Linear):
    """A linear layer on a coarse grid."""

    def codes(self) -> Codes:
        return coarse(self.weight)

    def input_range(self) -> Range | None:
        return Range(bits=8, scale=0.5, zero=3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, torch.from_numpy(self.codes().weights()), self.bias)


@frozen(eq=False, kw_only=True)
class Fakes:
    """One linear layer becomes a quantised one."""

    contract = "1.1"

    @hookimpl
    def andes_modules(self, model: Any) -> Sequence[str]:
        block = model.language_model.blocks[0]
        with torch.device(block.q.weight.device):
            made = Coarse(block.q.in_features, block.q.out_features)
        made.weight, made.bias = block.q.weight, block.q.bias
        block.q = made
        return []


@frozen
class Rounds:
    name: str = "rounds"

    @torch.no_grad()
    def compress(self, model: Any, *, zero: int = 0, wrong: str = "") -> Compressed:
        weight = model.get_parameter(f"{QUERY}.weight")
        codes = coarse(weight)
        weight.copy_(torch.from_numpy(codes.weights()))
        ranges = {QUERY: Range(bits=8, scale=0.125, zero=zero)}
        if wrong == "modules":
            model.extra = nn.Linear(1, 1)
        if wrong == "type":
            return {"layers": 1}  # type: ignore[return-value]
        if wrong == "fails":
            raise ValueError("no")
        name = "nothing.weight" if wrong == "name" else f"{QUERY}.weight"
        return Compressed(codes={name: codes}, ranges=ranges, report={"layers": 1})


@frozen(eq=False, kw_only=True)
class Brings:
    contract = "1.1"

    @hookimpl
    def andes_compressors(self) -> Sequence[Any]:
        return [Rounds()]


def pipeline(*plugins: object, **options: Any) -> Pipeline:
    return Pipeline.from_plugins([*BASE, *plugins], seed=2, **options)


def recipe(pipe: Pipeline) -> dict[str, str]:
    return default_recipe(pipe.model, "w8") | {f"{QUERY}.weight": "w4_g32"}


def packed(pipe: Pipeline, path: Path, **options: Any) -> Artefact:
    return pack_model(pipe.model, recipe(pipe), path, plan=pipe.plan, **options)


def bits(artefact: Artefact, name: str = f"{QUERY}.weight") -> bytes:
    return artefact.packed(name).tobytes()


# ---------------------------------------------------------------- packed as given


def test_a_quantised_module_is_packed_from_its_very_codes(tmp_path: Path) -> None:
    pipe = pipeline(Fakes())
    module = pipe.model.language_model.blocks[0].q
    assert isinstance(module, Quantised)
    artefact = packed(pipe, tmp_path / "a.andes")
    assert bits(artefact) == FORM.pack(module.codes()).tobytes()
    assert bits(artefact) != FORM.pack(FORM.quantise(module.weight.detach().numpy())).tobytes()
    assert artefact.ranges == {QUERY: Range(bits=8, scale=0.5, zero=3)}


def test_an_artefact_of_quantised_modules_opens_with_the_same_logits(tmp_path: Path) -> None:
    pipe = pipeline(Fakes())
    artefact = packed(pipe, tmp_path / "a.andes")
    state = artefact.dequantised_state()
    with torch.no_grad():  # all but the quantised module was rounded
        for name, weight in pipe.model.named_parameters():
            if name != f"{QUERY}.weight":
                weight.copy_(state[name])
    again = Pipeline.from_pretrained(artefact.path, plugins=[*BASE, Fakes()])
    assert torch.equal(
        state[f"{QUERY}.weight"], torch.from_numpy(pipe.model.language_model.blocks[0].q.codes().weights())
    )
    inputs = pipe.prepare(conversation(0))
    assert torch.equal(answer_to_everything(again.model, inputs), answer_to_everything(pipe.model, inputs))
    assert again.model.numbers == artefact.numbers == numbers_of(pipe.model)


def test_codes_of_a_compressor_are_packed_from_them_and_their_scales(tmp_path: Path) -> None:
    pipe = pipeline(Brings())
    made = pipe.compress("rounds")
    artefact = write(pipe, made, tmp_path / "a.andes", recipe(pipe))
    assert bits(artefact) == FORM.pack(made.codes[f"{QUERY}.weight"]).tobytes()
    assert artefact.ranges == made.ranges
    assert artefact.numbers == pipe.model.numbers
    opened = Artefact.open(artefact.path, verify=True)
    assert (opened.numbers, opened.ranges) == (artefact.numbers, artefact.ranges)


def test_without_a_format_the_smallest_one_that_holds_the_codes_is_taken() -> None:
    pipe = pipeline(Brings())
    made = pipe.compress("rounds")
    chosen = recipe_for(pipe, made, None)
    assert chosen[f"{QUERY}.weight"] == "w4_g32"
    assert {form for name, form in chosen.items() if name != f"{QUERY}.weight"} == {"f16"}
    with pytest.raises(ConfigError, match="gave no codes"):
        recipe_for(pipe, Compressed(), None)


# ---------------------------------------------------------------- numbers


def test_numbers_change_with_each_part_and_not_with_the_order() -> None:
    codes = coarse(torch.randn(16, 32, generator=torch.Generator().manual_seed(1)))
    other = evolve(codes, values=codes.values.copy())
    other.values[3, 3] ^= 1
    scaled = evolve(codes, scales=codes.scales * 2)
    found = {digest(n, c) for n, c in (("a", codes), ("b", codes), ("a", other), ("a", scaled))}
    assert len(found) == 4
    assert digest("a", codes) == digest("a", evolve(codes, scales=codes.scales.astype(np.float16)))
    one, two = digest("a", codes), digest("b", codes)
    assert numbers({"a": one, "b": two}, {}) == numbers({"b": two, "a": one}, {})
    ranges = [
        {},
        {"m": Range(bits=8, scale=0.5)},
        {"m": Range(bits=8, scale=0.5, zero=1)},
        {"n": Range(bits=8, scale=0.5)},
    ]
    assert len({numbers({"a": one}, r) for r in ranges}) == 4


def test_numbers_of_a_plain_artefact_are_of_all_its_matrices(tmp_path: Path) -> None:
    pipe = pipeline()
    first = packed(pipe, tmp_path / "a.andes")
    with torch.no_grad():
        pipe.model.language_model.head.weight[0] *= 2
    second = packed(pipe, tmp_path / "b.andes")
    assert len(first.numbers) == 64
    assert first.numbers != second.numbers
    assert open_plain(first).model.numbers == first.numbers


def open_plain(artefact: Artefact) -> Pipeline:
    return Pipeline.from_pretrained(artefact.path, plugins=BASE)


def test_an_adapter_of_other_numbers_is_refused_on_an_artefact(tmp_path: Path) -> None:
    from andes_sdk.types import Adapter, LowRank

    pipe = open_plain(packed(pipeline(), tmp_path / "a.andes"))
    own = pipe.model.numbers
    layers = {"blocks.0.q": LowRank(a=torch.zeros(1, 32), b=torch.zeros(32, 1), scale=1.0)}
    pipe.compiled.add_adapter(Adapter(name="mine", layers=layers, base=own))
    with pytest.raises(ConfigError, match=rf"trained on numbers {'f' * 64}, this model has {own}"):
        pipe.compiled.add_adapter(Adapter(name="other", layers=layers, base="f" * 64))


# ---------------------------------------------------------------- ranges and scales that cannot be


@pytest.mark.parametrize(
    "change",
    [{"bits": 1}, {"bits": 17}, {"bits": True}, {"scale": 0.0}, {"scale": -1.0}, {"scale": math.inf},
     {"scale": math.nan}, {"scale": 1e300}, {"zero": 256}, {"zero": -256}, {"zero": 0.0}],
)  # fmt: skip
def test_ranges_that_cannot_be_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    one = evolve(Range(bits=8, scale=0.5), **change)
    assert range_problem(one)
    with pytest.raises(ConfigError, match=f"{QUERY}: an input range that cannot be"):
        packed(pipeline(), tmp_path / "a.andes", ranges={QUERY: one})


def test_a_range_of_what_has_no_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: a range for what has no weight"):
        packed(pipeline(), tmp_path / "a.andes", ranges={"nowhere": Range(bits=8, scale=0.5)})


@pytest.mark.parametrize("scale", [1e6, 1e-9, math.inf, math.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_that_float16_cannot_hold_are_refused_with_their_matrix(
    scale: float, dtype: Any, tmp_path: Path
) -> None:
    pipe = pipeline()
    codes = coarse(pipe.model.get_parameter(f"{QUERY}.weight"))
    scales = codes.scales.astype(dtype)
    scales[2, 0] = scale
    with pytest.raises(CheckpointError, match=rf"(?s){QUERY}.*row 2, group 0"):
        packed(pipe, tmp_path / "a.andes", codes={f"{QUERY}.weight": evolve(codes, scales=scales)})
    with pytest.raises(CheckpointError, match="row 2, group 0"):
        FORM.quantise(np.ones((16, 32), np.float32), np.where(np.arange(16)[:, None] == 2, dtype(scale), dtype(1)))
    assert not (tmp_path / "a.andes").exists()


# ---------------------------------------------------------------- compressors that break


@pytest.mark.parametrize(
    ("wrong", "match"),
    [("type", "returned dict"), ("fails", "the compressor failed.*ValueError"), ("name", r"nothing\.weight")],
)
def test_compressors_that_break_are_told(wrong: str, match: str) -> None:
    with pytest.raises(PluginBroken, match=f"(?s)rounds: .*{match}"):
        pipeline(Brings()).compress("rounds", wrong=wrong)


def test_changed_modules_that_no_plugin_builds_are_refused(tmp_path: Path) -> None:
    pipe = pipeline(Brings())
    made = pipe.compress("rounds", wrong="modules")
    with pytest.raises(ConfigError, match=r"extra\.bias, extra\.weight: the compressor changed the modules"):
        write(pipe, made, tmp_path / "a.andes", recipe(pipe))


def test_an_unknown_compressor_is_refused() -> None:
    with pytest.raises(ConfigError, match="brings 'round' to compressors"):
        pipeline(Brings()).compress("round")


# ---------------------------------------------------------------- the command


def andes(monkeypatch: pytest.MonkeyPatch, *arguments: object, code: int = 0) -> Any:
    from andes_compression.cli import compress as command

    monkeypatch.setattr(command, "open_pipeline", lambda *_, **__: pipeline(Brings()))
    result = CliRunner().invoke(app, ["compress", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_the_command_packs_what_the_compressor_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "a.andes"
    told = json.loads(andes(monkeypatch, "model", "rounds", "--out", out, "-o", "zero=5", "--json").stdout)
    artefact = Artefact.open(out, verify=True)
    assert artefact.ranges[QUERY].zero == 5
    assert told["numbers"] == artefact.numbers
    assert told["report"] == {"layers": 1}
    assert told["model_bpw"]["disk"] > 0
    assert artefact.tensors[f"{QUERY}.weight"].format == "w4_g32"
    text = andes(monkeypatch, "model", "rounds", "--out", out, "--format", "w4_g32").stdout
    assert "layers" in text
    assert "1 input ranges" in text


def test_the_command_tells_errors_without_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "a.andes"
    assert "no plugin" in andes(monkeypatch, "model", "nothing", "--out", out, code=1).stderr
    assert "write option=value" in andes(monkeypatch, "model", "rounds", "--out", out, "-o", "zero", code=1).stderr
    assert not out.exists()


def test_option_values_are_toml_or_text() -> None:
    assert loading.option_values(["a=1", "b = [1, 2]", "c=word"]) == {"a": 1, "b": [1, 2], "c": "word"}


def test_opening_checks_ranges_and_numbers(tmp_path: Path) -> None:
    import hashlib

    from andes_packing.header import PREAMBLE, aligned

    data = packed(pipeline(), tmp_path / "a.andes").path.read_bytes()
    magic, version, _, length, _ = PREAMBLE.unpack(data[: PREAMBLE.size])
    good = {"bits": 8, "scale": 0.5, "zero": 0}
    for change, match in (
        ({"numbers": "x"}, "not a sha256"), ({"numbers": 1}, "expected str"),
        ({"ranges": {QUERY: {**good, "scale": math.nan}}}, "finite number, got nan"),
        ({"ranges": {QUERY: {**good, "bits": 99}}}, "bits are 99"),
        ({"ranges": {QUERY: {**good, "bits": "8"}}}, "expected int"),
        ({"ranges": {"nowhere": good}}, "no such matrix"),
        ({"ranges": {f"{QUERY}.{i}": good for i in range(999)}}, "999 ranges for"),
    ):  # fmt: skip
        header = json.loads(data[PREAMBLE.size : PREAMBLE.size + length]) | change
        body = json.dumps(header).encode()
        head = PREAMBLE.pack(magic, version, 0, len(body), hashlib.sha256(body).digest()) + body
        (tmp_path / "b.andes").write_bytes(
            head.ljust(aligned(len(head)), b"\0") + data[aligned(PREAMBLE.size + length) :]
        )
        with pytest.raises(CheckpointError, match=match):
            Artefact.open(tmp_path / "b.andes")


def test_the_plan_of_a_reference_still_opens(tmp_path: Path) -> None:
    tiny = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    path = tmp_path / "a.andes"
    pack_model(tiny.model, default_recipe(tiny.model, "w8"), path, plan=tiny.plan)
    assert Pipeline.from_pretrained(path, backend="torch").model.numbers == Artefact.open(path).numbers
