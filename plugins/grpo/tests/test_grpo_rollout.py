"""Rollouts: from prompts to packs, in a tiny pipeline; and a run that is killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from andes_grpo import GRPO
from andes_grpo.policy import answer_logps
from andes_grpo.prompts import PromptMaker, seed_of
from andes_grpo.rollout import Rollouts
from andes_grpo.sampling import SessionSampler
from andes_grpo.stage import FIGURES, GroupRelative
from andes_training.data.samples import stage_samples
from andes_training.packing import branch_slices, collate, make_row
from andes_training.recipe import DataRecipe, StageRecipe
from andes_training.run import StageRun
from attrs import evolve, frozen
from PIL import Image
from safetensors.torch import load_file

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, ConfigError, TrainingError
from andes_sdk.hookspecs import hookimpl
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.testing.elsewhere import started
from andes_sdk.types import Inputs, Position

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@frozen
class Vowels:
    """Share of vowels: cheap, and different for most answers of a random model."""

    name: str = "vowels"

    def score(self, sample, answer):
        return sum(c in "aeiou" for c in answer) / max(1, len(answer)) if sample.get("scored", True) else 0.5


@frozen(eq=False, kw_only=True)
class Rewards:
    contract = "1.1"

    @hookimpl
    def andes_rewards(self):
        return [Vowels()]


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_plugins([*MODEL, Rewards()])


def picture_lines(folder, count=6, **more):
    lines = []
    for i in range(count):
        Image.new("RGB", (28 + 28 * (i % 2), 28), (40 * i, 90, 200 - 30 * i)).save(folder / f"{i}.png")
        content = [
            {"type": "image_url", "image_url": {"url": f"{i}.png"}},
            {"type": "text", "text": "which colour?" + " please" * (i % 3)},
        ]
        lines.append({"messages": [{"role": "user", "content": content}], "think": bool(i % 2), **more})
    (folder / "data.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return stage_samples([DataRecipe(path=Path("data.jsonl"))], folder)


def options(**changes):
    given = {"rewards": {"vowels": 1.0}, "group": 3, "prompts_per_step": 2, "max_answer": 5}
    return GRPO(**{**given, **changes})


def run_of(pipe, samples, own, told=None, **changes):
    recipe = {"stage": "grpo", "data": [], "steps": 4, "accumulate": 2, **changes.pop("recipe", {})}
    tell = {} if told is None else {"tell": lambda kind, values: told.append((kind, values))}
    return StageRun(
        pipeline=pipe, recipe=StageRecipe(**recipe), stage=GroupRelative(own), samples=samples, **tell, **changes
    )


def first(pipe, samples, own, count=1, **changes):
    feed = GroupRelative(own).feed(run_of(pipe, samples, own, **changes))
    return [next(feed) for _ in range(count)]


def test_an_answer_is_what_the_pipeline_generates_with_its_seed(pipe, tmp_path):
    samples = picture_lines(tmp_path)[:2]
    prompts = [PromptMaker.of(pipe, 7).prompt(s, [seed_of(i, k) for k in range(3)]) for i, s in enumerate(samples)]
    image = pipe.tokenizer.placeholder("image")
    for prompt, group in zip(prompts, SessionSampler(pipe, 7, 0.8, concurrency=4).answers(prompts), strict=True):
        for seed, answer in zip(prompt.seeds, group, strict=True):
            think = bool(prompt.inputs.prefix)
            same = GenerationOptions(max_tokens=7, temperature=0.8, seed=seed, think=think)
            alone = pipe.generate(prompt.messages, same)
            assert image not in alone.tokens
            assert (answer.tokens, answer.text) == (alone.tokens, alone.text)
            assert answer.finished == (alone.finish == "stop")


def test_answers_without_eos_are_cut_and_those_with_it_are_finished(pipe, tmp_path):
    prompt = PromptMaker.of(pipe, 12).prompt(picture_lines(tmp_path)[0], range(60))
    (answers,) = SessionSampler(pipe, 12).answers([prompt])
    ends = {pipe.tokenizer.eos, pipe.tokenizer.pad}
    assert {a.finished for a in answers} == {True, False}
    for a in answers:
        assert a.finished == (a.tokens[-1] in ends)
        assert not ends & set(a.tokens[:-1])
        assert a.finished or len(a.tokens) == 12


def test_the_image_token_is_never_sampled_and_has_no_probability(pipe, tmp_path):
    rigged = Pipeline.from_plugins([*MODEL, Rewards()])
    prompt = PromptMaker.of(rigged, 3).prompt(picture_lines(tmp_path)[0], range(8))
    with torch.no_grad():  # tied to the head: by far the likeliest or the least likely token, as the sign has it
        rigged.model.language_model.model.embed_tokens.weight[rigged.tokenizer.placeholder("image")] *= 1e4
    (answers,) = SessionSampler(rigged, 3).answers([prompt])
    assert all(rigged.tokenizer.placeholder("image") not in a.tokens for a in answers)
    assert all(torch.tensor(a.logps).isfinite().all() for a in answers)


def test_log_probabilities_of_sampler_and_loss_agree(pipe, tmp_path):
    own = options(temperature=0.7)
    for _, batch in first(pipe, picture_lines(tmp_path), own, count=2):
        logps, entropy = answer_logps(pipe.model, batch, own.temperature)
        # one pass over a pack against token by token with a KV store: float32 rounding
        torch.testing.assert_close(logps, batch.extras["sampled"], rtol=0, atol=2e-5)
        assert (entropy > 0).all()


def test_a_group_is_one_row_equal_to_its_answers_in_rows_of_their_own(pipe, tmp_path):
    own = options(group=4)
    ((_, batch),) = first(pipe, picture_lines(tmp_path), own, recipe={"accumulate": 1})
    assert batch.samples == 2
    assert [len(b) for b in branch_slices(batch)] == [4, 4]
    together, _ = answer_logps(pipe.model, batch, 1.0)
    lengths, start, alone = batch.extras["length"].tolist(), 0, []
    prompts = Rollouts.of(run_of(pipe, picture_lines(tmp_path), own), own)._prompts(Position(), 2)[0]
    tokens = batch.labels[batch.labels != -100].split(lengths)
    for number, answer in enumerate(tokens):
        inputs = prompts[number // 4].inputs
        ids = torch.cat([inputs.ids, answer])
        marked = torch.arange(len(ids)) >= len(inputs.ids)
        row = make_row([Inputs(ids, inputs.media, marked)])
        alone.append(answer_logps(pipe.model, collate([row]), 1.0)[0])
        start += len(answer)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)


def test_each_answer_carries_the_advantage_of_its_own_reward(pipe, tmp_path):
    own, ends = options(group=4, scale="none"), {pipe.tokenizer.eos, pipe.tokenizer.pad}
    rewards, gains = [], []
    samples = picture_lines(tmp_path, think=False)  # no prefix: an answer's text is its tokens'
    for _, batch in first(pipe, samples, own, count=4, recipe={"max_tokens": 60}):
        for tokens in batch.labels[batch.labels != -100].split(batch.extras["length"].tolist()):
            rewards.append(Vowels().score({}, pipe.tokenizer.decode([i for i in tokens.tolist() if i not in ends])))
        gains.append(batch.extras["advantage"])
    rewards = torch.tensor(rewards).view(-1, 4)
    assert rewards.unique().numel() > 4
    torch.testing.assert_close(torch.cat(gains).view(-1, 4), rewards - rewards.mean(1, keepdim=True))


def test_no_image_row_and_no_prompt_row_has_a_loss(pipe, tmp_path):
    ((_, batch),) = first(pipe, picture_lines(tmp_path), options(), recipe={"accumulate": 1})
    image = batch.ids == pipe.tokenizer.placeholder("image")
    assert image.any()
    assert (batch.labels[image] == -100).all()
    assert not (batch.labels == pipe.tokenizer.placeholder("image")).any()
    assert int((batch.labels != -100).sum()) == int(batch.extras["length"].sum()) == batch.tokens


def test_a_row_wider_than_the_budget_is_divided_and_packs_are_as_many_as_the_recipe_says(pipe, tmp_path):
    samples = picture_lines(tmp_path)
    wide = first(pipe, samples, options(group=6, prompts_per_step=4), count=2)
    narrow = first(pipe, samples, options(group=6, prompts_per_step=4), count=2, recipe={"max_tokens": 60})
    assert sum(b.samples for _, b in wide) == 4 < sum(b.samples for _, b in narrow)
    for key in ("advantage", "length", "sampled"):
        one, two = (torch.cat([b.extras[key] for _, b in batches]) for batches in (wide, narrow))
        assert torch.equal(one, two), key
    sizes = [len(b.ids) for _, b in wide]
    assert max(sizes) < 2 * min(sizes)


def test_feeding_from_a_position_repeats_what_followed_it(pipe, tmp_path):
    samples, own = picture_lines(tmp_path), options()
    before = first(pipe, samples, own, count=8)
    position, _ = before[3]
    assert position == Position(epoch=0, offset=4)
    again = first(pipe, samples, own, count=4, position=position)
    for (p, one), (q, two) in zip(before[4:], again, strict=True):
        assert p == q
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.labels, two.labels)
        assert all(torch.equal(one.extras[k], two.extras[k]) for k in one.extras)
    assert before[-1][0] == Position(epoch=1, offset=2)  # 6 prompts an epoch, 2 a step


def test_seeds_differ_between_answers_prompts_and_epochs_and_between_runs(pipe, tmp_path):
    samples = picture_lines(tmp_path, 2)
    batches = first(pipe, samples, options(), count=4)
    other = first(pipe, samples, options(), count=2, seed=1)
    seen = [tuple(b.extras["sampled"].tolist()) for _, b in [*batches, *other]]
    assert len(set(seen)) == len(seen)


def test_every_process_takes_its_share_of_the_prompts(pipe, tmp_path):
    samples, own = picture_lines(tmp_path), options(order="file")
    alone = first(pipe, samples, own, count=2)
    shares = [first(pipe, samples, own, rank=r, world=2) for r in (0, 1)]
    assert [p for ((p, _),) in shares] == [alone[-1][0]] * 2
    for (_, want), ((_, got),) in zip(alone, shares, strict=True):
        assert torch.equal(want.ids, got.ids)
        # matrix products of more rows add in another order
        torch.testing.assert_close(got.extras["sampled"], want.extras["sampled"], rtol=0, atol=1e-5)


def test_minibatches_and_epochs_go_through_one_rollout_with_its_own_old_log_probabilities(pipe, tmp_path):
    samples, own = picture_lines(tmp_path), options(minibatches=2, epochs=2)
    run = {"accumulate": 1, "checkpoint_every": 4}
    batches = first(pipe, samples, own, count=5, recipe=run)
    offsets = [(p.epoch, p.offset) for p, _ in batches]
    assert offsets == [(0, 0), (0, 0), (0, 0), (0, 4), (0, 4)]
    (_, a), (_, b), (_, c), (_, d), _ = batches
    assert a is c
    assert b is d
    assert not torch.equal(a.ids, b.ids)
    torch.testing.assert_close(a.extras["old"], a.extras["sampled"], rtol=0, atol=2e-5)
    with pytest.raises(TrainingError, match="multiple of 4"):
        first(pipe, samples, own, recipe={"accumulate": 1, "checkpoint_every": 6})


def test_dynamic_sampling_replaces_flat_groups_up_to_its_cap(pipe, tmp_path):
    samples = picture_lines(tmp_path)
    samples = [evolve(s, entry={**s.entry, "scored": i % 3 == 2}) for i, s in enumerate(samples)]
    told: list = []
    plain = first(pipe, samples, options(order="file"), count=2, told=told)
    assert told[-1][1]["flat"] == 1.0
    assert all(not b.extras["advantage"].any() for _, b in plain)
    again = first(pipe, samples, options(order="file", resample=2), count=2, told=told)
    # 2 flat, then 2 of which one is flat, then 1 that is flat: the cap leaves one useful group and the last flat one
    assert told[-1][1]["prompts"] == 5
    assert again[-1][0] == Position(epoch=0, offset=5)
    assert sorted(bool(b.extras["advantage"].any()) for _, b in again) == [False, True]
    done = first(pipe, samples, options(order="file", resample=3), count=2, told=told)
    assert told[-1][1]["prompts"] == 6
    assert all(b.extras["advantage"].any() for _, b in done)


def test_truncated_answers_are_kept_masked_or_punished(pipe, tmp_path):
    samples = picture_lines(tmp_path)
    ((_, kept),) = first(pipe, samples, options(), recipe={"accumulate": 1})
    cut = kept.extras["length"] == 5
    assert kept.extras["keep"].all()
    assert cut.any()
    ((_, masked),) = first(pipe, samples, options(overlong="mask"), recipe={"accumulate": 1})
    ended = masked.labels[masked.labels != -100].split(masked.extras["length"].tolist())
    finished = [int(t[-1]) in (pipe.tokenizer.eos, pipe.tokenizer.pad) for t in ended]
    assert masked.extras["keep"].tolist() == finished
    assert masked.tokens == int((masked.extras["length"] * masked.extras["keep"]).sum())
    loss, _ = GroupRelative(options(overlong="mask")).loss(pipe.model, masked)
    assert loss.isfinite()
    told: list = []
    first(pipe, samples, options(overlong="penalty", overlong_buffer=5, rewards={"vowels": 1e-9}), told=told)
    # length 5 of 5 costs 1.0, each shorter token 0.2 less
    assert told[-1][1]["reward"] == pytest.approx(-told[-1][1]["length"] / 5, abs=1e-6)


def test_the_mismatch_of_sampler_and_model_is_logged_and_its_correction_capped(pipe, tmp_path):
    ((_, batch),) = first(pipe, picture_lines(tmp_path), options(), recipe={"accumulate": 1})
    extras = {"advantage": torch.ones_like(batch.extras["advantage"]), "sampled": batch.extras["sampled"] - 1.0}
    shifted = evolve(batch, extras={**batch.extras, **extras})
    losses = {}
    for cap in (None, 2.0, 10.0):
        loss, figures = GroupRelative(options(mismatch_cap=cap)).loss(pipe.model, shifted)
        assert figures["mismatch"] == pytest.approx(1.0, abs=1e-4)
        assert figures["mismatch_kl"] == pytest.approx(torch.e - 2, abs=1e-3)
        losses[cap] = loss.item()
    assert losses[2.0] == pytest.approx(2.0 * losses[None], rel=1e-4)
    assert losses[10.0] == pytest.approx(torch.e * losses[None], rel=1e-3)
    _, figures = GroupRelative(options()).loss(pipe.model, batch)
    assert figures["mismatch"] < 1e-5
    assert set(FIGURES) < set(figures)


def test_what_cannot_be_trained_on_is_said_with_file_and_line(pipe, tmp_path):
    def refused(match, own=None, error=TrainingError, **changes):
        with pytest.raises(error, match=match) as caught:
            first(pipe, samples, own or options(), **changes)
        return str(caught.value)

    samples = picture_lines(tmp_path)
    bad = evolve(samples[0], entry={"messages": [{"role": "assistant", "content": "no"}]})
    samples = [bad, bad]
    assert "data.jsonl:1" in refused("is no prompt")
    samples = picture_lines(tmp_path)
    refused("is too long", options(max_answer=5000))
    refused("is too long", recipe={"max_tokens": 20})
    refused("is too large", recipe={"max_patches": 3})
    refused("no plugin of this pipeline brings", options(rewards={"vowel": 1.0}), ConfigError)
    refused("lower accumulate", recipe={"accumulate": 3})
    samples = stage_samples([DataRecipe(path=Path("data.jsonl"), questions=1)], tmp_path)
    refused("one question")
    samples = stage_samples([DataRecipe(path=Path("data.jsonl"), weight=1.0)], tmp_path)
    refused("takes whole files", options(order="file"))


def test_a_prompt_that_cannot_be_used_is_skipped_and_counted_where_the_recipe_says_so(pipe, tmp_path):
    picture_lines(tmp_path)
    (tmp_path / "1.png").unlink()
    samples = stage_samples([DataRecipe(path=Path("data.jsonl"), on_error="skip")], tmp_path)
    run = run_of(pipe, samples, own := options(order="file"))
    feed = GroupRelative(own).feed(run)
    positions = [next(feed)[0] for _ in range(2)]
    assert positions[-1] == Position(epoch=0, offset=3)
    assert run.bad.counts() == {"picture": 1}


def test_options_that_do_not_fit_are_refused_when_the_pipeline_is_assembled():
    for given, text in (
        ({"overlong": "penalty", "overlong_buffer": 900}, "exceeds max_answer"),
        ({"group": 1}, "group"),
        ({"rewards": {}}, "at least one reward"),
        ({"normalise": "mean"}, "normalise"),
    ):
        with pytest.raises(AssemblyError) as caught:
            Pipeline.from_plugins([*MODEL, Rewards(), {"grpo": given}])
        assert text in str(caught.value)


RUN = """
import os, sys
from pathlib import Path
from andes_sdk import Pipeline
from andes_training.recipe import load_recipe
sys.path.insert(0, str(Path(sys.argv[1]) / "code"))
from rewards import Rewards
recipe = load_recipe(Path(sys.argv[1]) / "recipe.toml")
class Killer:
    def show(self, event):
        if event.kind == "step" and event.step == int(sys.argv[3]):
            os.kill(os.getpid(), 9)
