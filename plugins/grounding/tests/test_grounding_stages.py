"""Reading and pointing: targets by hand, gradients where they belong, bad data told, and both learn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_grounding import Grounding
from andes_grounding.pointing import POINTER, Watch, coverage, looks_of, pictures_of
from andes_grounding.reading import BINS, EMPTY, HEAD, OTHER, SEEN, glyph_classes, place_classes, single
from andes_training.data.samples import stage_samples
from andes_training.packing import branch_slices
from andes_training.progress import Progress
from andes_training.recipe import DataRecipe, StageRecipe
from andes_training.run import StageRun
from attrs import evolve
from PIL import Image, ImageDraw

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, ConfigError, TrainingError
from andes_sdk.runtime.attention import PackedAttention, Segment

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
BOX = "<|box_start|>({},{}),({},{})<|box_end|>"


def line(name: str, *pairs: tuple[str, str], **more: Any) -> str:
    """A data line: a picture, and questions about it."""
    talks = []
    for question, answer in pairs:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        talks.append([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
    return json.dumps({"conversations": talks, "images": [name], **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 4 x 2 merged rows with a dark square, one in each cell."""
    folder = tmp_path_factory.mktemp("data")
    for n in range(8):
        image = Image.new("RGB", (112, 56), "white")
        left, top = 28 * (n % 4), 28 * (n // 4)
        ImageDraw.Draw(image).rectangle((left + 4, top + 4, left + 23, top + 23), fill="black")
        image.save(folder / f"{n}.png")
    return folder


def cell(n: int) -> tuple[int, int, int, int]:
    """The box of a picture's square in thousandths."""
    return 250 * (n % 4) + 40, 500 * (n // 4) + 80, 250 * (n % 4) + 210, 500 * (n // 4) + 420


def run_of(pipe: Pipeline, folder: Path, stage: str, lines: list[str], **recipe: Any) -> StageRun:
    """A stage of a run on these lines."""
    (folder / f"{stage}.jsonl").write_text("\n".join(lines))
    made = StageRecipe(
        stage=stage, data=[DataRecipe(path=folder / f"{stage}.jsonl", **recipe.pop("source", {}))], steps=1, **recipe
    )
    samples = stage_samples(made.data, folder)
    return StageRun(pipeline=pipe, recipe=made, stage=pipe.pick("training_stages", stage), samples=samples)


# ---------------------------------------------------------------- reading


def test_glyphs_become_classes_of_patches_in_block_order() -> None:
    # 2 x 4 patches are two blocks; patch (row 1, column 2) is the third of the second block
    glyphs = [["B", 0.70, 0.80], ["A", 0.55, 0.80], ["é", 0.01, 0.01], ["字", 1, 0.2]]
    classes = glyph_classes(glyphs, (2, 4), 2, 3, "here")
    a, b = (ord(c) - ord("!") + 1 for c in "AB")
    assert classes.shape == (8, 3)
    assert classes[6].tolist() == [a, b, EMPTY]
    assert classes[0, 0] == 95 + ord("é") - 161
    assert classes[5, 0] == OTHER
    assert int((classes != EMPTY).sum()) == 4


def test_characters_of_two_lines_in_one_patch_are_read_line_by_line() -> None:
    glyphs = [["d", 0.9, 0.9], ["b", 0.9, 0.1], ["c", 0.1, 0.9], ["a", 0.1, 0.1], ["e", 0.95, 0.95]]
    classes = glyph_classes(glyphs, (1, 1), 1, 4, "here")
    assert [chr(int(c) - 1 + ord("!")) for c in classes[0]] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "glyphs", [None, "ABC", [["A", 0.5]], [["A", 0.5, 1.5]], [[7, 0.5, 0.5]], [["A", math.nan, 0.5]], [["A", "0", 0.5]]]
)
def test_what_is_no_list_of_glyphs_is_told_with_its_place(glyphs: object) -> None:
    with pytest.raises(TrainingError, match="glyph") as error:
        glyph_classes(glyphs, (2, 2), 2, 2, "d.jsonl:7")
    assert error.value.who == "d.jsonl:7"
    assert error.value.fix


def glyph_lines() -> list[str]:
    """The cell of each square is the character it shows."""
    return [
        line(f"{n}.png", ("", "."), glyphs=[["ABCDEFGH"[n], (n % 4 + 0.4) / 4, (n // 4 + 0.4) / 2]]) for n in range(8)
    ]


def test_reading_trains_the_encoder_and_leaves_no_head(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, {"grounding": {"read_slots": 1, "read_rate": 5e-3}}], seed=0)
    before = {name: p.clone() for name, p in pipe.model.state_dict().items()}
    (folder / "glyphs.jsonl").write_text("\n".join(glyph_lines()))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "tiny"\n[[stages]]\nstage = "reading"\nsteps = 60\nwarmup = 5\nlog_every = 1\n'
        f'data = [{{ path = "{folder / "glyphs.jsonl"}" }}]\n'
    )
    with Progress(tmp_path / "out") as progress:
        pipe.train(recipe, tmp_path / "out", progress=progress)
    after = pipe.model.state_dict()
    changed = {name.split(".")[0] for name, p in after.items() if not torch.equal(p, before[name])}
    assert (before.keys(), changed) == (after.keys(), {"vision_encoder"})
    told = [json.loads(text) for text in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    read = [event["read"] for event in told if "read" in event]
    assert read[0] < 0.5 < 0.95 < read[-1]


def test_places_are_columns_and_rows_of_patches_in_block_order() -> None:
    columns, rows = place_classes((2, 4), 2).T.tolist()
    step = BINS // 4
    assert columns == [0, step, 0, step, 2 * step, 3 * step, 2 * step, 3 * step]
    assert rows == [0, 0, BINS // 2, BINS // 2] * 2
    assert int(place_classes((91, 57), 1).max()) == BINS - 1


def test_reading_aligns_projected_rows_with_the_tokens_of_their_characters(folder: Path, tmp_path: Path) -> None:
    options = {"read_slots": 1, "read_rate": 5e-3, "align_weight": 1.0}
    pipe = Pipeline.from_plugins([*MODEL, {"grounding": options}], seed=0)
    before = {name: p.clone() for name, p in pipe.model.state_dict().items()}
    (folder / "glyphs.jsonl").write_text("\n".join(glyph_lines()))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "tiny"\n[[stages]]\nstage = "reading"\nsteps = 150\nwarmup = 5\nlog_every = 1\n'
        f'data = [{{ path = "{folder / "glyphs.jsonl"}" }}]\n'
    )
    with Progress(tmp_path / "out") as progress:
        pipe.train(recipe, tmp_path / "out", progress=progress)
    after = pipe.model.state_dict()
    changed = {name.split(".")[0] for name, p in after.items() if not torch.equal(p, before[name])}
    assert (before.keys(), changed) == (after.keys(), {"vision_encoder", "mlp", "language_model"})
    told = [json.loads(text) for text in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    alike = [event["alike"] for event in told if "alike" in event]
    placed = [event["placed"] for event in told if "placed" in event]
    assert alike[0] < 0.3 < 0.8 < alike[-1]
    assert placed[0] < 0.5 < placed[-1]


def test_characters_of_several_tokens_cannot_be_aligned() -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"], seed=0)
    with pytest.raises(TrainingError, match="is 3 tokens"):
        single(pipe.model, "字")


def test_reading_refuses_changed_pictures_and_lines_without_one(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"], seed=0)
    run = run_of(pipe, folder, "reading", glyph_lines(), source={"shift": 0.1})
    with pytest.raises(TrainingError, match="cannot be changed"):
        next(run.stage.feed(run))
    text = json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]})
    run = run_of(pipe, folder, "reading", [text])
    with pytest.raises(TrainingError, match="does not show one picture"):
        next(run.stage.feed(run))


# ---------------------------------------------------------------- pointing


def test_a_box_covers_the_cells_it_lies_over() -> None:
    # 1 x 4 cells: from the middle of the first to a quarter of the second; a point; a box beyond the last cell's edge
    boxes = torch.tensor([[125, 0, 312, 1000], [600, 500, 600, 500], [1000, 1000, 1000, 1000]])
    covered = coverage(boxes, (1, 4))
    assert covered[0].tolist() == pytest.approx([1.0, 0.496, 0, 0], abs=1e-3)
    assert covered[1].tolist() == [0, 0, 1, 0]
    assert covered[2].tolist() == [0, 0, 0, 1]


def test_rows_of_an_answer_look_at_the_box_of_their_conversation(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"], seed=0)
    box, other = BOX.format(*cell(0)), BOX.format(*cell(5))
    pairs = ("where?", box), (f"what is at {box}?", "it"), ("both?", f"{box} and {other}"), ("colour?", "black")
    run = run_of(pipe, folder, "pointing", [line("0.png", *pairs)])
    _, batch = next(run.stage.feed(run))
    assert looks_of(batch, pipe.model).keys() == {"look_rows", "look_boxes"}
    rows, boxes = batch.extras["look_rows"], batch.extras["look_boxes"].view(-1, 4)
    assert bool((batch.labels[rows] != -100).all())
    assert bool((rows[1:] > rows[:-1]).all())
    found: dict[tuple[int, ...], str] = {}
    for row, target in zip(rows.tolist(), boxes.tolist(), strict=True):
        found[tuple(target)] = found.get(tuple(target), "") + pipe.model.tokenizer.decode([int(batch.labels[row])])
    # where one box is named every row of the answer looks there, where two are named the rows that write them
    inner, outer = (text.removeprefix("<|box_start|>") for text in (box, other))
    assert found == {cell(0): f"{box}it{inner}", cell(5): outer}


def test_answers_that_spell_a_page_look_at_one_character_after_another(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"], seed=0)
    glyphs = [["o", 0.1, 0.25], ["k", 0.15, 0.25], ["N", 0.6, 0.75], ["o", 0.7, 0.75]]
    box = BOX.format(500, 500, 990, 990)
    pairs = ("read", "ok No"), (f"what is at {box}?", "No"), (f"colour of {box}?", "red"), ("where is No?", box)
    run = run_of(pipe, folder, "pointing", [line("0.png", *pairs, glyphs=glyphs)])
    _, batch = next(run.stage.feed(run))
    targets = dict(
        zip(batch.extras["look_rows"].tolist(), batch.extras["look_boxes"].view(-1, 4).tolist(), strict=True)
    )
    points = [[round(1000 * x), round(1000 * y)] * 2 for _, x, y in glyphs]
    seen = []
    for branch in branch_slices(batch)[0]:
        answer = (batch.labels[branch] != -100).nonzero()[:, 0].tolist()
        seen.append([targets.get(branch.start + row) for row in answer])
    spelt = {n: [point for k, point in enumerate(seen[n]) if k == 0 or point != seen[n][k - 1]] for n in (0, 1)}
    # whole words are one token each of this tokenizer, and the turn's end looks at the last character
    assert spelt[0][0] == points[0]
    assert spelt[0][-1] == points[-1]
    assert spelt[1][0] == points[2]
    assert spelt[1][-1] == points[3]
    # what spells something else looks at the box that is asked about, and a box that is answered is looked at
    whole = [500, 500, 990, 990]
    assert [point for n in (2, 3) for point in seen[n]] == [whole] * (len(seen[2]) + len(seen[3]))


@torch.no_grad()
def test_the_loss_of_looking_is_what_a_plain_attention_gives(folder: Path) -> None:
    pipe = Pipeline.from_plugins(
        [*MODEL, {"grounding": {"look_weight": 2.0, "look_layer": 1, "box_weight": 0}}], seed=0
    )
    lines = [line(f"{n}.png", ("where?", BOX.format(*cell(n))), ("and now?", BOX.format(*cell(n)))) for n in range(3)]
    run = run_of(pipe, folder, "pointing", lines)
    _, batch = next(run.stage.feed(run))
    model, stage = pipe.model, run.stage
    loss, figures = stage.loss(model, batch)
    plain, _ = Pipeline.from_plugins([*MODEL, "sft"]).pick("training_stages", "sft").loss(model, batch)
    seen: list[tuple[torch.Tensor, torch.Tensor, float]] = []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        if layer == 1:
            seen.append((q, k, scale))
        return batch.attend(layer, q, k, v, scale)

    model.hidden_states(model.embed(batch.ids, model.encode(batch.media)), batch.positions, attend)
    (q, k, scale), placeholder = seen[0], model.tokenizer.placeholder("image")
    image = (batch.ids == placeholder).nonzero()[:, 0]
    edges = torch.tensor([0, *(s.rows for s in batch.attend.segments)]).cumsum(0)
    losses = []
    for row, box in zip(batch.extras["look_rows"].tolist(), batch.extras["look_boxes"].view(-1, 4), strict=True):
        sample = int((edges <= row).sum()) - 1
        own = image[(image >= edges[sample]) & (image < edges[sample + 1])]
        branch = next(b for b in branch_slices(batch)[sample] if b.start <= row < b.stop)
        prefix = branch_slices(batch)[sample][0].start
        seen_rows = torch.tensor([*range(int(edges[sample]), prefix), *range(branch.start, row + 1)])
        weights = torch.softmax(scale * (k[0, 0, seen_rows] @ q[0, 0, row]), 0)[torch.isin(seen_rows, own)]
        losses.append(-torch.log((weights * coverage(box[None], (2, 4))[0]).sum()))
    assert float(loss) == pytest.approx(float(plain + 2.0 * torch.stack(losses).mean()), rel=1e-5)
    assert figures["look"] == pytest.approx(float(torch.stack([(-x).exp() for x in losses]).mean()), rel=1e-5)


@torch.no_grad()
def test_a_line_says_where_answers_without_a_box_can_be_seen(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"], seed=0)
    boxed = BOX.format(*cell(1))
    entry = json.loads(line("0.png", ("colour?", "black"), ("how many?", "one"), ("where?", boxed)))
    entry["looks"] = [[0, 0, 250, 500], None, [0, 500, 250, 1000]]
    run = run_of(pipe, folder, "pointing", [json.dumps(entry)])
    _, batch = next(run.stage.feed(run))
    boxes = {tuple(b) for b in batch.extras["look_boxes"].view(-1, 4).tolist()}
    assert boxes == {(0, 0, 250, 500), tuple(cell(1))}  # a box in the words goes first
    rows = set(batch.extras["look_rows"].tolist())
    told, silent, _ = branch_slices(batch)[0]
    said = [{r for r in range(b.start, b.stop) if batch.labels[r] != -100} for b in (told, silent)]
    assert said[0] <= rows
    assert not said[1] & rows


@pytest.mark.parametrize(
    "looks", [[[0, 0, 1, 1]], [[0, 0, 9], None], [[0, 0, 10, 1001], None], [[5, 0, "x", 1], None], 3]
)
def test_looks_that_are_no_boxes_of_conversations_are_told_with_their_place(folder: Path, looks: object) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"])
    entry = json.loads(line("0.png", ("colour?", "black"), ("how many?", "one"))) | {"looks": looks}
    run = run_of(pipe, folder, "pointing", [json.dumps(entry)])
    with pytest.raises(TrainingError, match="looks name no boxes"):
        next(run.stage.feed(run))


def test_looks_are_refused_where_a_recipe_leaves_conversations_out(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"])
    entry = json.loads(line("0.png", ("colour?", "black"), ("how many?", "one"))) | {"looks": [None, None]}
    run = run_of(pipe, folder, "pointing", [json.dumps(entry)], source={"questions": 1})
    with pytest.raises(TrainingError, match="conversations are left out"):
        next(run.stage.feed(run))


@torch.no_grad()
def test_several_pictures_and_samples_without_boxes_have_nowhere_to_look(folder: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"], seed=0)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "where?"}]
    answer = {"role": "assistant", "content": BOX.format(*cell(0))}
    two = json.dumps({"messages": [{"role": "user", "content": content}, answer], "images": ["0.png", "1.png"]})
    text = json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no"}]})
    run = run_of(pipe, folder, "pointing", [two, text, line("2.png", ("colour?", "black"))])
    _, batch = next(run.stage.feed(run))
    assert sorted(p is None for p in pictures_of(batch, pipe.model)) == [False, True, True]
    assert not len(batch.extras["look_rows"])
    loss, figures = run.stage.loss(pipe.model, batch)
    plain, _ = Pipeline.from_plugins([*MODEL, "sft"]).pick("training_stages", "sft").loss(pipe.model, batch)
    assert (float(loss), "look" in figures) == (float(plain), False)


def test_sides_of_boxes_are_named_from_what_leaves_the_layer_that_looks(folder: Path) -> None:
    pipe = Pipeline.from_plugins(
        [*MODEL, {"grounding": {"look_weight": 0, "look_layer": -1, "box_weight": 0.5}}], seed=0
    )
    model, lines = pipe.model, [line(f"{n}.png", ("where?", BOX.format(*cell(n)))) for n in range(3)]
    run = run_of(pipe, folder, "pointing", lines)
    before = dict(model.named_modules())
    run.stage.put_in(model)
    assert run.stage.rates(model)[POINTER] == 1e-3
    _, batch = next(run.stage.feed(run))
    loss, figures = run.stage.loss(model, batch)
    plain, _ = Pipeline.from_plugins([*MODEL, "sft"]).pick("training_stages", "sft").loss(model, batch)
    last: list[torch.Tensor] = []

    def tap(layer: int, hidden: torch.Tensor) -> None:
        if layer == model.text.layers:
            last.append(hidden)

    model.hidden_states(model.embed(batch.ids, model.encode(batch.media)), batch.positions, batch.attend, tap)
    rows, boxes = batch.extras["look_rows"], batch.extras["look_boxes"].view(-1, 4)
    hidden = last[0][rows]
    hidden = hidden / (hidden.square().mean(1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    scores = getattr(model, POINTER)(hidden).view(len(rows), 4, BINS).log_softmax(2)
    wanted = torch.gather(scores, 2, (boxes * BINS // 1000)[:, :, None])
    expected = plain.detach() - 0.5 * wanted.detach().mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert 0 <= figures["sides"] <= 1
    loss.backward()
    assert float(getattr(model, POINTER).weight.grad.abs().sum()) > 0
    run.stage.take_out(model)
    assert dict(model.named_modules()) == before


def test_watching_changes_no_bit_of_the_attention() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 10, 8), torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8)
    attend = PackedAttention([Segment(6, (2, 2))])
    rows, boxes = torch.tensor([6, 9]), torch.tensor([[0, 0, 500, 500], [500, 500, 999, 999]])
    watch = Watch(attend, 0, [(1, 4, (2, 2))], rows, boxes)
    assert torch.equal(watch(0, q, k, v, 0.3), attend(0, q, k, v, 0.3))
    assert torch.equal(watch(1, q, k, v, 0.3), attend(1, q, k, v, 0.3))
    assert [len(part) for part in watch.shares] == [2]


def test_pointing_learns_to_look(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, {"grounding": {"encoder_rate": 3e-3, "rate": 3e-3}}], seed=0)
    lines = [line(f"{n}.png", ("where?", BOX.format(*cell(n)))) for n in range(8)]
    (folder / "where.jsonl").write_text("\n".join(lines))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "tiny"\n[[stages]]\nstage = "pointing"\nsteps = 60\nwarmup = 5\nlog_every = 1\n'
        f'data = [{{ path = "{folder / "where.jsonl"}" }}]\n'
    )
    with Progress(tmp_path / "out") as progress:
        pipe.train(recipe, tmp_path / "out", progress=progress)
    told = [json.loads(text) for text in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    look = [event["look"] for event in told if "look" in event]
    assert look[0] < 0.3 < 0.8 < look[-1]


def test_pointing_refuses_a_layer_that_is_not_there_and_recomputing(folder: Path) -> None:
    lines = [line("0.png", ("where?", BOX.format(*cell(0))))]
    pipe = Pipeline.from_plugins([*MODEL, {"grounding": {"look_layer": 9}}])
    run = run_of(pipe, folder, "pointing", lines)
    with pytest.raises(TrainingError, match="layer 9 does not exist"):
        next(run.stage.feed(run))
    pipe = Pipeline.from_plugins([*MODEL, "grounding"])
    run = run_of(pipe, folder, "pointing", lines, recompute=True)
    with pytest.raises(TrainingError, match="computed again"):
        next(run.stage.feed(run))


@pytest.mark.parametrize(
    "option", [{"read_rate": 0.0}, {"read_slots": 0}, {"look_weight": -1.0}, {"encoder_rate": -1.0}]
)
def test_options_are_checked(option: dict[str, float]) -> None:
    with pytest.raises((ValueError, ConfigError)):
        Grounding(**option)  # type: ignore[arg-type]
    with pytest.raises((AndesError, ExceptionGroup)):
        Pipeline.from_plugins([*MODEL, {"grounding": option}])


def test_the_head_is_no_part_of_a_checkpoint() -> None:
    pipe = Pipeline.from_plugins([*MODEL, "grounding"], seed=0)
    stage = pipe.pick("training_stages", "reading")
    stage.put_in(pipe.model)
    assert stage.rates(pipe.model).keys() == {"vision_encoder", HEAD}
    assert any(name.startswith(f"{HEAD}.") for name, _ in pipe.model.named_parameters())
    stage.take_out(pipe.model)
    assert not any(name.startswith(f"{HEAD}.") for name, _ in pipe.model.named_parameters())
    aligning = evolve(stage, align_weight=1.0)
    aligning.put_in(pipe.model)
    assert aligning.rates(pipe.model).keys() == {"vision_encoder", "mlp", "language_model", HEAD, SEEN}
    aligning.take_out(pipe.model)
    assert not any(name.startswith((HEAD, SEEN)) for name, _ in pipe.model.named_parameters())
