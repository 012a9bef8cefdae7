"""The pair builder on a small model that was taught to be right, wrong, and undecided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_mpo import MPO
from andes_mpo.cli import pairs as command
from andes_mpo.pairs import REASONS, PairBuilder, PairOptions, _usable, finish, portable, without_pictures
from andes_training.recipe import load_recipe
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.errors import TrainingError
from andes_sdk.runtime.generation import GenerationOptions

# picture -> what the model is taught to answer
TAUGHT = {"red": ["red", "blue"], "green": ["green"], "blue": ["white"]}
RECIPE = """
name = "colours"
threads = 1
[pipeline]
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, { sft = { rate = 1e-2 } }]
[[stages]]
stage = "sft"
steps = 60
warmup = 5
max_tokens = 400
data = [{ path = "taught.jsonl" }]
"""


def question(colour: str) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": f"{colour}.png"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "which colour?"}]}]


def shown(folder: Path, colour: str) -> list[dict[str, Any]]:
    """The question with its picture's path, as for `generate`."""
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": folder / f"{colour}.png"}, question(colour)[0]["content"][1]],
        }
    ]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, prompts and the model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("taught")
    lines, prompts = [], []
    for colour, answers in TAUGHT.items():
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        prompts.append(json.dumps({"id": colour, "prompt": question(colour), "answer": colour}))
        for answer in answers * (2 // len(answers)):
            messages = [*question(colour), {"role": "assistant", "content": answer}]
            lines.append(json.dumps({"messages": messages}))
    # without the picture the model has only guesses, "gold" among them
    lines += [
        json.dumps(
            {"messages": [{"role": "user", "content": "which colour?"}, {"role": "assistant", "content": "gold"}]}
        )
    ]
    (folder / "taught.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    (folder / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.toml")
    Pipeline.from_plugins(**recipe.pipeline).train(recipe, folder / "run")
    return folder


def pipeline(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder / "run" / "model", plugins=["verifiers"])


def build(folder: Path, out: Path, **options: Any) -> tuple[dict[str, int], list[dict[str, Any]]]:
    given = PairOptions(**{"max_tokens": 12, "k": 8, **options})
    counts = PairBuilder(pipeline(folder), folder / "prompts.jsonl", out, given).run()
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_right_and_wrong_answers_become_pairs_and_every_prompt_is_counted(taught: Path, tmp_path: Path) -> None:
    counts, pairs = build(taught, tmp_path / "pairs.jsonl")
    assert counts == {"verified": 1, "blind": 1, "all right": 0, "all wrong": 1, "unfinished": 0, "pairs": 2}
    by_id = {pair["id"]: pair for pair in pairs}
    assert (by_id["red"]["chosen"], by_id["red"]["rejected"]) == ("red", "blue")
    assert by_id["red"]["meta"] == {"made": "verified", "reward": "exact", "prompt": 0}
    # "green" is one id: half of it is nothing, and without a picture the model was taught to say "gold"
    assert (by_id["green"]["chosen"], by_id["green"]["rejected"]) == ("green", "gold")
    assert by_id["green"]["meta"]["made"] == "blind"


def test_the_pairs_train_from_where_they_lie(taught: Path, tmp_path: Path) -> None:
    _, pairs = build(taught, tmp_path / "deep" / "pairs.jsonl")
    url = pairs[0]["prompt"][0]["content"][0]["image_url"]["url"]
    assert (tmp_path / "deep" / url).resolve() == (taught / "red.png").resolve()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "mpo"\nthreads = 1\n[pipeline]\nplugins = []\n[[stages]]\nstage = "mpo"\nsteps = 8\n'
        'data = [{ path = "deep/pairs.jsonl" }]\n'
    )
    pipe = Pipeline.from_pretrained(taught / "run" / "model", plugins=[MPO(rate=1e-3)])
    pipe.train(load_recipe(recipe), tmp_path / "out")
    assert pipe.generate(shown(taught, "red"), GenerationOptions(max_tokens=12)).text == "red"


def test_the_batch_and_a_restart_change_nothing(taught: Path, tmp_path: Path) -> None:
    whole = build(taught, tmp_path / "a.jsonl", batch=16)
    assert build(taught, tmp_path / "b.jsonl", batch=1) == whole

    class Stopped(Exception):
        pass

    def stop(done: int, of: int) -> None:
        assert of == 3
        if done == 2:
            raise Stopped

    options = PairOptions(max_tokens=12, batch=1)
    builder = PairBuilder(pipeline(taught), taught / "prompts.jsonl", tmp_path / "c.jsonl", options, stop)
    with pytest.raises(Stopped):
        builder.run()
    assert not (tmp_path / "c.jsonl").exists()
    with (tmp_path / "c.jsonl.progress").open("a") as file:
        file.write('{"reason": "verif')  # a line that a kill cut off
    told: list[int] = []
    PairBuilder(
        pipeline(taught), taught / "prompts.jsonl", tmp_path / "c.jsonl", options, lambda done, of: told.append(done)
    ).run()
    assert told == [3]
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_another_seed_is_another_file_and_is_not_mixed_in(taught: Path, tmp_path: Path) -> None:
    build(taught, tmp_path / "a.jsonl", k=1)
    with pytest.raises(TrainingError, match="belongs to something else"):
        build(taught, tmp_path / "a.jsonl", k=1, seed=1)


