"""Put trained andes-nano into the distribution `plugins/nano`: bfloat16 weights, and a card from the runs' records.

python examples/nano/ship.py instruct 5-sft       # the model of runs/nano/5-sft, and the runs that led to it
python benchmarks/nano.py andes-nano --name andes-nano --out docs/results/nano.json
python examples/nano/ship.py --cards              # its card, from these figures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from andes_training.recipe import load_recipe

from andes_sdk import Pipeline
from andes_sdk.files import appearing

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "nano"
WEIGHTS = ROOT / "plugins" / "nano" / "andes_nano"
RESULTS = ROOT / "docs" / "results" / "nano.json"
TRAINING = {"grounding", "sft", "mpo", "grpo", "verifiers"}
"""Plugins of recipes that a model does not need to answer."""
KEPT = ("step", "loss", "seconds", "samples", "tokens")

CARD = """# andes-nano, {name}

{parameters:,} parameters in the architecture of AndesVL: {parts}. A tokenizer of its own with {vocabulary:,}
tokens. The weights are bfloat16 safetensors. They began at random; nothing trained by others went into them.
andes_sdk {sdk} trained them on one core of an AMD EPYC (Zen 4), in {hours:.1f} hours.

It was trained to find elements on pages and screens by what they say (an answer is a box in thousandths of the picture:
`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`), to say what stands at a place, to read lines, and to answer about shapes,
digits, bars of charts and pairs of pictures. The table says how far each of these went. It knows English interfaces
drawn by our generator and a few open kits, and it is small: do not trust it with anything else.

{table}

| stage | steps | samples | supervised tokens | hours | loss, first and last 50 steps |
|---|---|---|---|---|---|
{stages}

The table has the steps whose records were kept. The encoder learned to read in four runs; the longest, of 3,000 steps,
is counted. The first 500 steps of alignment were made by a script. `3-joint` is five runs, each from where the last one
stopped; the last was ended while its rate fell.

Data, all made by `examples/nano/prepare.py`: pages and lines in the fonts DejaVu, Liberation and Noto (their licences
let pictures of them be used freely); shapes; charts of scikit-learn's tables (BSD-3); its handwritten digits (UCI,
Alpaydin and Kaynak 1998); [easy-vqa](https://pypi.org/project/easy-vqa/) 1.0 (MIT), its own training split; photographs
of scikit-image (BSD-3, and public domain); screens rendered from generated applications and from these kits, all MIT:
{kits}. Applications, words and combinations of the tests are in no training data.

Licence of the weights: Apache-2.0. Made by `examples/nano/ship.py`.
"""


def ship(name: str, run: str) -> None:
    """Write the weights of a run, and the records of the runs that led to it; the folder is replaced whole."""
    source = RUNS / run / "model"
    trained = Pipeline.from_pretrained(source)
    items = [{p.name: dict(p.options)} for p in trained.plan.plugins if p.name not in TRAINING]
    kept = Pipeline.from_plugins(items, weights=source, image=trained.plan.image)
    target = WEIGHTS / name
    with appearing(target) as made:
        kept.save_pretrained(made, dtype="bfloat16")
        records = {stage: record(stage) for stage in chain(run)}
        (made / "runs.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def chain(run: str) -> list[str]:
    """The runs that led to a run, and itself: each recipe names the one that it starts from."""
    start = load_recipe(HERE / f"{run}.toml").start
    before = Path(start).parent.name if start else ""
    return [*(chain(before) if (HERE / f"{before}.toml").is_file() else []), run]


def record(run: str) -> dict[str, Any]:
    """What a run's metrics say: steps, hours, samples, tokens and losses."""
    lines = [json.loads(t) for t in (RUNS / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{k: line[k] for k in KEPT} for line in lines if "loss" in line]
    losses = [row["loss"] for row in rows]
    return {
        "steps": len(rows),
        "samples": sum(row["samples"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "hours": round(sum(row["seconds"] for row in rows) / 3600, 2),
        "first_loss": round(sum(losses[:50]) / len(losses[:50]), 3),
        "last_loss": round(sum(losses[-50:]) / len(losses[-50:]), 3),
    }


def card(name: str) -> None:
    """The card of a shipped model."""
    import screens

    folder = WEIGHTS / name
    pipe = Pipeline.from_pretrained(folder)
    runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    results = json.loads(RESULTS.read_text(encoding="utf-8"))[f"andes-nano{'' if name == 'instruct' else '-' + name}"]
    parts = ", ".join(f"{n} {sum(p.numel() for p in m.parameters()):,}" for n, m in pipe.model.parts().items())
    stages = "\n".join(
        f"| {stage} | {r['steps']:,} | {r['samples']:,} | {r['tokens']:,} | {r['hours']:.2f} | "
        f"{r['first_loss']:.2f} → {r['last_loss']:.2f} |"
        for stage, r in runs.items()
    )
    text = CARD.format(
        name=name, parameters=pipe.model.parameter_count(), parts=parts, vocabulary=pipe.tokenizer.vocab_size,
        sdk=pipe.plan.sdk, hours=sum(r["hours"] for r in runs.values()), table=table(results), stages=stages,
        kits=", ".join(screens.KITS),
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """Scores beside what can be had without looking."""
    rows = ["| on data it has never seen | n | score | 95 % | noise for the picture | best without looking |"]
    rows.append("|---|---|---|---|---|---|")
    for name, score in results["scores"].items():
        if not score["n"]:
            continue
        low, high = score["ci"]
        pick = min if name.endswith("/error") else max
        best = pick(results["baselines"][name].items(), key=lambda pair: pair[1])
        blind = results["blind_scores"].get(name, {}).get("value")
        shown = "" if blind is None else f"{blind:.1%}"
        interval, other = f"{low:.1%} to {high:.1%}", f"{best[1]:.1%} ({best[0]})"
        rows.append(f"| {name} | {score['n']:,} | **{score['value']:.1%}** | {interval} | {shown} | {other} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=("instruct", "thinking"))
    parser.add_argument("run", nargs="?", help="of runs/nano, such as 6-mpo")
    parser.add_argument("--cards", action="store_true", help="write the cards of what is shipped")
    args = parser.parse_args()
    if bool(args.name) != bool(args.run) or not (args.name or args.cards):
        parser.error("give a name and a run, or --cards")
    if args.name:
        ship(args.name, args.run)
    if args.cards:
        for folder in sorted(p.parent for p in WEIGHTS.glob("*/andes.json")):
            card(folder.name)


if __name__ == "__main__":
    main()
