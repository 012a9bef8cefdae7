"""The stage in the loop: restarts to the bit, references, LoRA, what is refused."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_mpo.losses import mixed_loss, rewards_of
from andes_mpo.reference import OnlineReference, StoredReference
from andes_mpo.stage import MixedPreference, RewardShift, answer_logps
from andes_training.packing import collate, make_row
from andes_training.reading import stage_samples
from andes_training.recipe import Recipe, load_recipe
from andes_training.run import StageRun
from andes_training.state import states
from attrs import evolve
from PIL import Image
from safetensors.torch import load_file

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, TrainingError
from andes_sdk.testing.elsewhere import started
from andes_sdk.types import Position

COLOURS = ("red", "green", "blue", "white")


def entry(colour: str, other: str, picture: bool = True) -> dict[str, Any]:
    text = {"type": "text", "text": f"Which colour, not {other}?"}
    image = {"type": "image_url", "image_url": {"url": f"{colour}.png"}}
    return {
        "prompt": [{"role": "user", "content": [image, text] if picture else [text]}],
        "chosen": f"It is {colour}.",
        "rejected": f"It must be {other}, I say.",
    }


def write_run(folder: Path, *, options: str = "", stage: str = "", data: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        lines += [json.dumps(entry(colour, COLOURS[(i + j) % 4])) for j in (1, 2)]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(
        f"""
