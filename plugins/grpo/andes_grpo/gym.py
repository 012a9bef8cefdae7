"""Prompts of reasoning-gym as a data file, with what its verifier needs.

    python -m andes_grpo.gym chain_sum train.jsonl --size 4000 --seed 0 --option max_terms=3 --option max_digits=1

Each line holds `messages`, `answer`, `think`, and `reasoning_gym` (data set, configuration, entry) for the reward of
that name. Some data sets give part of a point to an answer that merely contains the truth, which a model learns to
exploit; where an answer is one number or word the reward `exact` is safer. Files with different seeds share tasks where
a data set has few: `--without` leaves out the questions of another file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from andes_sdk.errors import AndesError, ConfigError, InputError, TrainingError
from andes_sdk.files import write_atomically, writing
from andes_sdk.reading import json_lines, parse_json


def entries(
    name: str, *, size: int, seed: int = 0, options: Mapping[str, Any] | None = None, think: bool | None = None
) -> Iterator[dict[str, Any]]:
    """`size` tasks of a data set as data lines; the same arguments give the same lines.

    Args:
        name: data set, such as "chain_sum". options: fields of its configuration, such as {"max_terms": 3}.
        think: whether the answer starts with `<think>`; None leaves it to the model's plugin.

    Raises:
        ConfigError: reasoning-gym is not installed. InputError: no such data set, or options that do not fit it.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ConfigError("reasoning-gym is needed", why=str(error), fix='pip install "andes-grpo[gym]"') from None
    if name not in DATASETS:
        from andes_sdk.config import suggestion

        raise InputError(f"reasoning-gym has no data set {name!r}", fix=suggestion(name, DATASETS))
    config = dict(options or {})
    try:
        data = create_dataset(name, **config, seed=seed, size=size)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"the options do not fit {name!r}", why=str(error)) from error
    for index in range(size):
        entry = json.loads(json.dumps(data[index], default=str))
        line = {"messages": [{"role": "user", "content": entry["question"]}], "answer": entry["answer"]}
        task = {"dataset": name, "config": config, "entry": entry}
        yield {**line, **({} if think is None else {"think": think}), "reasoning_gym": task}


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """JSON Lines, lone surrogates as escapes; the file appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines)
    with writing(path):
        write_atomically(path, text.encode("utf-8", "backslashreplace"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Data lines of a file.

    Raises:
        TrainingError: the file cannot be read, or a line is no JSON object; with file and line.
    """
    return [line for _, line in _numbered(path)]


def questions_in(path: Path) -> set[str]:
    """The questions of a file, as `question_of` names them.

    Raises:
        TrainingError: as `read_lines`, or a line that asks nothing: it could leave out no question.
    """
    found = set()
    for number, line in _numbered(path):
        if not isinstance(line.get("messages"), list):
            fix = 'name a file of lines {"messages": [...]}'
            raise TrainingError("is no prompt", who=f"{path}:{number}", why="it has no list of messages", fix=fix)
        found.add(question_of(line))
    return found


def _numbered(path: Path) -> list[tuple[int, dict[str, Any]]]:
    found = []
    try:
        for number, _, text in json_lines(path):
            line = parse_json(text)
            if not isinstance(line, dict):
                raise TrainingError("is not a sample", who=f"{path}:{number}", fix="write one JSON object per line")
            found.append((number, line))
    except OSError as error:
        raise TrainingError("the data cannot be read", who=str(path), why=str(error), fix="correct its path") from None
    except ValueError as error:
        raise TrainingError("is not JSON", who=f"{path}:{number}", why=str(error)) from None
    return found


def question_of(line: Mapping[str, Any]) -> str:
    """What tells one prompt from another; "null" for a line without messages."""
    return json.dumps(line.get("messages"), sort_keys=True)


def _option(text: str) -> tuple[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no '='")
    try:
        return key, parse_json(raw)
    except ValueError:
        return key, raw


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a data file."""
    parser = argparse.ArgumentParser(prog="python -m andes_grpo.gym", description="Prompts of reasoning-gym.")
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=1000, help="tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--option", type=_option, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--think", action=argparse.BooleanOptionalAction, help="thinking mode of every prompt")
    parser.add_argument("--without", type=Path, action="append", default=[], help="file whose questions to leave out")
    args = parser.parse_args(arguments)
    try:
        taken = {question for path in args.without for question in questions_in(path)}
        lines = entries(args.dataset, size=args.size, seed=args.seed, options=dict(args.option), think=args.think)
        kept = [line for line in lines if question_of(line) not in taken]
        write_lines(args.out, kept)
    except AndesError as error:
        raise SystemExit(str(error)) from None
    print(f"{len(kept)} prompts in {args.out}")


if __name__ == "__main__":
    main()