pipe = Pipeline.from_plugins([*recipe.pipeline["plugins"], Rewards()])
pipe.train(recipe, Path(sys.argv[1]) / sys.argv[2], progress=Killer())
"""
OPTIONS = (
    "rewards = { vowels = 1.0 }, group = 3, prompts_per_step = 2, max_answer = 5, rate = 1e-2, kl = 0.1, "
    "epochs = 2, resample = 1"
)
RECIPE = f"""
name = "resume"
threads = 1
[pipeline]
plugins = [
    {{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny" }} }}, {{ grpo = {{ {OPTIONS} }} }},
]
[[stages]]
stage = "grpo"
steps = 6
checkpoint_every = 2
accumulate = 2
data = [{{ path = "data.jsonl" }}]
"""
CODE = """
from attrs import frozen
from andes_sdk.hookspecs import hookimpl

@frozen
class Vowels:
    name: str = "vowels"

    def score(self, sample, answer):
        return sum(c in "aeiou" for c in answer) / max(1, len(answer))

@frozen(eq=False, kw_only=True)
class Rewards:
    contract = "1.1"

    @hookimpl
    def andes_rewards(self):
        return [Vowels()]
"""


def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    picture_lines(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "rewards.py").write_text(CODE)

    def train(out, kill=0):
        with started(RUN, [tmp_path, out, kill], tmp_path / "told") as child:
            child.join(600)
        assert child.exitcode == (-9 if kill else 0), (tmp_path / "told.err").read_text()

    train("whole")
    train("killed", kill=3)
    train("killed")
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("whole", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