def test_without_a_verifier_every_answer_is_chosen_against_a_blind_one(taught: Path, tmp_path: Path) -> None:
    counts, pairs = build(taught, tmp_path / "pairs.jsonl", reward="", k=2, pairs=2)
    assert counts["verified"] == counts["all wrong"] == 0
    assert counts["blind"] + counts["all right"] == 3
    assert {p["meta"]["made"] for p in pairs} == {"blind"}
    assert all(p["chosen"] != p["rejected"] for p in pairs)


def test_blind_answers_can_be_left_out_and_unfinished_ones_are_no_answers(taught: Path, tmp_path: Path) -> None:
    counts, _ = build(taught, tmp_path / "a.jsonl", blind=False)
    assert (counts["blind"], counts["all right"]) == (0, 1)
    counts, pairs = build(taught, tmp_path / "b.jsonl", max_tokens=1)
    assert counts == {**dict.fromkeys(REASONS, 0), "unfinished": 3, "pairs": 0}
    assert pairs == []


def test_finishing_an_answer_greedily_gives_what_generate_gives(taught: Path) -> None:
    pipe = pipeline(taught)
    messages = shown(taught, "green")
    options = GenerationOptions(max_tokens=12)
    whole = pipe.generate(messages, options)
    assert whole.text == "green"
    for begun in range(len(whole.tokens) - 1):
        assert finish(pipe, messages, whole.tokens[:begun], options) == "green"
    assert finish(pipe, messages, [], GenerationOptions(max_tokens=1)) is None


def test_messages_travel_without_pictures_and_with_portable_ones(tmp_path: Path) -> None:
    text = {"type": "text", "text": "what?"}
    parts = [{"type": "image", "image": tmp_path / "a" / "x.png"}, {"type": "image", "image": b"\x00"}, text]
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": parts}]
    assert without_pictures(messages) == [messages[0], {"role": "user", "content": [text]}]
    assert without_pictures([{"role": "user", "content": parts[:1]}])[0]["content"] == ""
    made = portable(messages, tmp_path / "b")[1]["content"]
    assert [p["image_url"]["url"] for p in made[:2]] == ["../a/x.png", "data:application/octet-stream;base64,AA=="]
    assert made[2] == text


@pytest.mark.parametrize(
    ("text", "usable"),
    [("red", True), (" ", False), ("a<|box_end|>", False), ("<|box_start|>(1,2),(3,4)<|box_end|>", True)],
)
def test_answers_that_training_would_refuse_are_left_out(text: str, usable: bool) -> None:
    assert _usable(text) == usable


def test_prompts_that_cannot_be_used_are_named(taught: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    for line, error, message in (
        ({"text": "?"}, TrainingError, "is not a prompt"),
        ({"prompt": [{"role": "user", "content": "?"}]}, TrainingError, "neither 'exact' nor 'answer'"),
    ):
        prompts.write_text(json.dumps(line) + "\n")
        builder = PairBuilder(pipeline(taught), prompts, tmp_path / f"{message}.jsonl", PairOptions(max_tokens=12))
        with pytest.raises(error, match=message):
            builder.run()


def test_training_lines_are_prompts_whose_last_answer_is_the_truth(taught: Path, tmp_path: Path) -> None:
    messages = [*question("green"), {"role": "assistant", "content": "green"}]
    (taught / "lines.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    builder = PairBuilder(
        pipeline(taught), taught / "lines.jsonl", tmp_path / "pairs.jsonl", PairOptions(max_tokens=12, k=2, blind=False)
    )
    assert builder.run()["all right"] == 1


def test_the_command_writes_pairs_and_counts(taught: Path, tmp_path: Path) -> None:
    app = Typer()
    app.command()(command)
    arguments = [str(taught / "prompts.jsonl"), "-m", str(taught / "run" / "model"), "-o", str(tmp_path / "p.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--max-tokens", "12", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pairs"] == 2 == len((tmp_path / "p.jsonl").read_text().splitlines())
    result = CliRunner().invoke(app, [*arguments, "--max-tokens", "12", "--k", "3"])
    assert result.exit_code == 1
    assert "belongs to something else" in result.stderr
    assert CliRunner().invoke(app, [*arguments, "--k", "0"]).exit_code == 2
