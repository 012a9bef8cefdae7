import io
import json

from andes_training.progress import Progress, sparkline
from rich.console import Console

from andes_sdk.types import Event


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def start(progress, step=0, steps=4, stage="sft"):
    progress.show(Event(kind="stage-start", step=step, values={"stage": stage, "steps": steps, "samples": 7}))


def steps(progress, first, last):
    for step in range(first, last + 1):
        values = {"loss": 5.0 - step, "accuracy": 0.1 * step, "tokens": 10}
        progress.show(Event(kind="step", step=step, values=values))


def end(progress, step=4):
    progress.show(Event(kind="stage-end", step=step, values={"stage": "sft"}))


def fake_state(out, stage, step):
    folder = out / f"state-{stage:02d}-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "position.json").write_text("{}")


def test_a_sparkline_goes_from_the_lowest_to_the_highest_value_and_averages_what_does_not_fit():
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([7, 6, 5, 4, 3, 2, 1, 0]) == "█▇▆▅▄▃▂▁"
    # pairs (0, 2) and (6, 8) average to 1 and 7
    assert sparkline([0, 2, 6, 8], width=2) == "▁█"
    assert len(sparkline(list(range(1000)), width=60)) == 60


def test_every_step_becomes_a_line_of_the_metrics_file(tmp_path):
    with Progress(tmp_path / "run") as progress:
        start(progress)
        steps(progress, 1, 4)
        end(progress)
        start(progress, stage="second", steps=1)
        steps(progress, 1, 1)
    rows = lines_of(tmp_path / "run")
    assert [(r["index"], r["stage"], r["step"]) for r in rows] == [
        (0, "sft", 1), (0, "sft", 2), (0, "sft", 3), (0, "sft", 4), (1, "second", 1),
    ]  # fmt: skip
    assert rows[1]["loss"] == 3.0
    assert rows[1]["tokens"] == 10
    assert all(r["seconds"] >= 0 for r in rows)


def test_a_resumed_run_leaves_the_file_as_if_it_had_never_stopped(tmp_path):
    with Progress(tmp_path) as progress:
        start(progress)
        steps(progress, 1, 3)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"index": 0, "st')  # a kill in the middle of a line
    fake_state(tmp_path, 0, 2)
    with Progress(tmp_path) as progress:
        start(progress, step=2)
        steps(progress, 3, 4)
    assert [r["step"] for r in lines_of(tmp_path)] == [1, 2, 3, 4]


def test_a_run_resumed_in_its_second_stage_keeps_all_lines_of_the_first(tmp_path):
    with Progress(tmp_path) as progress:
        start(progress)
        steps(progress, 1, 4)
        end(progress)
        start(progress)
        steps(progress, 1, 3)
    fake_state(tmp_path, 1, 1)
    with Progress(tmp_path) as progress:
        start(progress, step=1)
        steps(progress, 2, 2)
    assert [(r["index"], r["step"]) for r in lines_of(tmp_path)] == [
        (0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2),
    ]  # fmt: skip


def test_a_new_run_without_a_state_starts_the_file_anew(tmp_path):
    for _ in range(2):
        with Progress(tmp_path) as progress:
            start(progress)
            steps(progress, 1, 2)
    assert [r["step"] for r in lines_of(tmp_path)] == [1, 2]


def test_without_a_terminal_a_plain_line_comes_every_few_steps_and_a_sparkline_at_the_end(tmp_path):
    text = io.StringIO()
    with Progress(tmp_path, Console(file=text, width=120), log_every=[2]) as progress:
        start(progress)
        steps(progress, 1, 4)
        end(progress)
    shown = text.getvalue().splitlines()
    assert shown[0] == "stage sft: 4 steps, 7 samples"
    assert shown[1].startswith("sft 2/4  loss 3.0000  accuracy 0.2000  ")
    assert "supervised tokens/s" in shown[1]
    assert shown[1].endswith("left")
    assert shown[2].startswith("sft 4/4")
    # losses 4, 3, 2, 1 on blocks 0 to 7: 7, 4.67, 2.33, 0
    assert shown[3] == "loss █▆▃▁ 4.000 → 1.000"
    assert len(shown) == 4


def test_on_a_terminal_a_bar_shows_the_stage_and_its_loss(tmp_path):
    text = io.StringIO()
    with Progress(tmp_path, Console(file=text, width=120, force_terminal=True)) as progress:
        start(progress)
        steps(progress, 1, 4)
        end(progress)
    shown = text.getvalue()
    assert "4/4" in shown
    assert "loss 1.0000" in shown


def test_without_a_console_nothing_is_printed(tmp_path, capsys):
    with Progress(tmp_path) as progress:
        start(progress)
        steps(progress, 1, 4)
        end(progress)
    assert capsys.readouterr() == ("", "")
