"""Write docs/results/nano.md and its plots from what benchmarks/nano*.py measured, JSON files in docs/results.

    python benchmarks/nano_report.py

`nano.svg` shows the last model's scores beside noise for pictures and what can be had without looking;
`nano_stages.svg` the scores after each stage of training, if there are several.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
SCALE = "share right; of /error: share of characters wrong"


def scores_of(run: dict[str, Any], of: str = "scores") -> dict[str, dict[str, Any]]:
    """The figures of a run that have questions."""
    return {name: score for name, score in run[of].items() if score["n"]}


def model_plot(run: dict[str, Any], path: Path) -> None:
    """One model's scores, noise and baselines."""
    scores, noise = scores_of(run), scores_of(run, "blind_scores")
    rows = range(len(scores))
    values = [s["value"] for s in scores.values()]
    below = [s["value"] - s["ci"][0] for s in scores.values()]
    above = [s["ci"][1] - s["value"] for s in scores.values()]
    best = [(min if n.endswith("/error") else max)(run["baselines"][n].values()) for n in scores]
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(scores) + 1), layout="constrained")
    axes.barh(rows, values, xerr=[below, above], color="#4477aa", ecolor="#222222", capsize=2, label="this model, 95 %")
    axes.scatter(best, rows, marker="|", s=160, color="#ee6677", zorder=3, label="best without looking")
    blind = [(noise[name]["value"], row) for row, name in enumerate(scores) if name in noise]
    axes.scatter(
        [v for v, _ in blind],
        [row for _, row in blind],
        marker="x",
        color="#ccbb44",
        zorder=3,
        label="noise for the picture",
    )
    axes.set_yticks(rows, [f"{name} (lower is better)" if name.endswith("/error") else name for name in scores])
    axes.set(xlim=(0, 1), xlabel=SCALE)
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    figure.savefig(path)


