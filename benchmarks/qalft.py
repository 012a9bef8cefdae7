"""Adapters trained on a packed base (QALFT) against LoRA on floats, on three scenarios that the base was not taught.

    python examples/nano/prepare.py                               # the data
    .venv/bin/python benchmarks/qalft.py --quick --json
    .venv/bin/python benchmarks/qalft.py --body nm14_w4 --out runs/qalft

| scenario | the same pictures and questions, and a new kind of answer |
|---|---|
| german | shapes and colours of easy pictures by German words |
| sentences | whether easy pictures have a shape or colour, or have it not, in whole sentences |
| digits | handwritten digits by English words |

The base is trained on its grid from the float model for a few steps, with int8 inputs of every layer, and packed. All
adapters have rank 16 on all linear layers of the language model, the same data in the same packs, and the same steps.
--rate is that of all of them, unless --float-rate says another one for floats; --validate asks about training pictures
that no adapter saw, to choose rates by. What a packed base answers is computed with its inputs rounded by its ranges.
Ways:

- float_lora: on the float model, answers by it: what quantisation can lose is measured against this.
- lora_then_ptq: that adapter merged into the float model, which is rounded to the base's grid, with its ranges.
- lora_on_base: that adapter attached to the packed base as it is.
- qlora: trained on the packed base's weights, with inputs in floats.
- qalft: trained on the packed base's weights and ranges.
- base: the packed base without an adapter.

vs_float_lora: mean score of qalft ÷ that of float_lora − 1, in percent. vs_lora_then_ptq: points of mean score. Decode
ratios are those of benchmarks/adapters.py, on the shape of Qwen3-0.6B; they need quiet cores. --out keeps what is done:
the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from andes_adapters.contract import contract_of
from andes_adapters.loading import load
from andes_adapters.merging import merge_adapter
from andes_adapters.registry import Registry
from andes_compression.compress import recipe_for, write
from andes_nano import instruct
from andes_packing import Artefact
from andes_qalft.stage import round_inputs
from andes_qalft.training import train_adapter
from andes_training.progress import Progress
from andes_training.recipe import Recipe
from attrs import evolve
from rich.console import Console

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.files import appearing_file
from andes_sdk.types import Compressed

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import nano  # noqa: E402
from bodies import BODIES, NANO, REST, mixture, opened, precision, teacher  # noqa: E402
from held_out import DATA  # noqa: E402 - nano.py has made it importable
from nano import Item, answers_of, read, spread  # noqa: E402

GERMAN = {
    "rectangle": "Rechteck", "circle": "Kreis", "triangle": "Dreieck", "teal": "petrol", "blue": "blau", "red": "rot",
    "green": "gruen", "yellow": "gelb", "black": "schwarz", "gray": "grau", "brown": "braun",
}  # fmt: skip
SENTENCES = {"yes": "Yes, that is so.", "no": "No, that is not so."}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WAYS = ("float_lora", "lora_then_ptq", "lora_on_base", "qlora", "qalft", "base")
RANK = 16
PACK = {"max_tokens": 640, "max_patches": 640}
"""Of every adapter's training: packs of other sizes would be other steps."""


# ---------------------------------------------------------------- scenarios


def german(item: Item) -> str | None:
    return GERMAN.get(item.truth)


def sentence(item: Item) -> str | None:
    return SENTENCES.get(item.truth)


def digit(item: Item) -> str | None:
    return DIGITS[int(item.truth)]


SCENARIOS: dict[str, tuple[str, Callable[[Item], str | None]]] = {
    "german": ("easy", german), "sentences": ("easy", sentence), "digits": ("digit", digit)
}  # fmt: skip
"""Name -> part of the data, and the new answer to an item; None leaves it out."""


def right(item: Item, said: str) -> bool:
    """`item` has the new answer as its truth."""
    return said.strip() == item.truth


