"""Read a long text, keep a quarter of its rows, and ask about it; look at what was kept.

    python examples/long_context.py
    python examples/long_context.py --model MODEL --keep 0.1
    andes context -m MODEL -p okv "…" --out kept.html      # a page that shows which rows stayed

Without a model it is a tiny random one: it shows what is kept and how many bytes that takes, not what a model still
knows (`benchmarks/kv.py` asks that).
"""

from __future__ import annotations

import argparse
from typing import Any

from andes_sdk import Pipeline
from andes_sdk.runtime.options import GenerationOptions

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
TEXT = " ".join(f"Line {n} says that box {n} holds {n * n % 97} apples." for n in range(40))


def opened(model: str, *plugins: Any) -> Pipeline:
    """A model of the user's, or the tiny one."""
    if model:
        return Pipeline.from_pretrained(model, plugins=list(plugins))
    return Pipeline.from_plugins([*MODEL, *plugins])


def held(pipe: Pipeline, text: str) -> tuple[int, int, str]:
    """Bytes of keys and values after an answer, most rows of a head of the first layer, and the answer."""
    engine = pipe.engine()
    one = engine.join(pipe.prepare([{"role": "user", "content": text}]), GenerationOptions(max_tokens=16))
    engine.run()
    if one.error is not None:
        raise one.error
    stats = one.session.stats
    told = pipe.tokenizer.decode(list(one.tokens))
    found = stats.kv_bytes, max(stats.rows[0]), told
    one.session.close()
    return found


def main(model: str = "", keep: float = 0.25) -> float:
    """Print bytes with and without the policy -> their ratio."""
    asked = f"{TEXT}\nHow many apples are in box 7?"
    full = held(opened(model), asked)
    policy = {"okv": {"keep": keep, "least": 128}}
    pipe = opened(model, policy)
    kept = held(pipe, asked)
    for name, (nbytes, rows, told) in (("all rows", full), (f"keep {keep}", kept)):
        print(f"{name}: {nbytes / 1e6:.2f} MB, {rows} rows a head; it says {told[:40]!r}")
    for row in pipe.explain().rows:
        if row.owner == "okv":
            print(f"  {row.part}: {row.value}")
    assert keep == 1 or kept[0] < full[0], "the policy must keep fewer bytes"
    return kept[0] / full[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a folder, a file or a name")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the rows")
    given = parser.parse_args()
    main(given.model, given.keep)
