"""Tasks on a tiny pipeline: asked in batches, gone on with, compared, reported; and the command."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from andes_evaluation.compare import compare_runs
from andes_evaluation.figures import compared, drawn, figures_of, wilson
from andes_evaluation.report import Shown, page
from andes_evaluation.rows import find
from andes_evaluation.run import Settings, TaskRun
from andes_evaluation.suite import Suite
from andes_evaluation.tasks.catalogue import TASKS
from attrs import evolve
from PIL import Image
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import ConfigError, InputError
from andes_sdk.testing.elsewhere import started

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins(MODEL, image={"min_size": 28})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (56, 28), "teal").save(buffer, "PNG")
    (folder / "a.png").write_bytes(buffer.getvalue())
    rows = [
        {"id": str(i), "image": "a.png", "width": 56, "height": 28, "instruction": f"open {i}", "box": [0, 0, 28, 14],
         "kind": "button" if i % 2 else "icon"} for i in range(5)
    ]  # fmt: skip
    (folder / "grounding.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = base64.b64encode(buffer.getvalue()).decode()
    lines = [f"{i}\t{text}\tHow many?\t{i}" for i in range(3)]
    (folder / "ChartQA_TEST.tsv").write_text("\n".join(["index\timage\tquestion\tanswer", *lines]) + "\n")
    return folder


def run(pipeline: Pipeline, data: Path, out: Path | None = None, **changes: Any) -> TaskRun:
    task = TASKS["andesui-grounding"]
    given = {"max_tokens": 4, "image_size": 56}
    return TaskRun(pipeline, task, find(task.place, data), Settings(given=given, together=2, **changes), out)


def plain(rows: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("first_token", "decode")} for row in rows]


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    pipeline: Pipeline, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "task.jsonl"
    whole = run(pipeline, data, out).run()
    assert [row["key"] for row in whole.rows] == list("01234")
    assert all(row["said"].startswith("<|box_start|>(") for row in whole.rows)
    assert whole.cut_short == sum(row["finish"] == "length" for row in whole.rows)
    content = out.read_bytes()
    third = content.index(b"\n", content.index(b"\n") + 1) + 1
    out.write_bytes(content[: third + 30])  # two answers, and a torn one
    again = run(pipeline, data, out).run()
    assert again.answered == 3
    assert plain(again.rows) == plain(whole.rows)
    assert again.figures == whole.figures
    assert run(pipeline, data, out).run().answered == 0


def test_answers_together_are_those_of_each_alone(pipeline: Pipeline, data: Path) -> None:
    together, alone = run(pipeline, data), run(pipeline, data)
    alone.settings = Settings(given=alone.settings.given, together=1)
    assert plain(together.run().rows) == plain(alone.run().rows)


def test_another_question_model_or_option_is_not_mixed_into_a_file(
    pipeline: Pipeline, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "task.jsonl"
    run(pipeline, data, out, limit=2).run()
    other = run(pipeline, data, out, limit=2)
    other.settings = Settings(given={"max_tokens": 5, "image_size": 56}, limit=2)
    with pytest.raises(InputError, match="cannot continue this file"):
        other.run()
    changed = run(pipeline, data, out, limit=2)
    changed.task = evolve(changed.task, instruction="Find: {instruction}")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="cannot continue this file"):
        changed.run()
    out.write_text("something\n")
    with pytest.raises(InputError, match="cannot continue this file"):
        run(pipeline, data, out).run()
    assert out.read_text() == "something\n"


def test_a_checkpoint_that_was_trained_on_in_its_place_is_another_model(
    pipeline: Pipeline, data: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "task.jsonl", tmp_path / "model"
    pipeline.save_pretrained(folder)
    assert run(Pipeline.from_pretrained(folder), data, out, limit=1).run().answered == 1
    assert run(Pipeline.from_pretrained(folder), data, out, limit=1).run().answered == 0
    Pipeline.from_plugins(MODEL, image={"min_size": 28}, seed=5).save_pretrained(folder)
    with pytest.raises(InputError, match="cannot continue this file"):
        run(Pipeline.from_pretrained(folder, seed=0), data, out, limit=1).run()


def test_an_item_that_cannot_be_asked_scores_nothing_and_is_tried_again(
    pipeline: Pipeline, data: Path, tmp_path: Path
) -> None:
    (data / "b.png").write_bytes(b"no picture")
    rows = (data / "grounding.jsonl").read_text().splitlines()
    (data / "grounding.jsonl").write_text("\n".join([rows[0], rows[1].replace("a.png", "b.png")]) + "\n")
    out = tmp_path / "task.jsonl"
    outcome = run(pipeline, data, out).run()
    assert outcome.failed == 1
    assert (outcome.rows[1]["score"], outcome.rows[1]["finish"]) == (0.0, "cannot be asked")
    assert outcome.rows[1]["errors"][0]["error"] == "InputError"
    assert run(pipeline, data, out).run().answered == 1


def test_the_limit_and_repeated_keys(pipeline: Pipeline, data: Path) -> None:
    line = (data / "grounding.jsonl").read_text().splitlines()[0]
    (data / "grounding.jsonl").write_text(f"{line}\n{line}\n{line}\n")
    assert [item.key for item in run(pipeline, data, limit=2).items(think=False)] == ["0", "0#2"]


def test_a_suite_leaves_answers_results_and_a_report(pipeline: Pipeline, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = Settings(given={"max_tokens": 3, "image_size": 56}, limit=2)
    told: list[tuple[str, int]] = []
    suite = Suite.of(["andesui-grounding", "chartqa"], data, settings)
    outcomes = suite.run(pipeline, model="tiny <1>", out=out, tell=lambda name, count: told.append((name, count)))
    results = json.loads((out / "results.json").read_text())
    assert results["tasks"]["chartqa"] == outcomes[1].to_dict()
    assert told == [("andesui-grounding", 1)] * 2 + [("chartqa", 1)] * 2
    page = (out / "report.html").read_text()
    assert "tiny &lt;1&gt;" in page
    assert page.count("data:image/jpeg;base64,") == sum(row["score"] < 1 for o in outcomes for row in o.rows)
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_report_cuts_no_name_and_tells_of_boxes_where_there_are_any(pipeline: Pipeline, data: Path) -> None:
    outcome = run(pipeline, data).run()
    name = "a-task-whose-name-is-longer-than-any-that-we-have"
    long = evolve(outcome, task=evolve(outcome.task, name=name))
    made = page("model", [outcome, long], {name: [Shown(row, []) for row in long.rows]})
    (place,) = re.findall(rf'<text x="(\d+)"[^>]*>{name}<', made)
    assert int(place) >= 7 * len(name)  # what a letter of 12 px takes at most, on average
    assert "boxes: <b" in made
    texts = [{**row, "truth": "a screen", "read": "none", "facts": {}} for row in long.rows]
    made = page("model", [long], {name: [Shown(row, []) for row in texts]})
    assert "boxes: <b" not in made
    assert "The 5 worst of 5 items." in made


def test_a_suite_refuses_before_weights_are_read(data: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        Suite.of(["chartqa", "ChartQA"], data)
    with pytest.raises(ConfigError, match="needs a model that judges"):
        Suite.of(["mmvet"], data)
    with pytest.raises(ConfigError, match="did you mean 'chartqa'") as caught:
        Suite.of(["chartqaa"], data)
    assert "chartqaa" in str(caught.value)
    with pytest.raises(InputError, match="was not found"):
        Suite.of(["pope"], data)


# ---------------------------------------------------------------- intervals and differences


def rows_of(scores: list[float], read: list[str] | None = None) -> list[dict[str, Any]]:
    said = read or [str(score) for score in scores]
    return [
        {"key": str(i), "cluster": str(i), "score": s, "read": r, "truth": "", "facts": {}, "marks": {}}
        for i, (s, r) in enumerate(zip(scores, said, strict=True))
    ]


def test_a_share_has_wilsons_interval() -> None:
    figure = wilson(8, 10)
    assert figure.value == 0.8
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96
    assert (figure.low, figure.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 1.959964**2))
    rows = [{**row, "facts": {"groups": {"kind": "x" if i < 4 else "y"}}}
            for i, row in enumerate(rows_of([1.0] * 8 + [0.0] * 2))]  # fmt: skip
    found = figures_of(TASKS["r-bench"], rows)
    assert found == {"accuracy": figure, "kind: x": wilson(4, 4), "kind: y": wilson(4, 6)}


def test_other_figures_have_a_bootstrap_interval_that_a_seed_fixes() -> None:
    task, rows = TASKS["docvqa"], rows_of([0.6, 0.8, 1.0, 0.0] * 50)
    figure = figures_of(task, rows, seed=1)["anls"]
    assert figure == figures_of(task, rows, seed=1)["anls"]
    assert figure.value == pytest.approx(0.6)
    # standard error of the mean: sqrt(mean square - mean²) / sqrt(200) = 0.3742 / 14.14; four of them from end to end
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * 0.37417 / 200**0.5, rel=0.1)
    assert drawn(np.eye(3), 0).sum(1).tolist() == [3.0] * 2000


def test_paired_runs_differ_by_less_than_their_intervals_would_say() -> None:
    task = TASKS["r-bench"]
    one = rows_of([1.0, 0.0] * 100)
    other = rows_of([1.0, 0.0] * 95 + [1.0, 1.0] * 5)
    found = compared(task, one, other)
    assert (found.a, found.b, found.better, found.worse) == (0.5, 0.525, 5, 0)
    assert found.difference.value == pytest.approx(0.025)
    assert 0 < found.difference.low < 0.025 < found.difference.high < 0.06
    assert found.p < 0.02
    assert found.agreement == 195 / 200
    same = compared(task, one, one)
    assert (same.difference.value, same.p, same.agreement) == (0.0, 1.0, 1.0)


def test_items_of_one_run_alone_are_counted_and_left_out() -> None:
    found = compared(TASKS["r-bench"], rows_of([1.0, 0.0, 1.0]), rows_of([1.0, 1.0]))
    assert (found.n, found.only_a, found.only_b, found.a, found.b) == (2, 1, 0, 0.5, 1.0)
    with pytest.raises(InputError, match="no item in common"):
        compared(TASKS["r-bench"], rows_of([1.0]), [])


# ---------------------------------------------------------------- the command


@pytest.fixture
def config(tmp_path: Path, pipeline: Pipeline) -> str:
    return str(pipeline.save_pretrained(tmp_path / "model"))


def andes(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_the_command_scores_compares_and_lists(config: str, data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--limit", 3, "--max-tokens", 3, "--image-size", 56)
    one, other = tmp_path / "one", tmp_path / "other"
    told = json.loads(andes("eval", config, "andesui-grounding", *common, "--out", one, "--json").stdout)
    scored = told["tasks"]["andesui-grounding"]
    assert (scored["n"], scored["measure"], scored["answered_now"]) == (3, "accuracy", 3)
    assert scored["low"] <= scored["score"] <= scored["high"]
    again = json.loads(andes("eval", config, "andesui-grounding", *common, "--out", one, "--json").stdout)
    assert again["tasks"]["andesui-grounding"]["answered_now"] == 0
    shown = andes("eval", config, "andesui-grounding", *common, "--out", other, "--seed", 1).stdout
    assert "andesui-grounding" in shown
    assert "report.html" in shown
    difference = json.loads(andes("eval", "compare", one, other, "--json").stdout)["tasks"]["andesui-grounding"]
    assert (difference["difference"]["value"], difference["agreement"], difference["n"]) == (0.0, 1.0, 3)
    assert "same answers" in andes("eval", "compare", one, other).stdout
    listed = json.loads(andes("eval", "tasks", "--json").stdout)
    assert {"name": "pope", "files": ["POPE"], "hub": "lmms-lab/POPE"} in listed


def test_a_command_that_was_killed_goes_on_and_ends_as_one_that_was_not(
    config: str, data: Path, tmp_path: Path
) -> None:
    (row, *_) = (data / "grounding.jsonl").read_text().splitlines()
    rows = [{**json.loads(row), "id": str(i), "instruction": f"open {i}"} for i in range(60)]
    (data / "grounding.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", config, "andesui-grounding", "--data", str(data), "--max-tokens", "8", "--image-size", "56",
             "--together", "1", "--json"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    right = json.loads(andes(*words, "--out", whole).stdout)["tasks"]["andesui-grounding"]
    code = "import sys; from andes_sdk.cli import main; sys.exit(main())"
    file, end = killed / "andesui-grounding.jsonl", time.monotonic() + 300
    with started(code, [*words, "--out", killed], tmp_path / "told") as child:
        while not file.exists() or file.read_bytes().count(b"\n") < 3:
            assert child.exitcode is None, "it ended before it was killed"
            assert time.monotonic() < end, "it answered nothing"
            time.sleep(0.002)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert 3 <= file.read_bytes().count(b"\n") < 60
    found = json.loads(andes(*words, "--out", killed).stdout)["tasks"]["andesui-grounding"]
    assert 0 < found["answered_now"] <= 57
    assert {**found, "seconds": 0, "answered_now": 0} == {**right, "seconds": 0, "answered_now": 0}
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines()]
    assert sorted(keys) == sorted(row["id"] for row in rows)


def test_an_adapter_answers_in_place_of_the_base(config: str, data: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    model = Pipeline.from_pretrained(config).model.language_model
    name = "base_model.model.model.layers.0.mlp.down_proj"
    out, inner = model.get_parameter("model.layers.0.mlp.down_proj.weight").shape
    noise = torch.Generator().manual_seed(0)
    tensors = {f"{name}.lora_A.weight": torch.randn(2, inner, generator=noise),
               f"{name}.lora_B.weight": torch.randn(out, 2, generator=noise)}  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    command = ("eval", config, "andesui-grounding", "--data", data, "--limit", 2, "--max-tokens", 8, "--image-size", 56)
    for place, more in (("base", ()), ("adapted", ("--adapter", f"ui={folder}"))):
        andes(*command, "--out", tmp_path / place, *more, "--json")
    said = [
        [json.loads(line)["said"] for line in (tmp_path / place / "andesui-grounding.jsonl").read_text().splitlines()]
        for place in ("base", "adapted")
    ]
    assert said[0] != said[1]
    result = andes(*command, "--out", tmp_path / "base", "--adapter", f"ui={folder}", code=1)
    assert "cannot continue this file" in result.stderr


def test_the_command_refuses_what_it_cannot_do(config: str, data: Path, tmp_path: Path) -> None:
    assert "did you mean 'pope'" in andes("eval", config, "popes", code=1).stderr
    assert "write NAME=FOLDER" in andes("eval", config, "chartqa", "--adapter", "x", "--data", data, code=1).stderr
    assert "an address and a model" in andes("eval", config, "mmvet", "--judge", "http://x/v1", code=1).stderr
    assert "holds no answers" in andes("eval", "compare", tmp_path, data.parent, code=1).stderr


def test_runs_on_other_data_are_not_compared(tmp_path: Path) -> None:
    for name, truth in (("a", "1"), ("b", "2")):
        row = {"task": "chartqa", "key": "0", "cluster": "0", "truth": truth, "facts": {}, "score": 1.0, "read": "1"}
        (tmp_path / name).mkdir()
        (tmp_path / name / "chartqa.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="on different data"):
        compare_runs(tmp_path / "a", tmp_path / "b")
