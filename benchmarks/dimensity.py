"""What was written for a Dimensity phone beside what our reference computes: weights, logits, texts, scores, costs.

    python benchmarks/dimensity.py --quick --json        # makes the environment of LiteRT if it is not here
    python benchmarks/dimensity.py --raw                 # pictures as they are: LiteRT-LM resizes them in its own way
    python benchmarks/dimensity.py --only answers --buckets 16,32   # pictures of any shape, for each budget of tokens
    python benchmarks/dimensity.py --bundle model.litertlm --a16 model.tflite     # files that were written before

`weights_exact`: share of weights whose codes and scales in the files are ours; `scales_exact_a16`: of activations'
scales. `logits_weight_only`, `logits_a16`: the largest difference of logits from the reference, of the largest logit,
over 100 prompts of random tokens.
`greedy_equal`: share of answers of LiteRT-LM that equal ours, over all items. `score_gap`: points between both scores.
`ops_supported`: share of operators of the NPU's graphs that MediaTek's plugin names. `cost_model_error`: percent, the
largest over five shapes and four formats. What was not measured is null. With `--buckets` the figures of answers are
under `budgets`, by tokens of a picture; both sides then see pictures of the size that LiteRT-LM gives them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from andes_dimensity import environment
from andes_dimensity.check import Report, both, check, check_graphs
from andes_dimensity.environment import workplace
from andes_dimensity.export import export
from andes_dimensity.npu import logits
from andes_dimensity.options import Options
from andes_dimensity.reference import DimensityBackend
from PIL import Image

from andes_sdk import Pipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "first_light"))
from prepare import DIGIT_QUESTIONS, digits, easy_vqa_questions  # noqa: E402

STATIC = Options(rows=256, layout="npu", activations="a16")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def items(count: int) -> list[tuple[Any, str, str]]:
    """Half held-out digits, half questions of easy-vqa, at even distances: picture, question, truth."""
    found = [(image, DIGIT_QUESTIONS[0], truth) for image, truth in digits("test")]
    asked = [(path, q, a) for path, pairs in easy_vqa_questions("test") for q, a in pairs]
    half = count // 2
    return found[:half] + [asked[i * len(asked) // (count - half)] for i in range(count - half)]


def talks(pipe: Pipeline, some: list[tuple[Any, str, str]], folder: Path, raw: bool) -> list[Any]:
    """Items as conversations; pictures at the size of the graph unless `raw`."""
    made, preprocessor = [], pipe.processor.preprocessor
    for number, (picture, question, _) in enumerate(some):
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        image = image.convert("RGB") if raw else preprocessor.canvas(image.convert("RGB"))
        path = folder / f"{number}.png"
        image.save(path)
        content = [{"type": "image", "path": str(path)}, {"type": "text", "text": question}]
        made.append([{"role": "user", "content": content}])
    return made


def static(pipe: Pipeline, file: Path) -> tuple[float, float, float]:
    """Logits of a file of static int16 beside the reference: largest and mean error, share of equal next tokens."""
    got, want = logits(pipe, file, STATIC, tell=say)
    worst = float((np.abs(got - want).max(1) / np.abs(want).max(1)).max())
    mean = float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))
    return worst, mean, float((got.argmax(1) == want.argmax(1)).mean())


def figure(report: Report, what: str) -> float | None:
    """The figure of a line of a report."""
    return next((line.figure for line in report.lines if line.what == what), None)


def costs() -> float:
    """Percent, as `dimensity_cost.py` measures it; this machine must be quiet meanwhile."""
    say("decode times for the cost model, a minute")
    script = Path(__file__).with_name("dimensity_cost.py")
    done = subprocess.run([sys.executable, script, "--json"], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["error"])


def graphs(pipe: Pipeline, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Matrices and graphs of the bundle, and of a file of static int16."""
    facts: dict[str, Any] = {}
    if given.a16 is None:
        given.a16 = folder / "model.tflite"
        told = export(pipe, given.a16, STATIC, say)
        scales = told["files"]["text"]["activations"]
        facts |= {"weights_exact_a16": told["weights_exact"], "scales_exact_a16": scales["exact"] / scales["scales"]}
    report = check(pipe, given.bundle, (), say)
    exact = [line.figure for line in report.lines if line.what.startswith("codes and scales")]
    facts |= {
        "weights_exact": min(f for f in exact if f is not None),
        "logits_weight_only": figure(report, "graph decode"),
        "next_token_weight_only": figure(report, "next token of decode"),
    }
    asked = [line for line in check_graphs(given.a16).lines if line.here]
    facts["ops_supported"] = asked[0].figure if asked else None
    facts["logits_a16"], facts["logits_a16_rms"], facts["next_token_a16"] = static(pipe, given.a16)
    return facts


def answers(sides: tuple[list[str], list[str]], truth: list[str]) -> dict[str, Any]:
    """How often LiteRT-LM and our runtime say the same, and how often each is right."""
    theirs, mine = sides
    right = [100 * sum(x.strip() == t for x, t in zip(side, truth, strict=True)) / len(truth) for side in sides]
    return {
        "greedy_equal": sum(a.strip() == b.strip() for a, b in zip(theirs, mine, strict=True)) / len(truth),
        "score_litert_lm": right[0], "score_ours": right[1], "score_gap": right[0] - right[1], "items": len(truth),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "first_light" / "model"))
    parser.add_argument("--quick", action="store_true", help="500 items instead of 2,000")
    parser.add_argument("--items", type=int, help="so many items")
    parser.add_argument("--raw", action="store_true", help="pictures as they are")
    parser.add_argument("--bundle", type=Path, help="a bundle that was written before")
    parser.add_argument("--a16", type=Path, help="graphs of static int16 that were written before")
    parser.add_argument("--buckets", default="", help="tokens of the graphs for pictures of any shape")
    parser.add_argument("--only", choices=("answers",), help="neither graphs, static int16 nor costs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    environment.setup(say)
    pipe = Pipeline.from_pretrained(given.model)
    facts: dict[str, Any] = {}
    options = Options(rows=256, buckets=given.buckets)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.bundle is None:
            given.bundle = folder / "model.litertlm"
            export(pipe, given.bundle, options, say)
        if given.only is None:
            facts |= graphs(pipe, given, folder)
        some = items(given.items or (500 if given.quick else 2000))
        asked = talks(pipe, some, folder, given.raw or bool(options.tokens))
        compiled = DimensityBackend(options, pipe.artefact).compile(pipe.model, device="cpu", dtype="float32")
        found = {}
        for budget in options.tokens or (0,):
            with workplace() as place:
                sides = both(pipe, compiled, given.bundle, place, asked, say, None, budget)
            found[budget] = answers(sides, [a for _, _, a in some])
    facts |= {"budgets": found} if options.tokens else found[0]
    facts["cost_model_error"] = None if given.only else costs()
    print(json.dumps(facts, indent=2) if given.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))


if __name__ == "__main__":
    main()
