"""What the engine adds to a model: eviction, trees, penalties, and conversations that join one another.

    python benchmarks/engine.py --quick --json

On the CPU, with tiny random models: the figures are about the runtime, not about any model's speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from andes_sdk import Pipeline
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.runtime.sampling import TokenSampler
from andes_sdk.runtime.tree import Tree
from andes_sdk.testing.reference.running import Recent
from andes_sdk.types import Inputs, Work

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
ROWS = 4000
SLACK = 64
LONG = 131_072
VOCABULARY = 151_936
TREE = 61


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def eviction_cost(pipe: Pipeline, rounds: int) -> float:
    """Median ratio of a step under an evicting policy to a step that keeps everything, both behind `ROWS` rows.

    `SLACK + 1` steps evict exactly once, so their times are added up before they are compared.
    """
    text = pipe.model.text
    evicting = Recent(rows=ROWS, first=4, heads=text.layers * text.kv_heads, slack=SLACK)
    read = [pipe.compiled.session(policy) for policy in (evicting, KeepAll())]
    for session in read:
        session.prefill(Inputs(torch.arange(ROWS) % 200))

    def step(session: Any) -> None:
        pipe.compiled.step([Work(session=session, tokens=[7])])
        session.commit()

    ratios = []
    for _ in range(rounds):
        sessions = [session.fork() for session in read]
        for session in sessions:
            step(session)  # a copy grows its store at its first row
        spent = [0.0, 0.0]
        for turn in range(SLACK + 1):
            for which in (turn % 2, 1 - turn % 2):
                spent[which] += timed(partial(step, sessions[which]))
        ratios.append(spent[0] / spent[1])
        for session in sessions:
            session.close()
    return statistics.median(ratios)


def tree_ms(repeats: int) -> float:
    """Median milliseconds of adding a tree of guesses with three children a node."""
    parents = [(n - 1) // 3 for n in range(TREE)]
    parents[0] = -1
    cpu = torch.device("cpu")
    return 1000 * statistics.median(timed(lambda: Tree().add(TREE, parents, ROWS, cpu)) for _ in range(repeats))


def penalty_ms(repeats: int) -> float:
    """Extra milliseconds of a token with a repetition penalty, behind a long prompt."""
    noise = torch.Generator().manual_seed(0)
    prompt = torch.randint(VOCABULARY, (LONG,), generator=noise).tolist()
    logits = torch.randn(VOCABULARY, generator=noise)
    samplers = [TokenSampler(GenerationOptions(repetition_penalty=p), prompt) for p in (1.1, 1.0)]
    extra = []
    for position in range(LONG, LONG + repeats):
        with_penalty, without = (timed(partial(s.next, logits, position)) for s in samplers)
        extra.append(with_penalty - without)
    return 1000 * statistics.median(extra)


def concurrent_equal(pipe: Pipeline, tokens: int) -> bool:
    """Whether conversations that join at different times give the tokens that they give alone."""
    prompts = [pipe.prepare(f"{'tell me more ' * n}about circles") for n in range(6)]
    options = [GenerationOptions(max_tokens=tokens, temperature=float(n % 2), seed=n) for n in range(6)]
    alone = []
    for prompt, own in zip(prompts, options, strict=True):
        engine = pipe.engine()
        one = engine.join(prompt, own)
        engine.run()
        alone.append(list(one.tokens))
        one.session.close()
    engine, together = pipe.engine(), []
    for prompt, own in zip(prompts, options, strict=True):
        together.append(engine.join(prompt, own))
        for _ in range(3):
            engine.step()
    engine.run()
    found = [list(one.tokens) for one in together]
    for one in together:
        one.session.close()
    return found == alone


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    pipe, quick = Pipeline.from_plugins(TINY), arguments.quick
    with torch.inference_mode():
        figures = {
            "eviction_cost": round(eviction_cost(pipe, 5 if quick else 15), 3),
            "tree_61_ms": round(tree_ms(50 if quick else 500), 3),
            "penalty_128k_ms": round(penalty_ms(20 if quick else 100), 3),
            "concurrent_equal": concurrent_equal(pipe, 16 if quick else 64),
        }
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:18} {value}")


if __name__ == "__main__":
    main()