def items_of(name: str, data: Path, split: str, limit: int) -> list[Item]:
    part, answer = SCENARIOS[name]
    read_ = read(data / split / f"{part}.jsonl", part)
    return spread([evolve(item, truth=new) for item in read_ if (new := answer(item)) is not None], limit)


def asked(given: argparse.Namespace, name: str) -> list[Item]:
    """The questions of a scenario: held out, or about training pictures that no training conversation shows."""
    if not given.validate:
        return items_of(name, given.data, "test", given.limit)
    shown = {path for item in items_of(name, given.data, "train", given.lines) for path in item.images}
    others = items_of(name, given.data, "train", 0)
    return spread([item for item in others if shown.isdisjoint(item.images)], given.limit)


def written(name: str, data: Path, folder: Path, lines: int) -> Path:
    """A file of training conversations, one a line."""
    path = folder / f"{name}.jsonl"
    with appearing_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for item in items_of(name, data, "train", lines):
            pictures = [{"type": "image", "image": str(p.resolve())} for p in item.images]
            user = {"role": "user", "content": [*pictures, {"type": "text", "text": item.question}]}
            file.write(json.dumps({"messages": [user, {"role": "assistant", "content": item.truth}]}) + "\n")
    return path


# ---------------------------------------------------------------- models


def options_of(body: str) -> dict[str, Any]:
    """Of the plugin qat for this body, without its rate."""
    coarse = body.startswith(("ternary", "34"))
    grids = {k: v for k, v in BODIES[body].items() if k != "rate"}
    return {**grids, **REST, "scales": "seq" if coarse else "lsq", "activations": 8, "ranges": "calibrated"}


