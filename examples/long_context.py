"""Read a long text, keep a quarter of its rows, and ask about it.

    python examples/long_context.py
    python examples/long_context.py --model MODEL --keep 0.1
    andes context -m MODEL -p okv "…" --out kept.html      # a page that shows which rows stayed

Without a model it is the small one of `examples/retrieval`, which looks keys up, with its learned scorer; and beside it
a scorer that does not know what will be asked, and loses it. `benchmarks/kv.py` asks more.
"""

from __future__ import annotations

import argparse
import random
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andes_sdk import Pipeline

OWN = Path(__file__).parent / "retrieval"
BOXES = " ".join(f"Line {n} says that box {n} holds {n * n % 97} apples." for n in range(60))


def facts(own: bool, count: int = 8) -> tuple[str, list[tuple[str, str]]]:
    """A text, and some questions about it: how an answer begins, and how it must go on."""
    if not own:
        asked = "\nHow many apples are in the boxes?"
        return BOXES + asked, [(f"Box {n} holds", f" {n * n % 97} apples") for n in range(3, 60, 60 // count)][:count]
    tasks, rng = runpy.run_path(str(OWN / "tasks.py")), random.Random(1)
    said, known = tasks["sample"](rng, "keys", 20)
    text = tasks["text_of"](rng, "keys", said, 140)
    return text, [(f"so: {key}", f" {value}") for key, value in rng.sample(known, count)]


def asked(pipe: Pipeline, text: str, questions: Sequence[tuple[str, str]]) -> tuple[Any, list[str]]:
    """Figures of the session behind the text, and how the model goes on behind each beginning."""
    session = pipe.session()
    session.prefill(pipe.prepare([{"role": "user", "content": text}]))
    stats, said = session.stats, []
    for begun, answer in questions:
        one, tokens = session.fork(), []
        following = pipe.tokenizer.encode(begun)
        for _ in pipe.tokenizer.encode(answer):
            logits = one.extend(following)[0]
            one.commit()
            following = [int(logits[-1].argmax())]
            tokens += following
        said.append(pipe.tokenizer.decode(tokens))
        one.close()
    session.close()
    return stats, said


def main(model: str = "", keep: float = 0.25) -> dict[str, int]:
    """Print bytes and answers with and without the policy -> right answers by name."""
    place, text = model or str(OWN / "model"), facts(not model)
    learned = {} if model else {"weights": str(OWN / "scorer.safetensors")}
    ways: dict[str, list[Any]] = {
        "all rows": [],
        f"okv, keep {keep}": [{"okv": {"keep": keep, **learned}}],
        f"snapkv, keep {keep}": [{"okv": {"keep": keep, "scorer": "snapkv"}}],
    }
    right = {}
    for name, plugins in ways.items():
        pipe = Pipeline.from_pretrained(place, plugins=plugins)
        stats, said = asked(pipe, *text)
        right[name] = sum(a.strip() == b.strip() for a, (_, b) in zip(said, text[1], strict=True))
        most = max(n for layer in stats.rows for n in layer)
        print(f"{name}: {stats.kv_bytes / 1e6:.2f} MB, {most} rows a head at most, {right[name]} of {len(said)} right")
        for (begun, answer), one in list(zip(text[1], said, strict=True))[:3]:
            print(f"  {begun}{one}" + ("" if one.strip() == answer.strip() else f"    (wrong:{answer})"))
        for row in pipe.explain().rows:
            if name.startswith("okv") and row.owner == "okv":
                print(f"    {row.part}: {row.value}")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a folder, a file or a name")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the rows")
    given = parser.parse_args()
    main(given.model, given.keep)
