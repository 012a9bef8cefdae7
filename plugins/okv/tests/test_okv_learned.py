"""The learned scorer: what is fitted, what its file holds, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_okv import weights as weights_module
from andes_okv.fitting import HELD_OUT, Recorder, Sums, fit
from andes_okv.weights import Weights, identity
from safetensors.torch import save_file
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import AssemblyError, CheckpointError, ConfigError, InputError
from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.testing.material import conversation, picture, plain_inputs

PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
SMALL = {"rows": 24, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32}


def pipeline(seed: int = 0, backend: str = "torch", **okv: Any) -> Pipeline:
    numba = [{"numba": {"format": "f16", "activations": "exact"}}] if backend == "numba" else []
    return Pipeline.from_plugins([*PLUGINS, *numba, {"okv": {**SMALL, **okv}}], backend=backend, seed=seed)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = pipeline(scorer="kvzip+")
    prompts = [plain_inputs(pipe, 40 + n, seed=n) for n in range(6)] + [pipe.prepare(conversation(n)) for n in range(3)]
    weights, _ = fit(pipe, prompts)
    path = tmp_path_factory.mktemp("okv") / "scorer.safetensors"
    weights.write(path)
    return path


# ---------------------------------------------------------------- the regression


def test_sums_give_the_ridge_regression_of_all_rows() -> None:
    noise = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 5, generator=noise), torch.randn(60, 2, generator=noise) + 3
    sums = Sums.zero(5, 2)
    for part in range(0, 60, 17):
        sums.add(x[part : part + 17], y[part : part + 17])
    found = sums.solve(0.1)
    # the usual form: centred, the bias not drawn to zero
    xc, yc = (x - x.mean(dim=0)).double(), (y - y.mean(dim=0)).double()
    strength = 0.1 * x.double().square().sum(dim=0).mean()
    slope = torch.linalg.solve(xc.T @ xc + strength * torch.eye(5, dtype=torch.float64), xc.T @ yc)
    bias = y.double().mean(dim=0) - x.double().mean(dim=0) @ slope
    assert torch.allclose(found[:-1], slope, atol=1e-6)
    assert torch.allclose(found[-1], bias, atol=1e-6)
    left, whole = sums.errors(found)
    errors = (x.double() @ found[:-1] + found[-1] - y).square().sum(dim=0)
    assert torch.allclose(left, errors, atol=1e-8)
    assert torch.allclose(whole, yc.square().sum(dim=0), atol=1e-8)


def test_what_is_learned_from_is_what_enters_each_layer_and_the_log_of_its_score() -> None:
    pipe = pipeline(scorer="kvzip+")
    policy: Any = pipe.policy
    prompt = plain_inputs(pipe, 50)
    recorder = Recorder(policy)
    session: Any = pipe.compiled.session(recorder)
    session.prefill(prompt)
    assert session.stats.rows[0][0] == 50  # nothing is evicted
    entering: list[torch.Tensor] = []
    with torch.inference_mode():
        embeds = pipe.model.embed(prompt.ids)
        attend = PackedAttention([Segment(50)])
        pipe.model.hidden_states(embeds, torch.arange(50), attend, lambda layer, hidden: entering.append(hidden))
    for layer, (x, y) in enumerate(recorder.found):
        size = entering[layer].square().mean(dim=1, keepdim=True).sqrt()
        assert torch.allclose(x, entering[layer] / size, atol=1e-4)
        assert y.shape == (50, pipe.model.text.kv_heads)
        assert y.isfinite().all()
        assert float(y.max()) > float(y.min())


def test_held_out_rows_are_explained_where_there_is_something_to_learn() -> None:
    pipe = pipeline(scorer="kvzip+")
    prompts = [plain_inputs(pipe, 120, seed=n) for n in range(12)]
    weights, report = fit(pipe, prompts)
    assert report.samples == 12
    assert report.rows == 12 * (120 - SMALL["sinks"])
    assert report.pictures is None
    assert len(weights.maps) == pipe.model.text.layers
    assert all(share > 0 for share in report.explained)  # better than each head's mean, on rows never learned from
    assert HELD_OUT == 10


def test_pictures_are_learned_from_and_told_apart() -> None:
    pipe = pipeline(scorer="kvzip+")
    _, report = fit(pipe, [pipe.prepare(conversation(n)) for n in range(3)])
    assert report.image > 0
    assert report.pictures is not None
    assert report.text is not None


def test_texts_that_are_too_long_are_cut_and_pictures_are_skipped() -> None:
    pipe = pipeline(scorer="kvzip+")
    plain = [plain_inputs(pipe, 60, seed=n) for n in range(2)]
    _, report = fit(pipe, [*plain, pipe.prepare(conversation(0))], rows=20)
    assert (report.samples, report.skipped) == (2, 1)
    assert report.rows == 2 * (20 - SMALL["sinks"])
    with pytest.raises(InputError, match="too few samples") as caught:
        fit(pipe, [pipe.prepare(conversation(0))], rows=20)
    assert "0 can be read, 1 are longer" in caught.value.why


def test_a_pipeline_that_does_not_replay_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not replay") as caught:
        fit(pipeline(scorer="snapkv"), [])
    assert "kvzip+" in caught.value.fix


# ---------------------------------------------------------------- in a session


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_rows_keep_the_score_they_were_made_with(fitted: Path, backend: str) -> None:
    pipe = pipeline(backend=backend, weights=str(fitted))
    assert "learned: its weights for this model are here" not in str(pipe.explain())
    session: Any = pipe.session()
    prompt = plain_inputs(pipe, 24)  # all of it stays, so that a dense pass says the same
    session.prefill(prompt)
    assert "learned: its weights for this model are here" in str(pipe.explain())
    entering: list[torch.Tensor] = []
    with torch.inference_mode():
        attend = PackedAttention([Segment(24)])
        embeds = pipe.model.embed(prompt.ids)
        pipe.model.hidden_states(embeds, torch.arange(24), attend, lambda layer, hidden: entering.append(hidden))
    read = Weights.read(fitted)
    tolerance = 1e-3 if backend == "torch" else 0.05
    for layer, (weight, bias) in enumerate(read.maps):
        rows = entering[layer] / entering[layer].square().mean(dim=1, keepdim=True).sqrt()
        wanted = (rows @ weight.T + bias).T
        assert torch.allclose(torch.stack(session.keeping.scores[layer]), wanted, atol=tolerance)
    before = {layer: dict(enumerate(scores)) for layer, scores in session.keeping.scores.items()}
    for token in range(20):
        session.extend([token])
        session.commit()
    positions = session.heads(0)[2][0].tolist()
    old = [i for i, p in enumerate(positions) if p < 24]
    assert 2 <= len(old) < 24
    kept = session.keeping.scores[0][0]
    assert torch.equal(kept[old], before[0][0][[positions[i] for i in old]])


def test_a_threshold_keeps_rows_of_any_number(fitted: Path) -> None:
    whole: Any = pipeline(weights=str(fitted), rows=400).session()
    whole.prefill(plain_inputs(pipeline(), 200))
    least = float(torch.cat([one for scores in whole.keeping.scores.values() for one in scores]).median())
    pipe = pipeline(weights=str(fitted), budget="threshold", threshold=least, rows=None, keep=1.0)
    assert pipe.policy.budget(1000) is None
    session: Any = pipe.session()
    session.prefill(plain_inputs(pipe, 200))
    for layer, scores in session.keeping.scores.items():
        for head, one in enumerate(scores):
            places = session.heads(layer)[2][head]
            free = (places >= 2) & (places < 200 - 6 - 32)
            assert (one[free] >= least).all()
    held = [n for some in session.stats.rows for n in some]
    assert len(set(held)) > 1
    assert 0.3 < sum(held) / (200 * len(held)) < 0.8  # about half, where the threshold is the median


# ---------------------------------------------------------------- files


def test_weights_of_another_model_are_refused(fitted: Path) -> None:
    other = pipeline(seed=1, weights=str(fitted))
    with pytest.raises(CheckpointError, match="belongs to another model") as caught:
        other.policy  # noqa: B018 - building it is the point
    assert Weights.read(fitted).model in caught.value.why
    assert identity(other.model) in caught.value.why
    assert "andes okv fit" in caught.value.fix


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_weights_cut_short_are_refused(fitted: Path, tmp_path: Path, share: float) -> None:
    content = fitted.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="no file of a learned scorer"):
        Weights.read(tmp_path / "cut")


def test_weights_that_are_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="no file of a learned scorer") as caught:
        Weights.read(tmp_path / "x")
    assert "format" in caught.value.why
    bad = Weights(model="m", maps=[(torch.full((1, 2), float("nan")), torch.zeros(1))], facts={})
    bad.write(tmp_path / "nan")
    with pytest.raises(CheckpointError) as caught:
        Weights.read(tmp_path / "nan")
    assert "layers [0]" in caught.value.why


def test_weights_of_other_sizes_are_refused(fitted: Path, tmp_path: Path) -> None:
    pipe, read = pipeline(), Weights.read(fitted)
    Weights(model=identity(pipe.model), maps=read.maps[:1], facts={}).write(tmp_path / "short")
    with pytest.raises(CheckpointError, match="does not fit"):
        pipeline(weights=str(tmp_path / "short")).policy  # noqa: B018


def test_a_file_that_is_not_there_is_refused_at_assembly() -> None:
    with pytest.raises(AssemblyError) as caught:
        pipeline(weights="/nowhere")
    assert "there is no file '/nowhere'" in str(caught.value)


def test_without_weights_auto_is_a_named_scorer_and_learned_is_refused() -> None:
    pipe = pipeline()
    assert "else snapkv" in str(pipe.explain())
    assert pipe.policy.scorer.name == "snapkv"  # type: ignore[attr-defined]
    assert "snapkv: no learned scorer for this model is here" in str(pipe.explain())
    with pytest.raises(ConfigError, match="no learned scorer") as caught:
        pipeline(scorer="learned").policy  # noqa: B018
    assert "andes okv fit" in caught.value.fix


def test_weights_that_come_along_are_found_by_the_model(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(fitted.read_bytes())
    monkeypatch.setattr(weights_module, "SHIPPED", tmp_path)
    assert pipeline().policy.scorer.name == "learned"  # type: ignore[attr-defined]
    assert pipeline(seed=1).policy.scorer.name == "snapkv"  # type: ignore[attr-defined]


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Pipeline.from_plugins(PLUGINS).save_pretrained(tmp_path_factory.mktemp("model") / "tiny")


def test_the_command_fits_and_its_file_is_used(model: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "noise.png")
    seen = {"role": "user", "content": [{"type": "image", "image": "noise.png"}, {"type": "text", "text": "What?"}]}
    lines = [{"text": f"Line {n} of a text that is long enough to be told from others."} for n in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*lines, {"messages": [seen]}]))
    (tmp_path / "book.txt").write_text("It was a dark and stormy night. " * 5)
    out = tmp_path / "scorer.safetensors"
    arguments = ["okv", "fit", str(model), "--data", str(tmp_path / "data.jsonl"), "--data", str(tmp_path / "book.txt")]
    done = CliRunner().invoke(app, [*arguments, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["samples"] == 6
    assert facts["image_rows"] > 0
    assert facts["out"] == str(out)
    okv = {**SMALL, "scorer": "learned", "weights": str(out), "budget": "head"}
    pipe = Pipeline.from_pretrained(model, plugins=[{"okv": okv}])
    session = pipe.session()
    session.prefill(plain_inputs(pipe, 90))
    assert all(24 <= n <= 28 for layer in session.stats.rows for n in layer)
    shown = CliRunner().invoke(app, ["okv", "show", str(out), "--json"])
    assert json.loads(shown.stdout)["model"] == facts["model"] == identity(pipe.model)


@pytest.mark.parametrize(
    ("content", "what"),
    [("{", "no line of JSON"), ('{"a": 1}\n', "no sample"), ('{"text": ""}\n', "empty text"), ("[1]\n", "no sample")],
)
def test_bad_data_is_named_by_its_line(model: Path, tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + content)
    out = tmp_path / "x"
    done = CliRunner().invoke(
        app, ["okv", "fit", str(model), "--data", str(tmp_path / "bad.jsonl"), "--out", str(out), "--json"]
    )
    assert done.exit_code == 1
    (error,) = json.loads(done.stderr)["errors"]
    assert what in error["what"]
    assert "bad.jsonl:2" in error["who"]
    assert not out.exists()


def test_data_that_is_not_there_is_told_before_the_model_is_read(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["okv", "fit", "nowhere", "--data", str(tmp_path / "no.jsonl"), "--out", "x"])
    assert done.exit_code == 1
    assert "no.jsonl" in done.stderr
