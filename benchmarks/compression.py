"""What andes-nano keeps below five bits: rounding, GPTQ, AWQ, one-shot sparsity, and training on the grid.

    python examples/nano/prepare.py                      # the training data
    .venv/bin/python benchmarks/compression.py --quick --json
    .venv/bin/python benchmarks/compression.py --out runs/compression
    .venv/bin/python benchmarks/compression.py --only bf16 "qat nm14_w4" "qat nm14_w4@75" --out runs/compression
    .venv/bin/python benchmarks/compression.py --model MODEL --data DATA --only bf16 "qat 34+kv@1200" --out runs/more

Every row is packed into one file and opened again. Two measures, on the questions of `examples/nano/held_out`, whose
words and screens training never saw:

- score: the mean over tasks, the parts of that folder, of what is right in free answers; a task is the mean of its
  kinds of question, each scored as `benchmarks/nano.py` does (of lines 1 − the share of wrong characters).
- tokens: the share of the answers' tokens that are the most likely one behind the right ones before them, mean over
  the tasks. It has thousands of tokens, so it is the finer measure. loss: nats, on the same.

retention is the score ÷ that of the model as it was, token_retention the same of tokens. above_blind compares what is
above that model on noise pictures. Body is what a row names; embedding and head have w4_g32, encoder and projector w8.
body_bpw counts the bytes of the file, scales and padding included; model_bpw all of it. Rows `qat BODY@STEPS` are of
so many steps, `qat BODY@STEPS+BLOCK` begin with so many of each layer by itself. "34+kv" is ternary34_g128 with w4_g128
for k and v, "34+o" the same with w4_g128 for o; both are as large as nm14_w4, and the backend numba runs the second.
"34+first" has w4_g128 in the first layer but for its `down`, and nowhere else: torch runs it.
Training reads the mixture of the recipe --mix, and the model as it was is the teacher.

A folder given as --out keeps rows and states of training: the same command goes on where it was stopped. Another model,
other data, questions or rate are refused there. smollm_gain_over_ptq is not measured here: it is what
benchmarks/compression_text.py printed into the file --text, or else what docs/results/compression.json has of it, and
smollm_from says which; null where neither has it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from andes_compression.bpw import of_artefact
from andes_compression.compress import recipe_for, write
from andes_nano import instruct
from andes_training.data.samples import stage_samples
from andes_training.loss import next_token_loss
from andes_training.packing import Batch, collate, pack
from andes_training.progress import Progress
from andes_training.reading import RowMaker
from andes_training.recipe import DataRecipe, Recipe
from rich.console import Console

from andes_sdk import Pipeline
from andes_sdk.assembling.building import build_processor
from andes_sdk.config import structure
from andes_sdk.plan import Plan
from andes_sdk.storage.checkpoint import stored_tensors

STORED = Path(__file__).resolve().parents[1] / "docs" / "results" / "compression.json"
sys.path.insert(0, str(Path(__file__).parent))
import nano  # noqa: E402
from bodies import BODIES, NANO, REST, ROOT, keep_row, mixture, opened, precision, teacher  # noqa: E402
from held_out import DATA, OUT, PARTS  # noqa: E402 - nano.py has made it importable
from nano import answers_of, by_name, read, right, spread  # noqa: E402

TASKS = [part for part in PARTS if not part.startswith("desktop")]
"""Parts of the held-out questions; screens of a desktop take half of the time, and small ones ask the same."""
LINES = 64
"""Lines that compressors read, at most: more than `calibration` writes."""
ROWS = [
    "bf16", *(f"{how} {b}" for how in ("rtn", "gptq", "awq", "blockwise") for b in BODIES), "sparsegpt nm14_w4",
    *(f"qat {b}" for b in BODIES),
]  # fmt: skip


# ---------------------------------------------------------------- measures


def teacher_forced(pipe: Pipeline, packs: dict[str, list[Batch]]) -> dict[str, dict[str, float]]:
    """Loss and share of right tokens of each task."""
    found = {}
    for part, batches in packs.items():
        loss = correct = tokens = 0.0
        for batch in batches:
            with torch.inference_mode():
                value, told = next_token_loss(pipe.model, batch)
            loss, correct = loss + float(value) * batch.tokens, correct + told["accuracy"] * batch.tokens
            tokens += batch.tokens
        found[part] = {"loss": round(loss / tokens, 4), "tokens": round(correct / tokens, 4), "n": int(tokens)}
    return found


def held_out(pipe: Pipeline, questions: Path, samples: int) -> dict[str, list[Batch]]:
    """Packs of the first samples of each task."""
    maker, packs = RowMaker(build_processor(pipe.model, Plan(plugins=()))), {}
    for part in TASKS:
        lines = stage_samples([DataRecipe(path=questions / f"{part}.jsonl", questions=4)], Path())
        rows = [maker.row(lines[i], random.Random(i)) for i in range(min(samples, len(lines)))]
        packs[part] = [collate(group) for group in pack(rows, max_tokens=2048, max_patches=2048)]
    return packs


def asked(pipe: Pipeline, questions: Path, limit: int, name: str, *, blind: bool = False) -> dict[str, Any]:
    """Score of each kind and task by free answers, `limit` questions of each kind, and how long an answer is."""
    kinds, lengths = dict[str, float](), list[int]()
    for part in TASKS:
        for kind, items in by_name(read(questions / f"{part}.jsonl", part)).items():
            some = spread(items, limit)
            most = 160 if some[0].think else 64
            answers = answers_of(pipe, some, f"{name}: {kind}", blind=blind, most=most)
            lengths += map(len, answers)
            value = float(np.mean([right(i, a) for i, a in zip(some, answers, strict=True)]))
            kinds[kind] = round(1 - value if kind.endswith("/error") else value, 4)
    tasks = {part: mean([v for k, v in kinds.items() if k.partition("/")[0] == part]) for part in TASKS}
    characters = round(float(np.mean(lengths)), 1)
    return {"score": mean(tasks.values()), "tasks": tasks, "kinds": kinds, "answer_characters": characters}


def measured(
    model: Pipeline, questions: Path, limit: int, name: str, packs: dict[str, list[Batch]], *, blind: bool = False
) -> dict[str, Any]:
    """Both measures of a model; of one that sees noise answers alone, and without a limit tokens alone."""
    made: dict[str, Any] = {}
    if limit:
        made = asked(model, questions, limit, name, blind=blind)
    if not blind:
        forced = teacher_forced(model, packs)
        made |= {k: mean([one[k] for one in forced.values()]) for k in ("loss", "tokens")} | {"forced": forced}
    return made


def mean(values: Any) -> float:
    return round(float(np.mean(list(values))), 4)


# ---------------------------------------------------------------- ways there


def trained(
    given: argparse.Namespace, body: str, steps: int, block: int, folder: Path
) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline on its grids after training, and steps, tokens and seconds."""
    options = {**BODIES[body], **REST, "scales": "seq" if body.startswith(("ternary", "34")) else "lsq"}
    options |= {"rate": given.rate or options["rate"], "teacher": teacher(given.model, folder)}
    options |= {"projector_rate": options["rate"] / 5, "every": max(1, steps // 20)}  # the encoder stays
    options |= {"blockwise": block, "block_rate": 2e-3}
    pipe = opened(given.model, {"qat": options})
    stage = {
        "stage": "qat", "steps": steps, "warmup": max(1, steps // 20), "max_patches": 2 * given.tokens,
        "max_tokens": given.tokens, "checkpoint_every": max(1, min(200, steps // 4)), "data": mixture(given),
        "schedule": "wsd", "decay": max(1, steps // 2),
    }  # fmt: skip
    run, begin = folder / f"qat-{body}-{steps}-{block}", time.process_time()
    recipe = {"name": f"qat-{body}", "seed": 0, "threads": 1, "precision": precision(), "stages": [stage]}
    with Progress(run, Console(stderr=True), [max(1, steps // 20)]) as progress:
        pipe.train(structure(Recipe, recipe, "recipe"), run, progress=progress)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    facts = {
        "steps": steps, "block_steps": block, "answer_tokens": sum(int(line.get("tokens", 0)) for line in lines),
        "samples": sum(int(line.get("samples", 0)) for line in lines),
        "cpu_seconds": round(time.process_time() - begin, 1),  # of this start alone
        "rate": options["rate"], "precision": precision(),
    }  # fmt: skip
    return opened(run / "model"), facts | {"codes": str(run / "qat"), "run": str(run)}


def row(name: str, given: argparse.Namespace, folder: Path, packs: dict[str, list[Batch]]) -> dict[str, Any]:
    """Compress, pack, open again, measure."""
    how, _, what = name.partition(" ")
    body, _, steps = what.partition("@")
    steps, _, block = steps.partition("+")
    facts: dict[str, Any] = {}
    asks = 0 if given.tokens_only else given.limit
    if how in ("bf16", "noise"):
        pipe, blind = opened(given.model), how == "noise"
        return {"body_bpw": 16.0, **measured(pipe, given.questions, asks, name, packs, blind=blind)}
    if how == "qat":
        pipe, facts = trained(given, body, int(steps or given.steps), int(block or 0), folder)
        made, run = pipe.compress("qat", codes=facts.pop("codes")), Path(facts.pop("run"))
    elif how == "sparsegpt":
        pipe = opened(given.model, "sparsity")
        made = pipe.compress(how, data=str(calibration(given, folder)), lines=LINES)
    else:
        own = {k: v for k, v in BODIES[body].items() if k != "rate"}
        pipe = opened(given.model, {"qat": {**own, **REST}})
        more = {"data": str(calibration(given, folder)), "lines": LINES} if how != "rtn" else {}
        made = pipe.compress("qat" if how == "rtn" else how, **more)
    recipe = recipe_for(pipe, made, body if how == "sparsegpt" else "f16", head="w4_g32", vision="w8")
    if how != "sparsegpt":
        recipe |= {n: f for n, f in recipe_for(pipe, made, None, head="w4_g32", vision="w8").items() if n in made.codes}
    artefact = write(pipe, made, folder / f"{name.replace(' ', '-')}.andes", recipe)
    packed = Pipeline.from_pretrained(artefact.path, backend="torch")
    if how == "qat":
        own, other = stored_tensors(pipe.model), stored_tensors(packed.model)
        facts["packed_equals_trained"] = artefact.numbers == made.report["numbers"] and all(
            torch.equal(own[n].float(), other[n].float()) for n in made.codes if n in own
        )
        shutil.rmtree(run / "state", ignore_errors=True)
    report = of_artefact(artefact).to_dict()
    size = {
        "body_bpw": next(round(g["type_bpw"]["disk"], 3) for g in report["groups"] if g["group"] == "body"),
        "language_model_bpw": round(report["language_model"]["type_bpw"]["disk"], 3),
        "model_bpw": round(report["model_bpw"]["disk"], 3), "bytes": artefact.path.stat().st_size,
    }  # fmt: skip
    return {**size, **facts, **measured(packed, given.questions, asks, name, packs)}


def calibration(given: argparse.Namespace, folder: Path) -> Path:
    """Two lines of every file of the mixture, for compressors that look at inputs; they read all of them."""
    path, made = folder / "calibration.jsonl", []
    for one in mixture(given):
        source = Path(one["path"])
        for text in source.read_text().splitlines()[:2]:
            line = json.loads(text)
            line["images"] = [str((source.parent / name).resolve()) for name in line.get("images", ())]
            if "conversations" in line:
                line["conversations"] = line["conversations"][:4]
            made.append(json.dumps(line))
    path.write_text("\n".join(made), encoding="utf-8")
    return path


# ---------------------------------------------------------------- results


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that the command promises; null where a row is missing."""
    whole, blind = rows.get("bf16"), rows.get("noise")
    for one in rows.values():
        if whole and "tokens" in one:
            one["token_retention"] = round(one["tokens"] / whole["tokens"], 4)
        if whole and "score" in one:
            one["retention"] = round(one["score"] / whole["score"], 4)
            if blind:
                above = whole["score"] - blind["score"]
                one["above_blind"] = round((one["score"] - blind["score"]) / above, 4) if above > 0 else None
    low = {n: r for n, r in rows.items() if n.startswith("qat") and r["body_bpw"] <= 1.8 and "retention" in r}
    best = max(low, key=lambda n: low[n]["retention"], default=None)
    untrained = {
        n: r for n, r in rows.items() if n.startswith(("rtn", "gptq", "awq", "sparse", "block")) and "retention" in r
    }
    ptq = [r["retention"] for r in untrained.values() if r["body_bpw"] <= 1.8]
    sparse = [r["retention"] for n, r in low.items() if "nm14_w4" in n]
    equal = [r["packed_equals_trained"] for r in rows.values() if "packed_equals_trained" in r]
    return {
        "retention_sub2": low[best]["retention"] if best else None,
        "retention_nm14": max(sparse, default=None),
        "bpw_body": low[best]["body_bpw"] if best else None,
        "packed_equals_trained": all(equal) if equal else None,
        "best": best, "best_without_training": max(ptq, default=None),
    }  # fmt: skip


def setting_of(given: argparse.Namespace) -> dict[str, Any]:
    """What all rows of a folder share; the model by its weights, data by its lines, wherever they lie."""
    weights = sorted(given.model.glob("*.safetensors"))
    hashes = {
        "model": _hash(weights), "data": _hash([Path(one["path"]) for one in mixture(given)]),
        "asked": _hash([given.questions / f"{part}.jsonl" for part in TASKS]),
    }  # fmt: skip
    return {**hashes, "rate": given.rate, "step_tokens": given.tokens, "questions": given.limit}


def mix_of(given: argparse.Namespace) -> str:
    """The recipe of the mixture, below the repository if it lies there; else its name alone."""
    path = given.mix.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _hash(paths: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def known(names: Sequence[str]) -> None:
    """Refuse rows that there are none of."""
    for name in names:
        how, _, what = name.partition(" ")
        body, at, steps = what.partition("@")
        counts = all(count.isdigit() for count in steps.split("+", 1)) and int(steps.split("+")[0]) > 3
        if not (name in (*ROWS, "noise") or (how == "qat" and body in BODIES and at and counts)):
            rows = ", ".join(ROWS)
            raise SystemExit(f"--only: no row {name!r}; there are noise, {rows}, 'qat BODY@STEPS' and '…+BLOCK'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=instruct(), help="a checkpoint [default: andes-nano]")
    parser.add_argument("--data", type=Path, default=DATA, help="what examples/nano/prepare.py wrote")
    parser.add_argument("--mix", type=Path, default=NANO / "5-sft.toml", help="recipe whose first stage names the data")
    parser.add_argument("--questions", type=Path, default=OUT, help="what examples/nano/held_out.py wrote")
    parser.add_argument("--tokens", type=int, default=1024, help="most of a step, and half of its patches")
    parser.add_argument("--quick", action="store_true", help="few steps and questions, few rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, help="of each training [default: 100; quick: 20]")
    parser.add_argument("--rate", type=float, help="learning rate, instead of each body's own")
    parser.add_argument("--limit", type=int, help="questions of each kind [default: 60; quick: 4]")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"of: noise, {', '.join(ROWS)}, qat BODY@STEPS")
    parser.add_argument("--tokens-only", action="store_true", help="new rows get no free answers: a third of the time")
    parser.add_argument("--text", type=Path, help="what benchmarks/compression_text.py --json printed")
    parser.add_argument("--out", type=Path, help="keep rows and states here [default: a temporary folder]")
    given = parser.parse_args()
    given.steps = given.steps or (20 if given.quick else 100)
    given.limit = given.limit or (4 if given.quick else 60)
    quick = ["bf16", "rtn nm14_w4", "rtn ternary34_g128", "qat nm14_w4", "qat ternary34_g128"]
    given.only = given.only or (quick if given.quick else ["noise", *ROWS])
    known(given.only)
    for path in (Path(one["path"]) for one in mixture(given)):
        if not path.is_file():
            parser.error(f"{path} is missing: python examples/nano/prepare.py")
    torch.set_num_threads(1)
    nano.BATCH = 50
    with contextlib.ExitStack() as stack:
        folder = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "rows.json"
        setting = setting_of(given)
        found = json.loads(kept.read_text()) if kept.exists() else {"setting": setting, "rows": {}}
        if found["setting"] != setting:
            raise SystemExit(f"{kept}: rows of {found['setting']}, not of {setting}; choose another --out")
        whole = opened(given.model)
        parameters, packs = whole.model.parameter_count(), held_out(whole, given.questions, given.limit)
        for name in given.only:
            if name in found["rows"]:
                if name.startswith("qat") and "@" not in name and found["rows"][name]["steps"] != given.steps:
                    was = found["rows"][name]["steps"]
                    raise SystemExit(
                        f"{kept}: {name!r} has {was} steps; ask for '{name}@{given.steps}', or --steps {was}"
                    )
                continue
            keep_row(kept, found, name, partial(row, name, given, folder, packs))
        stored = json.loads(STORED.read_text(encoding="utf-8")).get("text") if given.text is None else None
        text = stored if given.text is None else json.loads(given.text.read_text(encoding="utf-8"))
        source = str(given.text or STORED.relative_to(ROOT)) if text else None
        result = {
            **summary(found["rows"]),
            "smollm_gain_over_ptq": text["gain_over_ptq"] if text else None,
            "smollm_from": source,
            "parameters": parameters,
            "mix": mix_of(given),
            **setting,
            "rows": found["rows"],
        }
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
