"""Training: a pack equals its samples, only supervised rows count, a killed run goes on to the bit."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from andes_training import state
from andes_training.loop import Trainer
from andes_training.loss import next_token_loss
from andes_training.packing import collate, make_row, pack
from andes_training.reading import ahead, make_rows, read_samples
from andes_training.recipe import DataRecipe, Recipe, StageRecipe, load_recipe
from andes_training.state import states
from PIL import Image
from safetensors.torch import load_file

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, TrainingError
from andes_sdk.runtime.attention import Segment
from andes_sdk.testing.elsewhere import started


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=1)


def messages(question: str, answer: str, colour: str | None = "red") -> list:
    content: list = [{"type": "text", "text": question}]
    if colour:
        content.insert(0, {"type": "image", "image": Image.new("RGB", (56, 84), colour)})
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def row_of(pipeline: Pipeline, *conversations: list):
    return make_row([pipeline.processor.prepare(c, generate=False) for c in conversations])


def test_only_assistant_tokens_and_their_end_are_supervised(pipeline: Pipeline) -> None:
    row = row_of(pipeline, messages("what colour?", "red"))
    wanted = [int(t) for t in row.labels if t != -100]
    assert wanted == [*pipeline.tokenizer.encode("red"), pipeline.tokenizer.eos]
    # a label is the id of the next row
    places = (row.labels != -100).nonzero()[:, 0]
    assert torch.equal(row.labels[places], row.ids[places + 1])


def test_branches_see_the_prefix_and_themselves_only() -> None:
    mask = Segment(2, (1, 2)).mask(torch.device("cpu"))
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert Segment(2, (1, 2)).positions().tolist() == [0, 1, 2, 2, 3]


def test_questions_that_share_a_picture_give_the_loss_and_gradients_of_separate_samples(pipeline: Pipeline) -> None:
    conversations = [messages("what colour?", "red"), messages("what is it?", "a square"), messages("how many?", "one")]
    rows = [row_of(pipeline, c) for c in conversations]
    shared = row_of(pipeline, *conversations)
    assert len(shared.ids) < sum(len(r.ids) for r in rows)
    one, many = collate([shared]), collate(rows)
    assert one.tokens == many.tokens
    losses, gradients = [], []
    for batch in (one, many):
        pipeline.model.zero_grad()
        loss, _ = next_token_loss(pipeline.model, batch)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([p.grad.clone() for p in pipeline.model.parameters()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)  # float32, other order of additions
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_packs_loss_is_the_token_weighted_mean_of_its_samples(pipeline: Pipeline) -> None:
    rows = [
        row_of(pipeline, messages("what colour?", "a deep and pleasant red")),
        row_of(pipeline, messages("two?", "2", colour=None)),
        row_of(pipeline, messages("where?", "here", colour="blue")),
    ]
    with torch.no_grad():
        packed = float(next_token_loss(pipeline.model, collate(rows))[0])
        single = [(float(next_token_loss(pipeline.model, b)[0]), b.tokens) for b in (collate([r]) for r in rows)]
    mean = sum(loss * n for loss, n in single) / sum(n for _, n in single)
    assert packed == pytest.approx(mean, abs=1e-5)  # float32


def test_packs_keep_order_and_budget(pipeline: Pipeline) -> None:
    rows = [row_of(pipeline, messages("q", "a" * n, colour=None)) for n in (1, 30, 2, 3, 60, 4)]
    budget = len(rows[1].ids) + len(rows[2].ids)
    groups = list(pack(rows, max_tokens=budget, max_patches=10**6))
    assert [r for g in groups for r in g] == rows
    assert all(len(g) == 1 or sum(len(r.ids) for r in g) <= budget for g in groups)
    patches = len(row_of(pipeline, messages("q", "a")).media["image"].data)
    pictured = [row_of(pipeline, messages("q", "a")) for _ in range(4)]
    assert [len(g) for g in pack(pictured, max_tokens=10**6, max_patches=2 * patches)] == [2, 2]


def test_items_prepared_ahead_arrive_in_order_and_errors_reach_the_caller() -> None:
    assert list(ahead(range(7))) == list(range(7))

    def failing():
        yield 1
        raise TrainingError("bad line")

    stream = ahead(failing())
    assert next(stream) == 1
    with pytest.raises(TrainingError, match="bad line"):
        next(stream)


# ---------------------------------------------------------------- whole runs


RATES = {"vision_encoder": 1e-2, "mlp": 1e-2, "language_model": 1e-2}


def write_run(folder: Path, samples: int = 12, **stage) -> Path:
    colours = ["red", "green", "blue", "black"]
    lines = []
    for i in range(samples):
        colour = colours[i % 4]
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        content = [{"type": "image_url", "image_url": {"url": f"{colour}.png"}}, {"type": "text", "text": "colour?"}]
        lines.append(
            json.dumps({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": colour}]})
        )
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    options = {"stage": "sft", "steps": 8, "warmup": 2, "max_patches": 48, "checkpoint_every": 2, **stage}
    rates = options.pop("rates", {})
    text = "\n".join(f"{k} = {json.dumps(v)}" for k, v in options.items())
    text += "\nrates = { " + ", ".join(f"{k} = {v}" for k, v in rates.items()) + " }"
    recipe = folder / "recipe.toml"
    recipe.write_text(
        'name = "t"\nthreads = 1\n[pipeline]\n'
        'plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, '
        '{ sft = { rate = 3e-3 } }, "pretraining"]\n'
        f'[[stages]]\n{text}\ndata = [{{ path = "data.jsonl", flip = true, shift = 0.1, rotate = 5.0 }}]\n'
    )
    return recipe


class Losses:
    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def show(self, event) -> None:
        if event.kind == "step":
            self.seen.append((event.step, event.values["loss"]))


def run(recipe: Path, out: Path, *overrides: str) -> tuple[list[tuple[int, float]], dict[str, torch.Tensor]]:
    loaded = load_recipe(recipe, overrides)
    losses = Losses()
    folder = Pipeline.from_plugins(**loaded.pipeline).train(loaded, out, progress=losses)
    return losses.seen, load_file(folder / "model.safetensors")


def test_a_short_run_learns_and_its_checkpoint_loads(tmp_path: Path) -> None:
    losses, weights = run(
        write_run(tmp_path, steps=75, rates=RATES, max_patches=96, checkpoint_every=100), tmp_path / "out"
    )
    assert losses[-1][1] < 0.01 * losses[0][1]
    loaded = Pipeline.from_pretrained(tmp_path / "out" / "model")
    assert torch.equal(loaded.model.mlp.state_dict()["0.weight"], weights["mlp.0.weight"])
    assert loaded.chat("colour?", images=[Image.new("RGB", (28, 28), "red")], max_tokens=5) == "red"


def test_alignment_trains_the_projector_and_nothing_else(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, stage="alignment", steps=3)
    loaded = load_recipe(recipe)
    before = Pipeline.from_plugins(**loaded.pipeline).model.state_dict()
    _, after = run(recipe, tmp_path / "out")
    changed = {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])}
    assert changed == {"mlp"}


def test_accumulated_packs_equal_one_large_pack(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, steps=4, max_patches=16, accumulate=2)
    small, _ = run(recipe, tmp_path / "a")
    large, _ = run(recipe, tmp_path / "b", "stages.0.max_patches=32", "stages.0.accumulate=1")
    for (_, a), (_, b) in zip(small, large, strict=True):
        assert a == pytest.approx(b, abs=2e-4)  # float32; Adam magnifies rounding over the steps


def test_a_run_killed_at_any_moment_goes_on_to_the_bit(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, steps=40, ema=0.9)
    expected, weights = run(recipe, tmp_path / "whole")
    code = (
        "import sys; from pathlib import Path; from andes_sdk import Pipeline\n"
        "from andes_training.recipe import load_recipe\n"
        "r = load_recipe(Path(sys.argv[1])); Pipeline.from_plugins(**r.pipeline).train(r, sys.argv[2])"
    )
    out = tmp_path / "killed"
    for wait in random.Random(time.time()).sample([0.0, 0.05, 0.1, 0.15, 0.2, 0.25], 3):
        before = states(out)[-1:]
        with started(code, [recipe, out], tmp_path / "told") as child:
            deadline = time.time() + 60
            while states(out)[-1:] == before and time.time() < deadline and child.exitcode is None:
                time.sleep(0.01)
            time.sleep(wait)
            child.kill()
        assert states(out)
    resumed, again = run(recipe, out)
    assert resumed == expected[len(expected) - len(resumed) :]
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_a_state_in_several_files_is_the_same_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_run(tmp_path, steps=4)
    expected, weights = run(recipe, tmp_path / "whole")
    monkeypatch.setattr(state, "SHARD", 20_000)
    run(recipe, tmp_path / "out")
    first, last = states(tmp_path / "out")
    files = sorted(first.glob("*.safetensors"))
    assert len(files) > 3
    # a file holds one tensor, or stays below the limit; the head of a file takes a few kilobytes
    assert all(len(load_file(f)) == 1 or sum(t.nbytes for t in load_file(f).values()) <= 20_000 for f in files)
    shutil.rmtree(last)
    resumed, again = run(recipe, tmp_path / "out")
    assert resumed == expected[2:]
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    files[0].write_bytes(files[0].read_bytes()[:-8])
    shutil.rmtree(states(tmp_path / "out")[-1])
    with pytest.raises(TrainingError, match="cannot be restored"):
        run(recipe, tmp_path / "out")


def test_averaged_weights_follow_the_formula_and_are_exported_as_chosen(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, steps=3, checkpoint_every=1)
    start = Pipeline.from_plugins(**load_recipe(recipe).pipeline).model.state_dict()["mlp.0.weight"].clone()
    weights = []
    for steps in (1, 2, 3):  # the schedule is that of three steps
        _, found = run(recipe, tmp_path / f"{steps}", f"stages.0.steps={steps}", "stages.0.horizon=3")
        weights.append(found["mlp.0.weight"])
    average = start
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 0.3)):  # min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights[step - 1]
    options = ("stages.0.ema=0.3", "stages.0.horizon=3")
    _, replaced = run(recipe, tmp_path / "a", *options)
    assert torch.allclose(replaced["mlp.0.weight"], average, atol=1e-6)  # float32
    _, last = run(recipe, tmp_path / "b", *options, 'stages.0.ema_export="beside"')
    assert torch.equal(last["mlp.0.weight"], weights[-1])
    beside = load_file(tmp_path / "b" / "ema-00" / "model.safetensors")
    assert torch.equal(beside["mlp.0.weight"], replaced["mlp.0.weight"])
    assert load_file(states(tmp_path / "b")[-1] / "state-00000.safetensors").keys() >= {"average.mlp.0.weight"}


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, steps=2)
    run(recipe, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"another recipe(?s:.)*stages\.0\.clip: 1\.0 before, 2\.0 now"):
        run(recipe, tmp_path / "out", "stages.0.clip=2.0")
    loaded = load_recipe(recipe)
    with pytest.raises(TrainingError, match="holds a run"):
        Trainer(Pipeline.from_plugins(**loaded.pipeline), loaded, tmp_path / "out").run(resume=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a sample"),
        ('{"messages": []}', "is not a sample"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant text"),
        ('{"messages": [{"role": "owner", "content": "x"}]}', "role"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "gone.png"}}]},'
            ' {"role": "assistant", "content": "x"}]}',
            "gone.png",
        ),
    ],
)
def test_bad_data_is_named_with_file_and_line(tmp_path: Path, pipeline: Pipeline, line: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text('\n{"messages": [{"role": "assistant", "content": "ok"}]}\n' + line + "\n")

    def read() -> None:
        samples = read_samples(DataRecipe(path=Path("bad.jsonl")), tmp_path)
        list(make_rows(samples, pipeline.processor, seed=0, epoch=0))

    with pytest.raises(TrainingError, match=r"bad\.jsonl:3") as caught:
        read()
    assert message in str(caught.value)


def test_order_depends_on_seed_and_epoch_and_an_offset_continues_it(tmp_path: Path, pipeline: Pipeline) -> None:
    lines = [json.dumps({"messages": messages(f"q{i}", f"a{i}", None)}) for i in range(9)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    samples = read_samples(DataRecipe(path=Path("d.jsonl")), tmp_path)

    def order(**kw) -> list[list[int]]:
        return [r.ids.tolist() for _, r in make_rows(samples, pipeline.processor, **kw)]

    first = order(seed=1, epoch=0)
    assert order(seed=1, epoch=0) == first
    assert order(seed=1, epoch=0, start=4) == first[4:]
    assert order(seed=1, epoch=1) != first
    assert order(seed=2, epoch=0) != first
    assert sorted(order(seed=2, epoch=0)) == sorted(first)


def test_recipes_are_checked_and_overridden(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert load_recipe(path, ["stages.0.steps=99", "precision=bf16"]).stages[0].steps == 99
    for override in ("stages.0.step=1", "stages.0.steps=x", "precision=fp8"):
        with pytest.raises(AssemblyError):
            load_recipe(path, [override])
    for override in ("stages.7.steps=1", "steps"):
        with pytest.raises(TrainingError):
            load_recipe(path, [override])


def test_schedules_by_hand() -> None:
    base = {"stage": "x", "data": [], "steps": 110, "warmup": 10}
    cosine = StageRecipe(**base)
    assert [cosine.scale(0), cosine.scale(9), cosine.scale(10)] == [0.1, 1.0, 1.0]
    assert cosine.scale(60) == pytest.approx(0.5)
    assert StageRecipe(**base, schedule="linear", floor=0.2).scale(60) == pytest.approx(0.6)
    assert StageRecipe(**{**base, "steps": 60}, horizon=110).scale(60) == pytest.approx(0.5)
    assert StageRecipe(**base, schedule="constant").scale(100) == 1.0
    stable = StageRecipe(**base, schedule="wsd", decay=16, floor=0.2)
    assert [stable.scale(4), stable.scale(10), stable.scale(94)] == [0.5, 1.0, 1.0]
    # a quarter of the decay is done: 1 - sqrt(4 / 16) = 0.5, and 0.2 + 0.8 · 0.5
    assert stable.scale(98) == pytest.approx(0.6)
    # a tenth of 110 steps when nothing is said: 11 from step 99 on
    default = StageRecipe(**base, schedule="wsd")
    assert [default.scale(99), default.scale(110)] == [1.0, 0.0]
    for options in ({"decay": 5}, {"schedule": "wsd", "decay": 101}):
        with pytest.raises(ValueError, match="decay"):
            StageRecipe(**base, **options)


def test_a_recipe_keeps_its_digest_when_it_moves() -> None:
    common = {"name": "x", "stages": [StageRecipe(stage="s", data=[], steps=1)]}
    here = Recipe(**common, pipeline={"tokenizer": "/a/b/t"}, folder=Path("/a/b"))
    there = Recipe(**common, pipeline={"tokenizer": "/c/t"}, folder=Path("/c"))
    assert here.digest() == there.digest()
    assert here.digest() != Recipe(**common, pipeline={}, folder=Path("/a/b")).digest()


def test_rates_that_name_nothing_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, steps=2)
    with pytest.raises(TrainingError, match="name no parameter: lm"):
        run(path, tmp_path / "o", "stages.0.rates.lm=0.1")