name = "pairs"
seed = 3
threads = 1
[pipeline]
plugins = [{{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny" }} }},
           {{ mpo = {{ rate = 1e-3{options} }} }}]
[[stages]]
stage = "mpo"
steps = 6
max_tokens = 160
checkpoint_every = 2
data = [{{ path = "pairs.jsonl"{data} }}]
{stage}
"""
    )
    return folder / "recipe.toml"


def train(recipe: Path, out: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    from andes_training.progress import Progress

    loaded = load_recipe(recipe)
    with Progress(out) as progress:
        model = Pipeline.from_plugins(**loaded.pipeline).train(loaded, out, progress=progress)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return metrics, load_file(model / "model.safetensors")


def run_of(recipe: Path, out: Path, position: Position | None = None) -> StageRun:
    loaded: Recipe = load_recipe(recipe)
    pipe = Pipeline.from_plugins(**loaded.pipeline)
    first = loaded.stages[0]
    return StageRun(
        pipeline=pipe, recipe=first, stage=pipe.pick("training_stages", "mpo"), position=position or Position(),
        samples=stage_samples(first.data, loaded.folder), out=out,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_loss_by_hand() -> None:
    # beta 0.1; rewards: chosen 0.1 * (-1 + 3) = 0.2, rejected 0.1 * (-4 + 2) = -0.2; shift 0.1
    rewards = rewards_of(torch.tensor([[-1.0, -4.0]]), torch.tensor([[-3.0, -2.0]]), 0.1)
    mixed = mixed_loss(rewards, torch.tensor(2.0), weights=(0.8, 0.2, 1.0), shift=0.1)
    assert float(mixed.dpo) == pytest.approx(0.513015, abs=1e-6)  # ln(1 + exp(-0.4))
    assert float(mixed.bco) == pytest.approx(0.644397 + 0.554355, abs=1e-6)  # ln(1 + exp(-0.1)) + ln(1 + exp(-0.3))
    assert float(mixed.loss) == pytest.approx(0.8 * 0.513015 + 0.2 * 1.198752 + 2.0, abs=1e-5)
    assert mixed.figures()["preference"] == 1.0
    assert mixed.figures()["margin"] == pytest.approx(0.4)


def test_the_shift_is_the_mean_of_the_means_of_batches() -> None:
    shift = RewardShift()
    shift.update(torch.tensor([[1.0, 3.0]]))
    assert shift.mean == 2.0
    shift.update(torch.tensor([[0.0, 0.0], [1.0, 3.0]]))
    assert shift.mean == 1.5


def test_pairs_that_share_a_picture_and_a_prompt_score_as_separate_conversations(tmp_path: Path) -> None:
    run = run_of(write_run(tmp_path), tmp_path / "out")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (56, 28), "red")}]},
        {"role": "assistant", "content": "A wall."},
        {"role": "user", "content": "Which colour?"},
    ]
    pair = run.stage.conversations({"prompt": messages, "chosen": "Red.", "rejected": "It is rather green."})
    prepared = [run.pipeline.processor.prepare(c, generate=False) for c in pair]
    with torch.no_grad():
        together, nll = answer_logps(run.pipeline.model, collate([make_row(prepared)]))
        for side, inputs in enumerate(prepared):
            # only the last answer counts: its rows are the last run of supervised ones
            flags = inputs.supervised.tolist()
            last = len(flags) - 1 - flags[::-1].index(True)
            first = max(i for i in range(last) if not flags[i]) + 1
            hidden = run.pipeline.model.hidden_states(
                run.pipeline.model.embed(inputs.ids, run.pipeline.model.encode(inputs.media)),
                torch.arange(len(inputs.ids)), collate([make_row([inputs])]).attend,
            )  # fmt: skip
            logits = run.pipeline.model.logits(hidden[first - 1 : last]).log_softmax(-1)
            alone = logits.gather(1, inputs.ids[first : last + 1, None]).sum()
            # float32 sums in another order
            assert float(together[0, side]) == pytest.approx(float(alone), rel=1e-5)
            if side == 0:
                assert float(nll) == pytest.approx(-float(alone) / (last + 1 - first), rel=1e-5)


def test_at_the_start_the_policy_is_its_own_reference(tmp_path: Path) -> None:
    for options in ("", ', reference = "online"'):
        run = run_of(write_run(tmp_path, options=options), tmp_path / "out")
        _, batch = next(run.stage.feed(run))
        assert batch.tokens == batch.samples > 1
        _, figures = run.stage.loss(run.pipeline.model, batch)
        # ln 2 and 2 ln 2: all rewards are 0, but for packs that differ from those of the scoring pass
        assert figures["dpo"] == pytest.approx(0.693147, abs=1e-5)
        assert figures["bco"] == pytest.approx(1.386294, abs=1e-5)
        assert abs(figures["margin"]) < 1e-5


def test_a_run_learns_the_preferences_and_logs_its_parts(tmp_path: Path) -> None:
    metrics, _ = train(write_run(tmp_path, stage="", options=", sft = 0.0"), tmp_path / "out")
    assert metrics[-1]["preference"] == 1.0
    assert metrics[-1]["margin"] > 0.1 > abs(metrics[0]["margin"])
    assert metrics[-1]["dpo"] < metrics[0]["dpo"]
    for row in metrics:
        assert row["loss"] == pytest.approx(0.8 * row["dpo"] + 0.2 * row["bco"], rel=1e-6)


def test_stored_and_online_references_train_alike(tmp_path: Path) -> None:
    stored, a = train(write_run(tmp_path / "a"), tmp_path / "a" / "out")
    online, b = train(write_run(tmp_path / "b", options=', reference = "online"'), tmp_path / "b" / "out")
    for one, two in zip(stored, online, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    # references differ in the last bits, by the packs they were computed in; Adam can turn that into a small step
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


TRAIN = """
import sys
from pathlib import Path
from andes_sdk import Pipeline
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
recipe = load_recipe(Path(sys.argv[1]))
with Progress(Path(sys.argv[2])) as progress:
    Pipeline.from_plugins(**recipe.pipeline).train(recipe, sys.argv[2], progress=progress)
"""


@pytest.mark.parametrize("options", ["", ', reference = "online"'])
def test_a_run_killed_in_the_middle_goes_on_to_the_bit(tmp_path: Path, options: str) -> None:
    recipe = write_run(tmp_path, options=options)
    metrics, whole = train(recipe, tmp_path / "whole")
    with started(TRAIN, [recipe, tmp_path / "cut"], tmp_path / "told") as child:
        deadline = time.monotonic() + 60
        while not states(tmp_path / "cut") and time.monotonic() < deadline:
            time.sleep(0.002)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, (tmp_path / "told.err").read_text()
    assert states(tmp_path / "cut")
    assert not (tmp_path / "cut" / "model").exists()
    resumed, weights = train(recipe, tmp_path / "cut")
    assert [(r["loss"], r["shift"]) for r in resumed] == [(r["loss"], r["shift"]) for r in metrics]
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def test_a_scoring_pass_that_was_cut_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(write_run(tmp_path), tmp_path / "whole")
    whole = StoredReference.of(run, answer_logps)
    monkeypatch.setattr("andes_mpo.reference.SAVE_SECONDS", -1.0)
    calls = []

    def cut(model: Any, batch: Any) -> Any:
        calls.append(batch.samples)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer_logps(model, batch)

    cut_run = evolve(run, out=tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        StoredReference.of(cut_run, cut)
    assert calls[0] > 1
    counted: list[int] = []
    again = StoredReference.of(cut_run, lambda m, b: counted.append(b.samples) or answer_logps(m, b))  # type: ignore[func-returns-value]
    assert again.known == whole.known
    assert sum(counted) == 8 - calls[0] - calls[1]


def test_references_of_other_weights_are_not_used(tmp_path: Path) -> None:
    run = run_of(write_run(tmp_path), tmp_path / "out")
    first = StoredReference.of(run, answer_logps)
    with torch.no_grad():
        next(run.pipeline.model.language_model.parameters()).mul_(1.5)
    second = StoredReference.of(run, answer_logps)
    assert first.known.keys() == second.known.keys()
    assert first.known != second.known


def test_a_stage_that_has_begun_refuses_samples_it_has_no_reference_for(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    run = run_of(recipe, tmp_path / "out")
    next(run.stage.feed(run))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(pairs.read_text().replace("It is red.", "It is quite red."))
    later = run_of(recipe, tmp_path / "out", Position(step=2))
    batches = later.stage.feed(later)
    with pytest.raises(TrainingError, match="reference log-probability is missing") as caught:
        [next(batches) for _ in range(8)]
    assert caught.value.who.startswith(str(pairs))


def test_damaged_references_are_named(tmp_path: Path) -> None:
    run = run_of(write_run(tmp_path), tmp_path / "out")
    next(run.stage.feed(run))
    file = tmp_path / "out" / "reference-00-000.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(TrainingError, match="damaged"):
        next(run.stage.feed(run))


def test_changing_pictures_need_an_online_reference(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="pictures change"):
        train(write_run(tmp_path / "a", data=", rotate = 5.0"), tmp_path / "a" / "out")
    recipe = write_run(tmp_path / "b", data=", rotate = 5.0", options=', reference = "online"')
    metrics, _ = train(recipe, tmp_path / "b" / "out")
    assert len(metrics) == 6
    with pytest.raises(TrainingError, match="questions would split pairs"):
        train(write_run(tmp_path / "c", data=", questions = 1"), tmp_path / "c" / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "is not a pair"),
        ({"chosen": ""}, "is not a pair"),
        ({"rejected": 3}, "is not a pair"),
        ({"rejected": "It is red."}, "are the same"),
    ],
)
def test_lines_that_are_no_pairs_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    recipe = write_run(tmp_path)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({**entry("red", "blue"), **change}) + "\n")
    with pytest.raises(TrainingError, match=message) as caught:
        train(recipe, tmp_path / "out")
    assert caught.value.who.endswith("pairs.jsonl:9")


def test_with_adapters_only_the_reference_is_the_base_and_nothing_is_copied(tmp_path: Path) -> None:
    lora = pytest.importorskip("peft", reason="peft is not installed")
    run = run_of(write_run(tmp_path, options=', reference = "online"'), tmp_path / "out")
    plain = OnlineReference.of(run, answer_logps)
    batch = next(run.stage.feed(run))[1]
    wanted = plain(batch)
    model = run.pipeline.model.requires_grad_(False)
    torch.manual_seed(0)
    config = lora.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model.language_model = lora.inject_adapter_in_model(config, model.language_model)
    learnt = [n for n, p in model.named_parameters() if p.requires_grad]
    adapted = OnlineReference.of(run, answer_logps)
    assert adapted.model is model
    assert torch.equal(adapted(batch), wanted)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == learnt
    with torch.no_grad():
        assert not torch.equal(answer_logps(model, batch)[0].reshape(-1), wanted)
    # as soon as anything else learns, the base will not stay as it is
    model.mlp.requires_grad_(True)
    assert OnlineReference.of(run, answer_logps).model is not model


def test_state_goes_through_tensors_and_evaluation_leaves_it_alone(tmp_path: Path) -> None:
    run = run_of(write_run(tmp_path), tmp_path / "out")
    stage: Any = run.stage
    stage.load_state({"shift": torch.tensor([3.0, 0.25], dtype=torch.float64)})
    assert stage.shift == RewardShift(3, 0.25)
    assert torch.equal(stage.state()["shift"], torch.tensor([3.0, 0.25], dtype=torch.float64))
    batch = next(stage.feed(run))[1]  # from the start: the shift is reset
    assert stage.shift == RewardShift()
    with torch.no_grad():
        stage.loss(run.pipeline.model, batch)
    assert stage.shift == RewardShift()
    stage.loss(run.pipeline.model, batch)
    assert stage.shift.count == 1


def test_options_reach_the_stage_and_wrong_ones_are_refused() -> None:
    plugins: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    options = {"rate": 2e-6, "encoder_rate": 0.0, "beta": 0.2, "bco": 0.0, "shift": "none"}
    stage = Pipeline.from_plugins([*plugins, {"mpo": options}]).pick("training_stages", "mpo")
    assert isinstance(stage, MixedPreference)
    assert (stage.beta, stage.weights, stage.running, stage.online) == (0.2, (0.8, 0.0, 1.0), False, False)
    assert stage.rates(None) == {"language_model": 2e-6, "mlp": 2e-6}  # type: ignore[arg-type]
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins([*plugins, {"mpo": {"shift": "sometimes"}}])
    assert "shift" in str(caught.value.problems[0])


def test_a_recipes_adapter_has_the_base_for_its_reference(tmp_path: Path) -> None:
    lora = "lora = { rank = 2, rate = 1e-2 }"
    stored, _ = train(write_run(tmp_path / "a", stage=lora), tmp_path / "a" / "out")
    recipe = write_run(tmp_path / "b", stage=lora, options=', reference = "online"')
    online, _ = train(recipe, tmp_path / "b" / "out")
    assert not list((tmp_path / "b" / "out").glob("reference-*"))
    # the same base model scores the same answers, in other packs
    for one, two in zip(stored, online, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert online[-1]["margin"] > online[0]["margin"]
