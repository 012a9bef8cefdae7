"""Random positions of image rows: the rule by hand, its bounds, and that they change nothing else."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
import torch
from andes_pretraining import Pretraining
from andes_pretraining.positions import Replacement, replaced
from andes_training.data.samples import stage_samples
from andes_training.feed import packed
from andes_training.loss import next_token_loss
from andes_training.recipe import DataRecipe, StageRecipe
from andes_training.run import StageRun
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError
from andes_sdk.types import Position

START = Position()
MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def rows(text: str) -> list[bool]:
    """`t` is a row of text, `i` one of a picture."""
    return [letter == "i" for letter in text]


def test_the_rule_by_hand() -> None:
    # 2 rows of text, 3 of a picture over round(2 * 3) = 6 positions, 2 of text, 1 picture row over 2, 1 of text
    drawn = random.Random("key")
    first, second = sorted(drawn.sample(range(6), 3)), drawn.sample(range(2), 1)
    expected = [0, 1, *(2 + x for x in first), 8, 9, *(10 + x for x in second), 12]
    assert replaced(rows("ttiiittit"), 9, (), 2.0, 100, random.Random("key")) == expected


@pytest.mark.parametrize("seed", range(20))
def test_order_and_text_steps_are_kept_and_the_limit_holds(seed: int) -> None:
    rng = random.Random(seed)
    image = [rng.random() < 0.6 for _ in range(60)]
    room = rng.randrange(0, 80)
    positions = replaced(image, 60, (), 1.0 + rng.random() * 3, room, rng)
    steps = [b - a for a, b in pairwise(positions)]
    assert min(steps) >= 1
    assert positions[-1] < 60 + room
    # from text to text the step is one; more only next to a row of a picture
    assert all(step == 1 for step, (a, b) in zip(steps, pairwise(image), strict=True) if not a and not b)
    if not room:
        assert positions == list(range(60))


def test_branches_go_on_where_the_spread_prefix_ends() -> None:
    positions = replaced(rows("tiit" + "tt" + "ttt"), 4, (2, 3), 2.0, 50, random.Random(0))
    assert positions[3] == 5
    assert positions[4:] == [6, 7, 6, 7, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for n, colour in enumerate(("red", "green", "blue", "black", "white", "gray")):
        Image.new("RGB", (56, 28 * (1 + n % 3)), colour).save(folder / f"{n}.png")
        picture = {"type": "image_url", "image_url": {"url": f"{n}.png"}}
        user = {"role": "user", "content": [{"type": "text", "text": "look:"}, picture]}
        lines.append(
            json.dumps({"messages": [user, {"role": "assistant", "content": f"it is {colour} " * (n % 2 + 1)}]})
        )
    (folder / "d.jsonl").write_text("\n".join(lines))
    return folder


def stream(pipe: Pipeline, folder: Path, stage: str, *, position: Position = START, max_patches: int = 64):
    recipe = StageRecipe(stage=stage, data=[DataRecipe(path=folder / "d.jsonl")], steps=1, max_patches=max_patches)
    made = pipe.pick("training_stages", stage)
    run = StageRun(
        pipeline=pipe, recipe=recipe, stage=made, samples=stage_samples(recipe.data, folder), position=position, seed=4
    )
    return (made.feed if hasattr(made, "feed") else packed)(run)


def first(items, count: int) -> list:
    found = [next(items) for _ in range(count)]
    items.close()
    return found


def test_joint_replaces_positions_of_pictures_and_changes_nothing_else(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, {"pretraining": {"replace_positions": 1.0}}])
    plain, joint = (first(stream(pipe, folder, stage), 4) for stage in ("multitask", "joint"))
    for (p, a), (q, b) in zip(plain, joint, strict=True):
        assert p == q
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.labels, b.labels)
        assert not torch.equal(a.positions, b.positions)
        start = 0
        for segment in a.attend.segments:
            one = slice(start, start + segment.rows)
            assert a.positions[one].tolist() == list(range(segment.rows))
            assert b.positions[start] == 0
            assert b.positions[one].max() < pipe.model.text.max_positions
            start += segment.rows


def test_positions_follow_from_seed_and_sample_not_from_packs_or_restarts(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "pretraining"])

    def by_sample(batches: list) -> dict[tuple[int, int], list[int]]:
        found = {}
        for _, batch in batches:
            start = 0
            places = zip(batch.extras["epoch"].tolist(), batch.extras["offset"].tolist(), strict=True)
            for segment, place in zip(batch.attend.segments, places, strict=True):
                found[place] = batch.positions[start : start + segment.rows].tolist()
                start += segment.rows
        return found

    small = first(stream(pipe, folder, "joint", max_patches=24), 12)
    large = by_sample(first(stream(pipe, folder, "joint", max_patches=400), 2))
    assert len(large) == 12
    assert by_sample(small).items() >= {k: v for k, v in large.items() if k in by_sample(small)}.items()
    again = first(stream(pipe, folder, "joint", max_patches=24, position=small[3][0]), 8)
    assert by_sample(again).items() <= by_sample(small).items()
    spread = [positions != list(range(len(positions))) for positions in large.values()]
    assert 0 < sum(spread) < 12  # half of them, by chance


def test_a_pack_with_replaced_positions_has_the_loss_and_gradients_of_its_samples(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, {"pretraining": {"replace_positions": 1.0}}], seed=1)
    model = pipe.model
    (_, pack), *_ = first(stream(pipe, folder, "joint", max_patches=400), 1)
    singles = [batch for _, batch in first(stream(pipe, folder, "joint", max_patches=24), 6)]
    assert [b.samples for b in singles] == [1] * 6
    assert pack.tokens == sum(b.tokens for b in singles)
    model.zero_grad()
    loss = next_token_loss(model, pack)[0]
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parts = [next_token_loss(model, b)[0] * (b.tokens / pack.tokens) for b in singles]
    torch.stack(parts).sum().backward()
    assert float(loss.detach()) == pytest.approx(float(sum(p.detach() for p in parts)), abs=1e-5)  # float32
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-5)  # float32, other order of additions


def test_no_sample_of_a_pack_sees_another(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "pretraining"])
    (_, pack), *_ = first(stream(pipe, folder, "joint", max_patches=400), 1)
    edge = pack.attend.segments[0].rows
    changed = pack.ids.clone()
    last = int((pack.labels[:edge] != -100).nonzero().max())
    changed[last + 1] = (changed[last + 1] + 1) % 100
    with torch.no_grad():
        images = pipe.model.encode(pack.media)
        one, two = (
            pipe.model.hidden_states(pipe.model.embed(ids, images), pack.positions, pack.attend)
            for ids in (pack.ids, changed)
        )
    assert not torch.equal(one[:edge], two[:edge])
    assert torch.equal(one[edge:], two[edge:])


def test_rates_freeze_what_has_none() -> None:
    options = {"joint_encoder_rate": 0.0, "multitask_rate": 3e-5}
    pipe = Pipeline.from_plugins([*MODEL, {"pretraining": options}])
    rates = {name: stage.rates(pipe.model) for name, stage in pipe.collection("training_stages").items()}
    assert rates == {
        "alignment": {"mlp": 1e-3},
        "joint": {"language_model": 2e-5, "mlp": 2e-5},
        "multitask": {"language_model": 3e-5, "mlp": 2e-5, "vision_encoder": 2e-5},
    }


def test_a_stage_that_would_train_nothing_is_refused() -> None:
    nothing = dict.fromkeys(("joint_rate", "joint_projector_rate", "joint_encoder_rate"), 0.0)
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins([*MODEL, {"pretraining": nothing}])
    assert "'joint' trains nothing" in str(caught.value)
    assert {f.name for f in attrs.fields(Pretraining)} >= set(nothing)


def test_a_share_of_zero_returns_the_very_batch() -> None:
    batch = "anything"
    assert Replacement(share=0.0, span=2.0).apply(batch, image_token=1, limit=9, key="") is batch
