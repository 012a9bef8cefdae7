"""Write docs/results/compression.{json,md,svg} from what benchmarks/compression.py and benchmarks/qalft.py measured.

    python benchmarks/compression_report.py --rows runs/compression.json --adapters runs/qalft.json
    python benchmarks/compression_report.py --text runs/compression_text.json
    python benchmarks/compression_report.py          # the page and the plots again, from the JSON

The first two files are what those commands print with --json; --decode is what benchmarks/adapters.py prints, --text
what benchmarks/compression_text.py does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
KINDS = {
    "rtn": "rounded to nearest",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "blockwise": "layer by layer",
    "sparsegpt": "SparseGPT, rounded",
    "qat": "trained on the grid",
}
COLOURS = {
    "rtn": "#bbbbbb",
    "gptq": "#ccbb44",
    "awq": "#228833",
    "blockwise": "#ee6677",
    "sparsegpt": "#66ccee",
    "qat": "#4477aa",
}
WAYS = {
    "float_lora": "LoRA on floats, float base", "lora_then_ptq": "the same, merged and rounded with the base",
    "lora_on_base": "the same, on the packed base as it is", "qlora": "trained on the packed base, inputs in floats",
    "qalft": "QALFT: on the packed base and its ranges", "base": "the packed base alone",
}  # fmt: skip
SCENARIOS = {"german", "sentences", "digits"}
"""Of `qalft.py`, where --scenarios says nothing."""
OURS = "34+o"
"""Grid of the recipe `sub2`."""
TASKS, STUDENT = 16, 2.13
"""Tasks of the held-out questions, and half a 95 % interval of a mean of so many, in standard errors (Student's t)."""
LOW = 1.8
"""Most bits per weight of the body of grids that are compared."""
PAGE = """# What compression keeps

The model is `andes-nano`, {parameters} million parameters, 256 wide, so that groups of 128 are not padded. Its own
weights are the teacher, and training reads the mixture `{mix}`. One seed each. All figures are in
`compression.json`; `benchmarks/compression.py --help` says what each of them is.

```sh
{commands}
```

A folder keeps its rows, so the last call prints those of all. Rows without a score were measured with `--tokens-only`.

## Formats

*Tokens*: share of the answers' tokens that are the most likely ones behind the right ones before them, mean of {tasks}
tasks, {tokens:,} tokens of pictures and texts that training never saw. *Score*: mean of the tasks, free answers, up to
{questions} questions of each kind. *Kept* is in percent of the floats. *±* is half of a 95 % interval of what is kept
of the score, by the number of questions; rows answer the same ones, so differences of rows scatter less. Embedding and
head are in `w4_g32`, encoder and projector in `w8`. `34+o` is `ternary34_g128` with `w4_g128` for `o`.

{formats}

![Kept against bits](compression.svg)

{comments}
## Grids below {low} bits

{grids}

## Steps

{curve}

## A text model

{text}

## Adapters

{adapters}

## Decoding with an adapter

{decode}
"""


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def formats(rows: dict[str, dict[str, Any]], questions: int) -> str:
    """The table of every row."""
    lines = [
        "| row | bits, body | bits, model | steps | answer tokens seen | CPU s | tokens | kept % | loss | score "
        "| kept % | ± | characters of an answer |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    whole = rows["bf16"]
    order = sorted(rows.items(), key=lambda pair: (pair[1]["body_bpw"] != 16, -pair[1]["body_bpw"], pair[0]))
    for name, one in order:
        cells = [
            name, f"{one['body_bpw']:.2f}", f"{one['model_bpw']:.2f}" if "model_bpw" in one else "",
            one.get("steps", ""), f"{one['answer_tokens']:,}" if "answer_tokens" in one else "",
            f"{one['cpu_seconds']:.0f}" if "cpu_seconds" in one else "", percent(one.get("tokens")),
            percent(one.get("token_retention")), one.get("loss", ""), percent(one.get("score")),
            percent(one.get("retention")), "" if one is whole else percent(interval(one, whole, questions)),
            one.get("answer_characters", ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def interval(one: dict[str, Any], whole: dict[str, Any], questions: int) -> float | None:
    """Half of a 95 % interval of what a row keeps of the score, by so many questions of each kind."""
    if "kinds" not in one or not whole.get("score"):
        return None
    variance = 0.0
    for task in one["tasks"]:
        own = [share for kind, share in one["kinds"].items() if kind.partition("/")[0] == task]
        variance += sum(share * (1 - share) / questions for share in own) / len(own) ** 2
    return float(1.96 * variance**0.5 / len(one["tasks"]) / whole["score"])


def grids(rows: dict[str, dict[str, Any]]) -> str:
    """What grids of few bits keep after equal steps, and how far that is from the recipe's grid."""
    groups: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for name, one in rows.items():
        if name.startswith("qat") and one["body_bpw"] <= LOW:
            groups.setdefault((one["steps"], one["block_steps"]), {})[name.split()[1].partition("@")[0]] = one
    lines = [
        "| steps | grid | bits, body | bytes | loss | tokens kept % | difference | score kept % | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (steps, _), some in sorted(pair for pair in groups.items() if len(pair[1]) > 1):
        for body, one in sorted(some.items(), key=lambda pair: (-pair[1]["body_bpw"], pair[0])):
            away = ["", ""] if body == OURS or OURS not in some else against(one, some[OURS], rows["bf16"])
            cells = [
                steps, body, f"{one['body_bpw']:.2f}", f"{one['bytes']:,}", one["loss"],
                percent(one["token_retention"]), away[0], percent(one.get("retention")), away[1],
            ]  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    told = f"Differences are from `{OURS}`, in points, with half of a 95 % interval by the scatter over tasks."
    return "\n".join([*lines, "", told]) if len(lines) > 2 else "No two were trained for equal steps."


def against(one: dict[str, Any], other: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """How much more of tokens and of scores a row keeps than another does."""
    made = []
    for key in ("tokens", "score"):
        if key not in one or key not in other:
            made.append("")
            continue
        mine, theirs = (
            [row["forced"][task]["tokens"] if key == "tokens" else row["tasks"][task] for task in whole["forced"]]
            for row in (one, other)
        )
        away = [100 * (a - b) / whole[key] for a, b in zip(mine, theirs, strict=True)]
        if len(away) != TASKS:
            raise SystemExit(
                f"compression_report: rows of {len(away)} tasks, but STUDENT = {STUDENT} is of {TASKS}; set both to "
                "the tasks of the rows (the 0.975 quantile of Student's t with one degree of freedom less)"
            )
        made.append(f"{mean(away):+.1f} ± {STUDENT * stdev(away) / len(away) ** 0.5:.1f}")
    return made


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Left: what is kept against bits of the body. Right: the loss against steps, of each grid with several rows."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for kind, label in KINDS.items():
        some = [(r["body_bpw"], 100 * r["token_retention"], n) for n, r in rows.items() if n.split()[0] == kind]
        if not some:
            continue
        left.scatter([s[0] for s in some], [s[1] for s in some], color=COLOURS[kind], label=label, zorder=3)
        for bits, kept, name in some:
            if kind == "qat":
                left.annotate(name.split()[1], (bits, kept), textcoords="offset points", xytext=(4, 4), fontsize=8)
    left.axhline(100, color="#222222", linewidth=0.8)
    left.set(xlabel="bits per weight of the body", ylabel="tokens kept, % of the floats")
    left.legend()
    for body, points in curves(rows).items():
        right.plot([p[0] for p in points], [100 * p[1] for p in points], marker="o", label=body)
    if curves(rows):
        right.legend()
    right.set(xlabel="steps of training", ylabel="tokens kept, % of the floats", xscale="symlog")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def curves(rows: dict[str, dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Grid -> (steps, tokens kept), of grids with several lengths; 0 steps is rounding, or each layer by itself."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, one in rows.items():
        how, _, what = name.partition(" ")
        if how in ("rtn", "qat", "blockwise"):
            first = how == "blockwise" or one.get("block_steps")
            label = what.partition("@")[0] + ", layers first" * bool(first)
            found.setdefault(label, []).append((one.get("steps", 0), one["token_retention"]))
    return {label: sorted(points) for label, points in found.items() if len(points) > 2 - ("," in label)}


def curve_table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| grid | steps: tokens kept, % |", "|---|---|"]
    for body, points in curves(rows).items():
        lines.append(f"| {body} | {', '.join(f'{steps}: {100 * kept:.1f}' for steps, kept in points)} |")
    return (
        "\n".join(["Zero steps is rounding to nearest, or layers by themselves.", "", *lines])
        if len(lines) > 2
        else "No curve is measured."
    )


def text_model(found: dict[str, Any] | None) -> str:
    """The table of SmolLM2-135M."""
    if not found:
        return "Not measured: `benchmarks/compression_text.py` has rows of SmolLM2-135M."
    lines = [
        "| row | bits, body | steps of each layer | steps | answer tokens seen | CPU s | perplexity | choice % | ± "
        "| above chance kept % | MMLU % | ± |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in sorted(found["rows"].items(), key=lambda pair: (-pair[1]["body_bpw"], pair[0])):
        cells = [
            name, f"{one['body_bpw']:.2f}", one.get("block_steps", ""), one.get("steps", ""),
            f"{one['answer_tokens']:,}" if "answer_tokens" in one else "", one.get("cpu_seconds", ""),
            _figure(one["perplexity"]), percent(one["choice"]), percent(one["interval"]),
            percent(one.get("retention")), percent(one.get("accuracy")), percent(one.get("accuracy_interval")),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    told = (
        f"SmolLM2-135M-Instruct, {found['places']} places of held-out text where one of four pieces goes on, "
        f"{found['chunks']} pieces for perplexity; `benchmarks/compression_text.py --help` describes them."
    )
    if found.get("gain_over_ptq") is not None:
        told += (
            f" `{found['best']}` keeps {found['gain_over_ptq']:+.1f} points more of what is above chance than "
            f"`{found['best_without_training']}`, the best without end-to-end training; the best perplexity of those "
            f"is {found['perplexity_over_ptq']:g} times as high."
        )
    return "\n".join([*lines, "", told])


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 1e4 else f"{value:.1e}"


def adapters(found: dict[str, Any] | None) -> str:
    """The table of ways on scenarios. What was not measured, as with some of the ways alone, is left out."""
    if not found:
        return "Not measured."
    names = list(found["scores"])
    lines = [f"| way | {' | '.join(names)} | mean |", f"|---|{'---|' * (len(names) + 1)}"]
    for way, label in WAYS.items():
        if not any(way in found["scores"][n] for n in names):
            continue
        cells = [percent(found["scores"][n].get(way)) for n in names]
        lines.append(f"| {label} | {' | '.join(cells)} | {percent(found['means'].get(way))} |")
    told = [
        f"{label}: {found[key]:+.1f} {unit}."
        for key, label, unit in (
            ("vs_float_lora", "QALFT against LoRA on floats", "%"),
            ("vs_lora_then_ptq", "Against LoRA that is rounded with the base", "points"),
            ("vs_qlora", "Against inputs in floats", "points"),
        )
        if key in found
    ]
    if "switch_ms" in found:
        told.append(f"A switch of a session takes {found['switch_ms']} ms.")
    if "base_unchanged" in found:
        told.append(f"Bytes of the base after all adapters: {'unchanged' if found['base_unchanged'] else 'CHANGED'}.")
    after = (
        f"Body of the base: `{found['body']}`, int8 inputs of {found['ranges']} layers, trained for "
        f"{found['base_steps']} steps. Adapters: rank 16, {found['steps']} steps, rate {found['rate']:g}. "
        f"{found['limit']} questions of each scenario; `benchmarks/qalft.py --help` describes them. Scores in percent."
        + ("\n\n" + " ".join(told) if told else "")
    )
    few = [name for name in names if found["scores"][name].get("float_lora", 1) < 0.5]
    doubt = (
        f"\n\nLoRA on floats itself reaches less than half on {' and '.join(few)}: too few steps to compare ways there."
    )
    return "\n".join([*lines, "", after + (doubt if few else "")])


def decode(found: dict[str, Any] | None) -> str:
    if not found:
        return "Not measured."
    ratios = found["decode_ratio_adapter"]
    return (
        f"A step of Qwen3-0.6B's shape with rank 16 on all layers ÷ one without, {found['threads']} thread: "
        f"{ratios['sub2']:.2f} at 1.6 bits,\n{ratios['w4']:.2f} at 4.5 bits. With four loaded and none attached: "
        f"{found['decode_ratio_idle']['sub2']:.2f} and {found['decode_ratio_idle']['w4']:.2f}. On a machine\nat rest "
        f"the last two are 1.00: how far they are from it says how far to trust the first two."
        + (
            f"\nThe same adapter with int8 matrices: {' and '.join(f'{r:.2f}' for r in eight.values())}; it takes "
            f"{found['bytes']['int8']:,} bytes, with float16 {found['bytes']['float16']:,}."
            if (eight := found.get("decode_ratio_int8"))
            else ""
        )
    )


def mix_of(found: dict[str, Any]) -> str:
    """Recipe of the mixture that the rows were trained on."""
    return str(found["rows"].get("mix", "examples/nano/5-sft.toml"))


def commands(found: dict[str, Any]) -> str:
    """The calls that make the page's figures, and none for what is not there."""
    rows = found["rows"]["rows"]
    steps = {r["steps"] for n, r in rows.items() if n.startswith("qat") and "@" not in n}
    rate, tokens = found["rows"].get("rate"), found["rows"]["step_tokens"]
    setting = [
        *([f"--mix {mix_of(found)}"] * ("mix" in found["rows"])),
        f"--limit {found['rows']['questions']}",
        *(f"--steps {n}" for n in steps),
        *([f"--rate {rate}"] * bool(rate)),
        *([f"--tokens {tokens}"] * (tokens != 1024)),
    ]
    lines = ["python examples/nano/prepare.py"]
    for flag, some in (
        ("", [n for n, r in rows.items() if "score" in r]),
        (" --tokens-only", [n for n, r in rows.items() if "score" not in r]),
    ):
        if some:
            names = " ".join(f'"{n}"' if " " in n else n for n in some)
            lines.append(f".venv/bin/python benchmarks/compression.py {' '.join(setting)}{flag} \\")
            lines += [f"    --only {names} \\", "    --out runs/compression --json > runs/compression.json"]
    report = ["--rows runs/compression.json"]
    if own := found.get("adapters"):
        keys = ("steps", "base_steps", "limit", "lines", "body")
        flags = " ".join(f"--{key.replace('_', '-')} {own[key]}" for key in keys if key in own)
        flags += "".join(
            f" --{key.replace('_', '-')} {own[key]:g}"
            for key, usual in (("rate", 3e-3), ("float_rate", own.get("rate")))
            if own.get(key, usual) != usual
        )
        flags += " --validate" * bool(own.get("validate"))
        if set(own["scores"]) != SCENARIOS:
            flags += f" --scenarios {' '.join(own['scores'])}"
        ways = [way for way in WAYS if any(way in one for one in own["scores"].values())]
        if set(ways) < set(WAYS):
            flags += f" --ways {' '.join(ways)}"
        lines.append(f".venv/bin/python benchmarks/qalft.py {flags} --no-decode \\")
        lines.append("    --out runs/qalft --json > runs/qalft.json")
        report.append("--adapters runs/qalft.json")
    if found.get("text"):
        names = " ".join(f'"{n}"' if " " in n else n for n in found["text"]["rows"])
        lines.append(".venv/bin/python benchmarks/compression_text.py --limit 0 \\")
        lines += [f"    --only {names} \\", "    --out runs/compression_text --json > runs/compression_text.json"]
        if asked := [n for n, r in found["text"]["rows"].items() if "accuracy" in r]:
            names = " ".join(f'"{n}"' if " " in n else n for n in asked)
            lines.append(".venv/bin/python benchmarks/compression_text.py \\")
            lines += [f"    --only {names} \\", "    --out runs/compression_text --json > runs/compression_text.json"]
        report.append("--text runs/compression_text.json")
    if found.get("decode"):
        threads = found["decode"]["threads"]
        lines.append(f".venv/bin/python benchmarks/adapters.py --quick --json --threads {threads} > runs/decode.json")
        report.append("--decode runs/decode.json")
    return "\n".join([*lines, f"python benchmarks/compression_report.py {' '.join(report)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("rows", "adapters", "decode", "text"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--comments", type=Path, help="a text of markdown to put below the plot")
    given = parser.parse_args()
    path = FOLDER / "compression.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts = {name: getattr(given, name) for name in ("rows", "adapters", "decode", "text")}
    found |= {name: json.loads(part.read_text()) for name, part in parts.items() if part is not None}
    if given.comments is not None:
        found["comments"] = given.comments.read_text(encoding="utf-8")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = found["rows"]["rows"]
    plot({n: r for n, r in rows.items() if "token_retention" in r}, FOLDER / "compression.svg")
    page = PAGE.format(
        parameters=round(found["rows"]["parameters"] / 1e6),
        mix=mix_of(found),
        tasks=len(rows["bf16"]["forced"]),
        questions=found["rows"]["questions"],
        commands=commands(found),
        tokens=sum(one["n"] for one in rows["bf16"]["forced"].values()),
        formats=formats(rows, found["rows"]["questions"]),
        comments=found.get("comments", ""),
        low=LOW,
        grids=grids(rows),
        curve=curve_table(rows),
        text=text_model(found.get("text")),
        adapters=adapters(found.get("adapters")),
        decode=decode(found.get("decode")),
    )
    (FOLDER / "compression.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
