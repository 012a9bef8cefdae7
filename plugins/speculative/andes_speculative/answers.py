"""What the model itself answers to the prompts of a data file: what a draft head learns from.

Answers are written to a file as they come, so that a run that was stopped goes on where it was. A file beside it says
what they were made with.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_training.data.rows import conversations_of, read_conversations
from andes_training.data.samples import Sample, stage_samples
from andes_training.recipe import DataRecipe

from andes_sdk.errors import TrainingError
from andes_sdk.files import Journal, write_atomically
from andes_sdk.inputs.images import load_image
from andes_sdk.reading import parse_json
from andes_sdk.runtime.options import GenerationOptions

from .heads import base_of

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def own_answers(
    pipeline: Pipeline,
    data: Path,
    out: Path,
    options: GenerationOptions,
    *,
    together: int = 16,
    limit: int = 0,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Answer the prompts of a data file -> lines in `out`, which is a data file too.

    Of each line the first conversation counts, up to its last answer.

    Args:
        together: conversations that are answered side by side. limit: lines of the data; 0 for all.
        show: told how many are answered, and of how many.

    Raises:
        TrainingError: data that cannot be read, or that `out` does not belong to; answers of another model or of other
            options in `out`.
    """
    samples = stage_samples([DataRecipe(path=data.resolve())], Path())
    count = min(len(samples), limit) if limit else len(samples)
    _same_making(
        out, {"model": base_of(pipeline.model), "answer_tokens": options.max_tokens, "temperature": options.temperature}
    )
    journal = Journal(out)
    done = journal.keep(lambda row: isinstance(row["of"], str))
    if [row["of"] for row in done] != [samples.where(n) for n in range(min(len(done), count))]:
        fix = "give the data of before, or another folder"
        raise TrainingError("holds the answers to other data", who=str(out), fix=fix)
    for start in range(len(done), count, together):
        show(start, count)
        some = [samples[n] for n in range(start, min(start + together, count))]
        answers = pipeline.generate_batch([_prompt(sample) for sample in some], options)
        for sample, answer in zip(some, answers, strict=True):
            journal.add(_line(sample, answer.text))
    show(count, count)
    return count


def _same_making(out: Path, facts: Mapping[str, Any]) -> None:
    """Write down what answers are made with, or refuse to go on with others."""
    beside = out.with_suffix(".made.json")
    if not out.exists() or not beside.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(beside, json.dumps(facts).encode())
        return
    try:
        before = dict(parse_json(beside.read_bytes()))
    except (ValueError, TypeError):
        before = {}
    if other := [
        f"{name}: {before.get(name)} before, {value} now" for name, value in facts.items() if before.get(name) != value
    ]:
        fix = "give what was given before, or another folder"
        raise TrainingError("holds answers that were made otherwise", who=str(out), why="; ".join(other), fix=fix)


def _prompt(sample: Sample) -> Sequence[Any]:
    """The messages before the last answer, pictures loaded."""
    first = read_conversations(sample, conversations_of, load_image, random.Random(0))[0]
    return first[: _last(first, sample.where)]


def _last(messages: Sequence[Any], where: str) -> int:
    """Index of the last answer, or the end.

    Raises:
        TrainingError: nothing stands before it.
    """
    roles = [m.get("role") if isinstance(m, Mapping) else None for m in messages]
    last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else len(roles)
    if last == 0:
        raise TrainingError("asks nothing", who=where, fix="put a user's message before the answer")
    return last


def _line(sample: Sample, text: str) -> dict[str, Any]:
    messages = conversations_of(sample.entry)[0]
    kept = [*messages[: _last(messages, sample.where)], {"role": "assistant", "content": text}]
    line: dict[str, Any] = {"of": sample.where, "messages": kept}
    if images := sample.entry.get("images"):
        line["images"] = [_absolute(image, sample.folder) for image in images]
    return line


def _absolute(image: Any, folder: Path) -> Any:
    known = isinstance(image, str) and (image.startswith("data:") or "://" in image or Path(image).is_absolute())
    return image if known or not isinstance(image, str) else str((folder / image).resolve())
