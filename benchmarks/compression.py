"""What a vision-language model keeps of its score below four bits: rounding, GPTQ, one-shot sparsity, and training.

    .venv/bin/python benchmarks/compression.py --quick --json
    .venv/bin/python benchmarks/compression.py --model MODEL --steps 2000 --limit 2000 --out runs/compression

Every row is packed into one file, opened again with backend torch, and asked questions of easy-vqa's test split.
retention is the score ÷ that of the model as it was. above_blind is the same after subtracting what the most frequent
answer to each question text reaches without looking, on the same questions. Body is what a row names; embedding and
head have w4_g32, encoder and projector w8. body_bpw counts the bytes of the file, scales and padding included. A folder
given as --out keeps rows and states of training: the same command goes on where it was stopped, and another model,
number of steps or questions is refused there.

smollm_gain_over_ptq is null: the text model is not measured here. Compare rows by body_bpw, not by name.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples" / "first_light")]
from andes_compression.bpw import of_artefact  # noqa: E402
from andes_compression.compress import recipe_for, write  # noqa: E402
from andes_training.progress import Progress  # noqa: E402
from andes_training.recipe import Recipe  # noqa: E402
from first_light import blind, score, spread  # noqa: E402
from prepare import easy_vqa_questions, thinned  # noqa: E402
from prepare import write as write_line  # noqa: E402
from rich.console import Console  # noqa: E402

from andes_sdk import Pipeline  # noqa: E402
from andes_sdk.config import structure  # noqa: E402
from andes_sdk.files import appearing_file  # noqa: E402
from andes_sdk.storage.checkpoint import stored_tensors  # noqa: E402

BODIES = {"w4_g32": 1e-4, "ternary_g128": 5e-4, "nm14_w4": 5e-4, "ternary34_g128": 5e-4}
"""Format of the body -> learning rate."""
COARSE = ("ternary_g128", "ternary34_g128")
ROWS = [
    "bf16", *(f"rtn {b}" for b in BODIES), *(f"gptq {b}" for b in BODIES), "sparsegpt nm14_w4",
    *(f"qat {b}" for b in BODIES),
]  # fmt: skip
REST = {"embedding": "w4_g32", "head": "w4_g32", "vision": "w8", "projector": "w8"}


def training_data(folder: Path) -> Path:
    """Colours, shapes and a few closed questions of the training split."""
    path = folder / "train.jsonl"
    if not path.exists():
        with appearing_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            lines = list(easy_vqa_questions("train"))
            random.Random(0).shuffle(lines)
            for picture, pairs in lines:
                write_line(file, str(picture), thinned(pairs, random.Random(picture.name)))
    return path


def opened(model: Path, *plugins: Any) -> Pipeline:
    """The float model with further plugins; computes in float32."""
    return Pipeline.from_pretrained(model, dtype="float32", plugins=list(plugins))


def trained(given: argparse.Namespace, body: str, folder: Path, data: Path) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline on its grids after training, and steps, tokens and seconds."""
    rate = BODIES[body]
    options = {
        "body": body, **REST, "rate": rate, "projector_rate": rate / 5, "teacher": str(given.model),
        "scales": "seq" if body in COARSE else "lsq", "every": max(1, given.steps // 20),
    }  # fmt: skip
    if body in COARSE:  # which seq goes with; other parts have more levels, and are rounded to nearest afterwards
        options |= dict.fromkeys(REST, "")
    pipe = opened(given.model, {"qat": options})
    stage = {
        "stage": "qat", "steps": given.steps, "warmup": max(1, given.steps // 20), "max_patches": 512,
        "max_tokens": 2048, "checkpoint_every": max(1, given.steps // 4),
        "data": [{"path": str(data), "questions": 3}],
    }  # fmt: skip
    run, begin = folder / f"qat-{body}", time.process_time()
    recipe = structure(Recipe, {"name": f"qat-{body}", "seed": 0, "threads": 1, "stages": [stage]}, "recipe")
    with Progress(run, Console(stderr=True), [given.steps]) as progress:
        pipe.train(recipe, run, progress=progress)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    facts = {
        "steps": given.steps,
        "tokens": sum(int(line.get("tokens", 0)) for line in lines),
        "cpu_seconds": round(time.process_time() - begin, 1),  # of this start alone
    }
    return opened(run / "model", {"qat": {"body": body}}), facts | {"codes": str(run / "qat")}


def row(name: str, given: argparse.Namespace, folder: Path, data: Path, questions: list[Any]) -> dict[str, Any]:
    """Compress, pack, open again, ask."""
    how, _, body = name.partition(" ")
    facts: dict[str, Any] = {}
    if how == "bf16":
        return {"score": score(opened(given.model), questions, name)[0], "body_bpw": 16.0}
    if how == "qat":
        pipe, facts = trained(given, body, folder, data)
        made = pipe.compress("qat", codes=facts.pop("codes"))
    elif how == "sparsegpt":
        pipe = opened(given.model, "sparsity")
        made = pipe.compress(how, data=str(data), lines=16)
    else:
        pipe = opened(given.model, {"qat": {"body": body, **REST}})
        made = pipe.compress(*(("gptq",) if how == "gptq" else ("qat",)), **given_data(how, data))
    recipe = recipe_for(pipe, made, None if how != "sparsegpt" else body, head="w4_g32", vision="w8")
    if how == "qat" and body in COARSE:
        plain = recipe_for(pipe, made, "w4_g32", head="w4_g32", vision="w8")
        recipe = {n: f if f"{n}" in made.codes else plain[n] for n, f in recipe.items()}
    artefact = write(pipe, made, folder / f"{name.replace(' ', '-')}.andes", recipe)
    packed = Pipeline.from_pretrained(artefact.path, backend="torch")
    if how == "qat":
        own, other = stored_tensors(pipe.model), stored_tensors(packed.model)
        facts["packed_equals_trained"] = artefact.numbers == made.report["numbers"] and all(
            torch.equal(own[n].float(), other[n].float()) for n in made.codes if n in own
        )
    report = of_artefact(artefact).to_dict()
    bits = report["language_model"]["type_bpw"]
    kept = score(packed, questions, name)[0]
    return {"score": kept, "body_bpw": round(body_bits(artefact), 3), "language_model_type_bpw": bits, **facts}


def given_data(how: str, data: Path) -> dict[str, Any]:
    """Options of a compressor that looks at data."""
    return {"data": str(data), "lines": 16} if how == "gptq" else {}


def body_bits(artefact: Any) -> float:
    """Bits of the matrices of the language model's layers, by their number of weights."""
    bits = count = 0
    for name, entry in artefact.header.tensors.items():
        if ".layers." in name and name.startswith("language_model.") and len(entry.shape) == 2:
            bits += 8 * entry.nbytes
            count += entry.shape[0] * entry.shape[1]
    return bits / count


def summary(rows: dict[str, dict[str, Any]], without: float) -> dict[str, Any]:
    """The figures that the command promises; null where a row is missing."""
    whole = rows.get("bf16", {}).get("score")
    for one in rows.values():
        if whole:
            one["retention"] = round(one["score"] / whole, 4)
            one["above_blind"] = round((one["score"] - without) / (whole - without), 4) if whole > without else None
    low = {n: r for n, r in rows.items() if n.startswith("qat") and r["body_bpw"] <= 1.8 and "retention" in r}
    best = max(low, key=lambda n: low[n]["retention"], default=None)
    equal = [r["packed_equals_trained"] for r in rows.values() if "packed_equals_trained" in r]
    return {
        "retention_sub2": low[best]["retention"] if best else None,
        "retention_nm14": rows.get("qat nm14_w4", {}).get("retention"),
        "smollm_gain_over_ptq": None,
        "bpw_body": low[best]["body_bpw"] if best else None,
        "packed_equals_trained": all(equal) if equal else None,
        "best": best, "blind": round(without, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "first_light" / "model")
    parser.add_argument("--quick", action="store_true", help="40 steps of training, 160 questions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, help="of each training [default: 1000; quick: 40]")
    parser.add_argument("--limit", type=int, help="questions [default: 2000; quick: 160]")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--out", type=Path, help="keep rows and states here [default: a temporary folder]")
    given = parser.parse_args()
    given.steps = given.steps or (40 if given.quick else 1000)
    given.limit = given.limit or (160 if given.quick else 2000)
    torch.set_num_threads(1)
    questions = spread([(path, q, a) for path, pairs in easy_vqa_questions("test") for q, a in pairs], given.limit)
    with contextlib.ExitStack() as stack:
        folder = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        data, kept = training_data(folder), folder / "rows.json"
        weights = b"".join(p.read_bytes() for p in sorted(given.model.glob("*.safetensors")))
        setting = {"model": hashlib.sha256(weights).hexdigest(), "steps": given.steps, "questions": len(questions)}
        found = json.loads(kept.read_text()) if kept.exists() else {"setting": setting, "rows": {}}
        if found["setting"] != setting:
            raise SystemExit(f"{kept}: rows of {found['setting']}, not of {setting}; choose another --out")
        for name in given.only:
            if name in found["rows"]:
                continue
            begin = time.perf_counter()
            found["rows"][name] = row(name, given, folder, data, questions)
            found["rows"][name]["seconds"] = round(time.perf_counter() - begin, 1)
            print(name, found["rows"][name], file=sys.stderr)
            with appearing_file(kept) as temporary:
                temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
        result = {**summary(found["rows"], blind(questions)[1]), **setting, "rows": found["rows"]}
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
