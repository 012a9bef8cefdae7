"""What a device's limits cost: a model beside itself quantised, with a cache policy, a decoder, an adapter.

Each variant runs in a process of its own, so that its memory is its own, and `andes eval` runs it, so that a stopped
comparison goes on. The texts of a variant are compared with the base's, item by item.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from attrs import field, frozen

from andes_sdk.errors import ConfigError, InputError
from andes_sdk.files import Journal, write_atomically
from andes_sdk.reading import parse_json

from .figures import compared
from .rules.text import edit_distance, rouge_l
from .tasks.catalogue import TASKS

BASE = "base"
KEYS = ("model", "backend", "plugin", "option", "adapter", "device", "dtype")
"""What a variant may change; `plugin` and `option` may stand several times."""


@frozen
class Variant:
    """A way to run the model.

    Attributes:
        name: of its folder and its column. changes: options of `andes eval`, in order.
    """

    name: str
    changes: Sequence[tuple[str, str]] = field(factory=list)

    @classmethod
    def parse(cls, text: str) -> Variant:
        """`NAME: key=value …`, such as `okv: plugin=okv option=okv.keep=0.25`.

        Raises:
            ConfigError: no name, or a key that changes nothing.
        """
        name, colon, rest = text.partition(":")
        name = name.strip()
        if not (colon and name and name != BASE and all(c.isalnum() or c in "-_." for c in name) and name[0] != "."):
            fix = "write NAME: key=value …, with a name of letters, digits, '-', '_' and '.'"
            raise ConfigError(f"cannot read {text!r}", who="--variant", fix=fix)
        try:
            pairs = [part.partition("=") for part in shlex.split(rest)]
        except ValueError as error:
            raise ConfigError(f"cannot read {text!r}", who="--variant", why=str(error), fix="close the quote") from None
        for key, equals, value in pairs:
            if key not in KEYS or not equals or not value:
                told = f"{key}{equals}{value}"
                raise ConfigError(f"cannot read {told!r}", who=f"--variant {name}", fix=f"keys: {', '.join(KEYS)}")
        return cls(name, [(key, value) for key, _, value in pairs])

    def arguments(self, model: str) -> list[str]:
        """MODEL and options of `andes eval`, with this variant's changes."""
        model = next((value for key, value in self.changes if key == "model"), model)
        return [model, *(part for key, value in self.changes if key != "model" for part in (f"--{key}", value))]


@frozen(kw_only=True)
class Measured:
    """One variant.

    Attributes:
        tasks: what `andes eval` says of each task. changed: task -> difference to the base's scores, as plain data.
        rouge_l, edit: of its texts and the base's, means over items; edit distances as shares of the longer text.
        same: share of items with the same text.
        first_token: seconds, mean. tokens_per_second: after the first token. kv_bytes: of an answer, mean.
        memory: most resident bytes of its process; None where its answers were there already.
    """

    variant: Variant
    tasks: Mapping[str, Any]
    changed: Mapping[str, Any]
    rouge_l: float
    edit: float
    same: float
    first_token: float
    tokens_per_second: float
    kv_bytes: float
    memory: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        names = ("rouge_l", "edit", "same", "first_token", "tokens_per_second", "kv_bytes")
        rates = {name: round(getattr(self, name), 5) for name in names}
        scores = {name: {k: task[k] for k in ("score", "low", "high", "n")} for name, task in self.tasks.items()}
        changes = [f"{key}={value}" for key, value in self.variant.changes]
        return {"changes": changes, "tasks": scores, "against_base": dict(self.changed), **rates, "memory": self.memory}


def measure(
    model: str,
    tasks: Sequence[str],
    variants: Sequence[Variant],
    out: Path,
    shared: Sequence[str] = (),
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, Measured]:
    """Run the base and every variant on tasks -> by name, the base first.

    Args:
        out: folder; each variant has one in it. shared: options of `andes eval` for all. tell: called with a name.

    Raises:
        ConfigError: two variants of one name. InputError: a variant that cannot run, with what it said.
    """
    every = [Variant(BASE), *variants]
    names = [variant.name for variant in every]
    if len(set(names)) != len(names):
        raise ConfigError("two variants have one name", who="--variant", why=", ".join(names), fix="rename one")
    found: dict[str, Measured] = {}
    base: dict[str, list[Any]] = {}
    for variant in every:
        tell(variant.name)
        folder = out / variant.name
        command = [*variant.arguments(model), *tasks, *shared, "--out", str(folder), "--json"]
        results, memory = _run(command, variant.name, folder)
        rows = {name: Journal(folder / f"{name}.jsonl").rows() for name in results}
        base = base or rows
        found[variant.name] = _measured(variant, results, memory, rows, base)
    return found


def _run(command: Sequence[str], name: str, folder: Path) -> tuple[dict[str, Any], int | None]:
    """`andes eval` in a process of its own -> its tasks, and the most memory that it held."""
    process = subprocess.Popen(
        [sys.executable, "-m", "andes_sdk", "eval", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    told, errors = process.communicate() if not hasattr(os, "wait4") else _read(process)
    if process.returncode:
        why = errors.strip()[-2000:]
        raise InputError("the variant cannot run", who=name, why=why, fix="run it alone by andes eval")
    tasks: dict[str, Any] = parse_json(told)["tasks"]
    file = folder / "memory.json"
    peak = getattr(process, "peak", None)
    if peak is not None and any(task["answered_now"] for task in tasks.values()):
        write_atomically(file, json.dumps({"resident_bytes": peak}).encode())
    known = parse_json(file.read_bytes())["resident_bytes"] if file.is_file() else None
    return tasks, known


def _read(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Both outputs of a process to its end, and, as its attribute `peak`, the resident bytes that it held at most."""
    from concurrent.futures import ThreadPoolExecutor

    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr, ThreadPoolExecutor(2) as pool:
        told, errors = [pool.submit(stream.read) for stream in (process.stdout, process.stderr)]
        texts = told.result(), errors.result()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    process.peak = usage.ru_maxrss * unit  # type: ignore[attr-defined]
    return texts


def _measured(
    variant: Variant,
    results: Mapping[str, Any],
    memory: int | None,
    rows: Mapping[str, list[Any]],
    base: Mapping[str, list[Any]],
) -> Measured:
    changed = {name: compared(TASKS[name], base[name], rows[name]).to_dict() for name in results}
    before = {(name, row["key"]): row["said"] for name, some in base.items() for row in some}
    pairs = [(before[name, row["key"]], row["said"]) for name, some in rows.items() for row in some]
    answered = [row for some in rows.values() for row in some if "errors" not in row]
    decode = sum(row["decode"] for row in answered)
    return Measured(
        variant=variant,
        tasks=results,
        changed={} if variant.name == BASE else changed,
        rouge_l=fmean(rouge_l(*pair) for pair in pairs),
        edit=fmean(edit_distance(a, b) / max(len(a), len(b), 1) for a, b in pairs),
        same=fmean(a == b for a, b in pairs),
        first_token=fmean(row["first_token"] for row in answered) if answered else 0.0,
        tokens_per_second=sum(max(0, row["tokens"] - 1) for row in answered) / decode if decode else 0.0,
        kv_bytes=fmean(row["kv_bytes"] for row in answered) if answered else 0.0,
        memory=memory,
    )
