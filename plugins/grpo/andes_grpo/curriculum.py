"""How hard a model finds each prompt, measured; and a data file in that order.

    python -m andes_grpo.curriculum MODEL train.jsonl ordered.jsonl --reward exact --samples 8 --drop

Each prompt is answered `samples` times; the share of answers that a reward finds right is written into its line as
`pass_rate`. Lines are ordered from easy to hard; `--drop` leaves out what always or never succeeds, from which nothing
can be learned. Train with `order = "file"`. Measuring goes on where it was stopped: what is known lies in
`.<out>.measured` beside the result, until the result is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_training.data.samples import Sample, stage_samples
from andes_training.recipe import DataRecipe
from andes_training.state import saving
from attrs import frozen

from andes_sdk.errors import AndesError, AssemblyError, TrainingError
from andes_sdk.files import Journal
from andes_sdk.numbers import numbers_of, weights_of
from andes_sdk.runtime.options import COOLEST, HOTTEST

from .gym import write_lines
from .prompts import PromptMaker, seed_of
from .sampling import SessionSampler
from .scoring import Scorer

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

PROMPTS_AT_ONCE = 16
MOST_SAMPLES = 65_536


@frozen(kw_only=True)
class Measurement:
    """How pass rates are measured.

    Attributes:
        reward: name in the pipeline; an answer passes from `threshold` on.
        samples: answers per prompt. max_answer, temperature, seed: of sampling.
        concurrency: answers decoded at the same time.

    Raises:
        TrainingError: a number that cannot be used; it says which.
    """

    reward: str = "exact"
    threshold: float = 1.0
    samples: int = 8
    max_answer: int = 512
    temperature: float = 1.0
    seed: int = 0
    concurrency: int = 64

    def __attrs_post_init__(self) -> None:
        for name in ("samples", "max_answer", "concurrency"):
            if (value := getattr(self, name)) < 1:
                raise TrainingError(f"{name} is {value}", who="measurement", fix="give 1 or more")
        if self.samples > MOST_SAMPLES:
            what, fix = f"samples is {self.samples}", f"give {MOST_SAMPLES} at most"
            raise TrainingError(what, who="measurement", why="answers to a prompt are held at once", fix=fix)
        if not math.isfinite(self.threshold):
            why, fix = "no answer's score can be compared with it", "give a finite number"
            raise TrainingError(f"threshold is {self.threshold}", who="measurement", why=why, fix=fix)
        if self.temperature != 0 and not COOLEST <= self.temperature <= HOTTEST:
            fix = f"give 0 for the likeliest answer, or {COOLEST:g} to {HOTTEST:g}"
            raise TrainingError(f"temperature is {self.temperature}", who="measurement", fix=fix)


def pass_rates(
    pipeline: Pipeline, samples: Sequence[Sample], how: Measurement, *, start: int = 0
) -> Iterator[tuple[int, float]]:
    """(index, share of answers that pass) for each prompt from `start` on, in order."""
    scorer = Scorer([(pipeline.pick("rewards", how.reward), 1.0)])
    maker = PromptMaker.of(pipeline, how.max_answer)
    sampler = SessionSampler(pipeline, how.max_answer, how.temperature, how.concurrency)
    for first in range(start, len(samples), PROMPTS_AT_ONCE):
        part = range(first, min(first + PROMPTS_AT_ONCE, len(samples)))
        seeds = [[seed_of("pass-rate", how.seed, i, k) for k in range(how.samples)] for i in part]
        prompts = [maker.prompt(samples[i], s) for i, s in zip(part, seeds, strict=True)]
        for index, prompt, answers in zip(part, prompts, sampler.answers(prompts), strict=True):
            passed = [scorer.score(prompt, a)[0] >= how.threshold for a in answers]
            yield index, sum(passed) / len(passed)


def ordered(lines: Sequence[Mapping[str, Any]], *, drop: bool = False) -> list[Mapping[str, Any]]:
    """Lines with `pass_rate` from easy to hard; equals stay as they were. `drop` leaves out rates of 0 and 1."""
    kept = [line for line in lines if not drop or 0.0 < line["pass_rate"] < 1.0]
    return sorted(kept, key=lambda line: -line["pass_rate"])


def measure(pipeline: Pipeline, data: Path, out: Path, how: Measurement, *, drop: bool = False) -> list[float]:
    """Measure a data file and write it in order -> pass rates in the order of `data`.

    Relative picture paths must stay right, so `out` lies in the folder of `data`.

    Raises:
        TrainingError: unusable data, a result that cannot be written, or a measurement of other settings that was
            stopped here.
    """
    if data.suffix != ".jsonl":
        raise TrainingError("is no JSON Lines", who=str(data), fix="write it as .jsonl, with pictures as files")
    if out.resolve().parent != data.resolve().parent:
        raise TrainingError("lies in another folder than the data", who=str(out), fix="write beside the data")
    samples = stage_samples([DataRecipe(path=Path(data.name))], data.parent)
    log = Journal(out.with_name(f".{out.name}.measured"))
    rates = _known(log, _digest(data, pipeline, how))
    if len(rates) > len(samples) or not all(isinstance(rate, int | float) for rate in rates):
        raise TrainingError("holds what no measurement of this data left", who=str(log.path), fix="delete the file")
    for _, rate in pass_rates(pipeline, samples, how, start=len(rates)):
        rates.append(rate)
        with saving(log.path):
            log.add(rate)
    lines = [{**sample.entry, "pass_rate": rate} for sample, rate in zip(samples, rates, strict=True)]
    write_lines(out, ordered(lines, drop=drop))
    log.path.unlink()
    return rates


def _digest(data: Path, pipeline: Pipeline, how: Measurement) -> str:
    """What the measured rates depend on: contents, wherever they lie."""
    packed, model = pipeline.artefact, pipeline.model
    weights = packed.digest if packed else numbers_of(model) + weights_of(model, exact=True)
    plan = json.dumps(pipeline.plan.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(repr((data.read_bytes(), weights, plan, how)).encode()).hexdigest()


def _written(row: Any) -> bool:
    """True for a row of a measurement: its digest, or a rate. Raises TypeError: it is none."""
    if not isinstance(row, str) and (type(row) not in (int, float) or not 0 <= row <= 1):
        raise TypeError(f"{str(row)[:80]} is no share of answers")
    return True


def _known(log: Journal, digest: str) -> list[float]:
    """Rates that a stopped measurement has left. One that was stopped before its first rate has left nothing."""
    with saving(log.path):
        head, *rates = log.keep(_written) or [None]
        if head != digest and not rates:
            log.path.unlink(missing_ok=True)
            log.add(digest)
    if rates and head != digest:
        raise TrainingError(
            "a stopped measurement of other data, weights or settings lies here",
            who=str(log.path),
            fix="repeat its settings, or delete the file",
        )
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and order a data file."""
    from andes_sdk.pipeline import Pipeline

    parser = argparse.ArgumentParser(prog="python -m andes_grpo.curriculum", description="Order prompts by pass rate.")
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="result, in the folder of the data")
    parser.add_argument("--plugin", action="append", default=[], help="with the reward; verifiers if none is named")
    parser.add_argument("--drop", action="store_true", help="leave out prompts that always or never succeed")
    own = Measurement()
    for name in ("reward", "threshold", "samples", "max_answer", "temperature", "seed", "concurrency"):
        default = getattr(own, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = vars(parser.parse_args(arguments))
    model, data, out, plugins, drop = (args.pop(k) for k in ("model", "data", "out", "plugin", "drop"))
    try:
        how = Measurement(**args)
        pipeline = Pipeline.from_pretrained(model, plugins=plugins or ["verifiers"])
        rates = measure(pipeline, data, out, how, drop=drop)
    except (AndesError, AssemblyError) as error:
        raise SystemExit(str(error)) from None
    counts = [sum(rate == 0 for rate in rates), sum(0 < rate < 1 for rate in rates), sum(rate == 1 for rate in rates)]
    print(json.dumps({"prompts": len(rates), "never": counts[0], "sometimes": counts[1], "always": counts[2]}))


if __name__ == "__main__":
    main()