def packed_base(given: argparse.Namespace, folder: Path) -> Artefact:
    """The base: a few steps on its grid, with int8 inputs."""
    path = folder / "base.andes"
    if path.exists():
        return Artefact.open(path)
    rate, steps = BODIES[given.body]["rate"], given.base_steps
    own = {**options_of(given.body), "rate": rate, "projector_rate": rate / 5, "teacher": teacher(given.model, folder)}
    pipe = opened(given.model, {"qat": own | {"calibrate": min(8, steps // 2), "every": max(1, steps // 20)}})
    stage = {
        "stage": "qat", "steps": steps, "warmup": steps // 20, "max_patches": 2048, "max_tokens": 1024,
        "data": mixture(given), "schedule": "linear",
    }  # fmt: skip
    train(pipe, {"name": "base", "precision": precision(), "stages": [stage]}, folder / "base", steps)
    again = opened(folder / "base" / "model")
    made = again.compress("qat", codes=str(folder / "base" / "qat"))
    return packed(again, made, path)


def packed(pipe: Pipeline, made: Compressed, path: Path) -> Artefact:
    recipe = recipe_for(pipe, made, "f16", head="w4_g32", vision="w8")
    exact = recipe_for(pipe, made, None, head="w4_g32", vision="w8")
    return write(pipe, made, path, recipe | {n: f for n, f in exact.items() if n in made.codes})


def train(pipe: Pipeline, recipe: dict[str, Any], run: Path, steps: int) -> None:
    with Progress(run, Console(stderr=True), [steps]) as progress:
        pipe.train(structure(Recipe, {"seed": 0, "threads": 1, **recipe}, "recipe"), run, progress=progress)


def rounding(path: Path) -> Pipeline:
    """A packed model that answers with rounded inputs."""
    pipe = Pipeline.from_pretrained(path, backend="torch")
    assert pipe.artefact is not None
    round_inputs(pipe.model, pipe.artefact.ranges)
    return pipe


def float_lora(given: argparse.Namespace, name: str, data: Path, run: Path) -> Path:
    """LoRA on the float model, with the steps and packs of the others."""
    made = run / "adapters" / name
    if not made.exists():
        pipe = opened(given.model, {"qalft": {"adapter": name, "rank": RANK, "rate": given.float_rate}})
        stage = {
            "stage": "qalft", "steps": given.steps, "schedule": "linear", **PACK, "weight_decay": 0.0,
            "data": [{"path": str(data)}],
        }  # fmt: skip
        train(pipe, {"name": name, "stages": [stage]}, run, given.steps)
    return made


def on_base(given: argparse.Namespace, base: Path, name: str, data: Path, run: Path, ranges: bool) -> Path:
    """An adapter trained on the packed base."""
    made = run / "adapters" / name
    if not made.exists():
        with Progress(run, Console(stderr=True), [given.steps]) as progress:
            train_adapter(
                base, base.parent / "contract.json", [data], run, name=name, steps=given.steps,
                progress=progress, **PACK, rate=given.rate, ranges=ranges,
            )  # fmt: skip
    return made


def scored(pipe: Pipeline, items: list[Item], label: str, adapter: Path | None = None) -> float:
    """Share of right answers, with an adapter or without."""
    name = None
    if adapter is not None:
        pipe.add_adapter(name := "scored", adapter, any_base=True)
    pairs = zip(items, answers_of(pipe, items, label, adapter=name, most=32), strict=True)
    return round(statistics.mean(right(item, said) for item, said in pairs), 4)


def scenario(
    given: argparse.Namespace, name: str, folder: Path, base: Artefact, kept: dict[str, float], save: Any
) -> None:
    """Train and score every way of a scenario that is not there yet."""
    data, items = written(name, given.data, folder, given.lines), asked(given, name)
    floats = float_lora(given, name, data, folder / f"{name}-float")

    def merged() -> Path:
        pipe = opened(given.model, {"qat": {k: v for k, v in options_of(given.body).items() if k != "activations"}})
        merge_adapter(pipe.model, floats)
        made = pipe.compress("qat")
        return packed(pipe, evolve(made, ranges=base.ranges), folder / f"{name}-ptq.andes").path

    def trained(ranges: bool) -> Path:
        run = folder / f"{name}-{'qalft' if ranges else 'qlora'}"
        return on_base(given, base.path, name, data, run, ranges)

    ways: dict[str, Callable[[], float]] = {
        "float_lora": lambda: scored(opened(given.model), items, f"{name}: float LoRA", floats),
        "lora_then_ptq": lambda: scored(rounding(merged()), items, f"{name}: rounded"),
        "lora_on_base": lambda: scored(rounding(base.path), items, f"{name}: on the base", floats),
        "qlora": lambda: scored(rounding(base.path), items, f"{name}: QLoRA-like", trained(False)),
        "qalft": lambda: scored(rounding(base.path), items, f"{name}: QALFT", trained(True)),
        "base": lambda: scored(rounding(base.path), items, f"{name}: base"),
    }
    for way in given.ways:
        if way not in kept:
            kept[way] = ways[way]()
            save()


# ---------------------------------------------------------------- results


def switched(base: Path, adapters: dict[str, Path]) -> float:
    """Largest median of the ms of giving a session an adapter of the registry beside the base; each changes a probe."""
    pipe, registry = Pipeline.from_pretrained(base, backend="torch"), Registry.beside(base)
    for name, folder in adapters.items():
        if name not in registry.entries():
            registry.add(name, folder, pipe)
    return max(load(registry, pipe, name).switch_ms for name in adapters)


def decode_ratios(threads: int) -> dict[str, Any]:
    """What an adapter costs a decode step of a larger model: `benchmarks/adapters.py`."""
    from adapters import figures

    facts = figures(True, threads)
    return {k: facts[k] for k in ("decode_ratio_adapter", "decode_ratio_int8", "decode_ratio_idle")}


def summary(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Means of the ways that every scenario has, and qalft against each of them."""
    means = {
        w: statistics.mean(one[w] for one in scores.values()) for w in WAYS if all(w in s for s in scores.values())
    }
    found: dict[str, Any] = {}
    if "qalft" in means:
        if means.get("float_lora"):
            found["vs_float_lora"] = round(100 * (means["qalft"] / means["float_lora"] - 1), 2)
        for way in ("lora_then_ptq", "qlora"):
            if way in means:
                found[f"vs_{way}"] = round(100 * (means["qalft"] - means[way]), 2)
    return {**found, "means": {way: round(mean, 4) for way, mean in means.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=instruct(), help="a checkpoint [default: andes-nano]")
    parser.add_argument("--data", type=Path, default=DATA, help="what examples/nano/prepare.py wrote")
    parser.add_argument("--mix", type=Path, default=NANO / "5-sft.toml", help="recipe whose data the base learns from")
    parser.add_argument("--body", default="w4_g32", choices=BODIES, help="grid of the base's layers")
    parser.add_argument("--quick", action="store_true", help="few steps and questions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, help="of each adapter [default: 100; quick: 40]")
    parser.add_argument("--base-steps", type=int, help="of the base on its grid [default: 100; quick: 16]")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate of adapters")
    parser.add_argument("--float-rate", type=float, help="of those on floats [default: --rate]")
    parser.add_argument("--validate", action="store_true", help="ask about training pictures that were left out")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS, help="only these")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="only these")
    parser.add_argument("--lines", type=int, default=1500, help="training conversations of a scenario")
    parser.add_argument("--limit", type=int, help="questions of a scenario [default: 200; quick: 32]")
    parser.add_argument("--threads", type=int, default=2, help="of decoding")
    parser.add_argument("--no-decode", action="store_true", help="leave the decode ratios out")
    parser.add_argument("--out", type=Path, help="keep what is done here [default: a temporary folder]")
    given = parser.parse_args()
    given.steps = given.steps or (40 if given.quick else 100)
    given.base_steps = given.base_steps or (16 if given.quick else 100)
    given.limit = given.limit or (32 if given.quick else 200)
    given.float_rate = given.float_rate or given.rate
    torch.set_num_threads(1)
    nano.BATCH = 50
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        result = measured(given, folder)
    result["seconds"] = round(time.perf_counter() - begin, 1)
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All scenarios, and what is measured on the base and its adapters."""
    weights = b"".join(p.read_bytes() for p in sorted(given.model.glob("*.safetensors")))
    own = ("body", "steps", "base_steps", "rate", "float_rate", "lines", "limit", "validate")
    setting = {"model": hashlib.sha256(weights).hexdigest(), **{name: getattr(given, name) for name in own}}
    kept = folder / "scores.json"
    found = json.loads(kept.read_text()) if kept.exists() else {"setting": setting, "scores": {}}
    if found["setting"] != setting:
        raise SystemExit(f"{kept}: scores of {found['setting']}, not of {setting}; choose another --out")

    def save() -> None:
        with appearing_file(kept) as temporary:
            temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")

    base = packed_base(given, folder)
    before = hashlib.sha256(base.path.read_bytes()).hexdigest()
    contract_of(base, Pipeline.from_pretrained(base.path).meta_model().tokenizer, RANK).write(folder / "contract.json")
    for name in given.scenarios:
        scenario(given, name, folder, base, found["scores"].setdefault(name, {}), save)
        print(name, found["scores"][name], file=sys.stderr)
    facts = {"scores": found["scores"], **setting, "ranges": len(base.ranges)}
    if "qalft" not in given.ways:
        return {**summary(found["scores"]), **facts}
    adapters = {name: folder / f"{name}-qalft" / "adapters" / name for name in given.scenarios}
    return {
        **summary(found["scores"]),
        "switch_ms": round(switched(base.path, adapters), 4),
        "base_unchanged": hashlib.sha256(base.path.read_bytes()).hexdigest() == before,
        **({} if given.no_decode else decode_ratios(given.threads)),
        **facts,
    }


if __name__ == "__main__":
    main()