def stages_plot(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Every score after each stage."""
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for name in scores_of(list(runs.values())[-1]):
        found = [(n, run["scores"][name]["value"]) for n, run in enumerate(runs.values()) if name in run["scores"]]
        axes.plot(*zip(*found, strict=True), marker="o", label=name)
    axes.set_xticks(range(len(runs)), list(runs))
    axes.set(ylim=(0, 1), ylabel=SCALE)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path)


PAGE = """# andes-nano

Shares of right answers on held-out data; of `/error` the share of characters that are wrong. `place` counts a
hit where the centre of the answered box lies in the true one. `elements` are pages of our generator with words that
training never saw; `small`, `mobile` and `desktop` are screens of applications that it never saw, with at least six
texts that can be told apart, and `-qa` asks on them for what an element does. The last columns belong to the last
run. They are its 95 % interval, its score with noise in place of the pictures, and the best that can be had without
looking. That is the most frequent answer, or the most frequent one to the same question text. For places it is the
centre, a random box of the training data, or the largest element.

{table}

![Scores of the shipped model](nano.svg)
{stages}
## What more would bring

Two cores trained all this in 7.3 hours. `3-small`, 60 questions of a kind (±12 points), full rate up to step 300, its
fall until 1,200, 55 minutes of one core with AVX-512. Repeat: `andes train examples/nano/3-small.toml --out
runs/nano/3-small`, and the command for a stage below; the state of step 300 is scored in the same way.

| steps of `3-small` | digits | shapes in words | shapes, yes or no | shapes, places | a line, characters wrong |
|---|---|---|---|---|---|
| 0 | 67% | 55% | 58% | 73% | 44% |
| 300 | 70% | 45% | 70% | 55% | 47% |
| 1,200 | 88% | 60% | 75% | 82% | 33% |

- Lines lose a quarter of their errors an hour. At that pace 15 % needs two and a half hours more, if the pace holds.
- Digits lost two thirds of their errors in that hour. 95 % needs another of that kind, and the two stages behind,
  which cost three to six points, need more of them in their mixture.
- Shapes in words are where they were (55 to 60 %). More pixels for them were not tried.
- Screens of phones: 15 % after `3-small`, which does not show them, 22 % after the two last stages, which do, in full
  size. 60 questions do not tell that from chance. Those stages saw about 220 pictures of phones (of 925) and 60 of
  desktops, in 20 minutes: more of them is the first thing to try.
- What a place says (`name`) stays at 5 to 13 %, after every stage: it asks for reading in the middle
  of a page, and lines alone still have a third wrong. It comes behind lines.

Not measured: other sizes of the model, and other amounts of pages. Every other hour went into this one model.
{preference}{thinking}
## Repeat

`python benchmarks/nano.py andes-nano --name andes-nano --limit 60 --out docs/results/nano.json`, for a stage
the same with `runs/nano/STAGE/model --name STAGE --no-blind --parts elements line shapes easy digit two small mobile`;
then `python benchmarks/nano_report.py`. The questions lie in `examples/nano/held_out`.
"""


def page(runs: dict[str, dict[str, Any]]) -> str:
    """The table of every run."""
    last = list(runs.values())[-1]
    rows = [
        f"| task | {' | '.join(runs)} | n | 95 % | noise shown | best without looking |",
        f"|---|{'---|' * len(runs)}---|---|---|---|",
    ]
    for name, score in scores_of(last).items():
        found = [run["scores"].get(name, {}).get("value") for run in runs.values()]
        low, high = score["ci"]
        pick = min if name.endswith("/error") else max
        best, value = pick(last["baselines"][name].items(), key=lambda pair: pair[1])
        blind = last["blind_scores"].get(name, {}).get("value")
        cells = [*("" if v is None else f"{v:.1%}" for v in found), f"{score['n']:,}", f"{low:.1%} to {high:.1%}"]
        cells += ["" if blind is None else f"{blind:.1%}", f"{value:.1%} ({best})"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    stages = "\n![Scores after each stage](nano_stages.svg)\n" if len(stages_of(runs)) > 1 else ""
    return PAGE.format(table="\n".join(rows), stages=stages, preference=preference(), thinking=thinking())


def measured(name: str) -> dict[str, Any] | None:
    """A file of figures, if it was measured."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def preference() -> str:
    """What MPO changed, beside the same training on right answers alone."""
    if (found := measured("nano_preference")) is None:
        return ""

    def points(change: dict[str, float]) -> str:
        return f"{change['points']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})"

    control = found["right_answers"]
    rows = [
        f"| {name} | {change['n']} | {change['before']:.1%} | {points(change)} | {points(control[name])} |"
        for name, change in found["mpo"].items()
    ]
    counts = ", ".join(f"{name} {count:,}" for name, count in found["pairs"].items())
    return f"""
## MPO

Points won by MPO after the fifth stage, and by the same steps on right answers alone, with paired 95 % intervals. What
became of the prompts: {counts}. `python benchmarks/nano_preference.py --out docs/results/nano_preference.json`

| task | n | before | MPO | right answers alone |
|---|---|---|---|---|
{chr(10).join(rows)}
"""


def thinking() -> str:
    """What GRPO added to the Thinking model."""
    if (found := measured("nano_thinking")) is None:
        return ""
    rows = [
        f"| {name} | {run['greedy']['value']:.1%} ({run['greedy']['low']:.1%} to {run['greedy']['high']:.1%}) "
        f"| {run['sampled']['value']:.1%} | {run['direct']['value']:.1%} | {run['seconds']} |"
        for name, run in found["runs"].items()
    ]
    gains = [
        f"| {order} | {mode} | {gain['points']:+.1f} | {gain['low']:+.1f} to {gain['high']:+.1f} |"
        for order in ("curriculum", "shuffled")
        for mode, gain in found.get(order, {}).items()
    ]
    return f"""
## GRPO

{found["tests"]} puzzles with words that no training saw, answered greedily and sampled at temperature 1, both with
thoughts, and directly without. GRPO learned from {found["prompts"]} other puzzles, of which it kept those that were
sometimes right. `python benchmarks/nano_thinking.py --out docs/results/nano_thinking.json`

| model | greedy | sampled | direct | seconds |
|---|---|---|---|---|
{chr(10).join(rows)}

Points won, seeds: {found["seeds"]}, with the 95 % interval of a bootstrap over puzzles and seeds:

| order | answered | points | 95 % |
|---|---|---|---|
{chr(10).join(gains)}
"""


def stages_of(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Runs that are stages of training, such as "3-joint"; `nano.json` may hold others."""
    return {name: run for name, run in sorted(runs.items()) if name[0].isdigit()}


def main() -> None:
    runs = json.loads((FOLDER / "nano.json").read_text(encoding="utf-8"))
    by_stage = stages_of(runs)
    runs = {**by_stage, **{name: run for name, run in runs.items() if name not in by_stage}}
    model_plot(list(runs.values())[-1], FOLDER / "nano.svg")
    if len(by_stage) > 1:
        stages_plot(by_stage, FOLDER / "nano_stages.svg")
    (FOLDER / "nano.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
