"""What a stage leaves beside its model: the codes, scales and ranges that it trained, in a folder of two files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.files import appearing, at_home, regular
from andes_sdk.numbers import digest, half_scales, numbers, refuse_ranges
from andes_sdk.reading import parse_json
from andes_sdk.types import Codes, Range

from .grids import Target, grid

if TYPE_CHECKING:
    from .layers import Rounding

FACTS, TENSORS = "qat.json", "codes.safetensors"
AGAIN = "give the folder `qat` of the run, as `andes train` wrote it"


@frozen(eq=False)
class Record:
    """Codes by name of the tensor, grids and ranges by name of the module, and the hash of codes and ranges.

    kv: bits of keys and values that were trained with; 0 for floats.
    """

    codes: Mapping[str, Codes]
    targets: Mapping[str, Target]
    ranges: Mapping[str, Range]
    numbers: str
    kv: int = 0


def write_record(folder: Path, layers: Mapping[str, Rounding], kv: int = 0) -> None:
    """Write what the layers compute with; the folder appears whole or not at all. Of tied ones the first's codes.

    Raises:
        ConfigError: a range that cannot be. CheckpointError: scales that float16 cannot hold.
    """
    codes: dict[str, Codes] = {}
    ranges: dict[str, Range] = {}
    grids: dict[str, str] = {}
    seen: set[int] = set()
    for name, layer in layers.items():
        if (one := layer.input_range()) is not None:
            ranges[name] = one
        if id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            codes[f"{name}.weight"], grids[name] = layer.codes(), layer.target.name
    refuse_ranges(ranges)
    facts = {
        "version": 1,
        "grids": grids,
        "ranges": {n: {"bits": r.bits, "scale": r.scale, "zero": r.zero} for n, r in ranges.items()},
        "numbers": numbers({n: digest(n, c) for n, c in codes.items()}, ranges),
        "kv": kv,
    }
    tensors = {f"{n}.values": c.values for n, c in codes.items()}
    tensors |= {f"{n}.scales": half_scales(c.scales, n) for n, c in codes.items()}
    with appearing(folder) as temporary:
        save_file(tensors, temporary / TENSORS)
        (temporary / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_record(folder: str | Path) -> Record:
    """What a run trained.

    Raises:
        CheckpointError: files that are missing or damaged, or that do not belong together. ConfigError: a grid that is
            not known here, or a range that cannot be.
    """
    path = at_home(folder, "folder")
    try:
        facts: Any = parse_json(regular(path / FACTS).read_bytes())
        tensors = load_file(regular(path / TENSORS))
        if facts["version"] != 1:
            raise ValueError(f"version {facts['version']!r}, this andes-qat reads 1")
        targets = {name: grid(kind, name) for name, kind in facts["grids"].items()}
        codes = {f"{n}.weight": _codes(n, t, tensors) for n, t in targets.items()}
        ranges = {n: Range(bits=r["bits"], scale=r["scale"], zero=r["zero"]) for n, r in facts["ranges"].items()}
        kv = facts.get("kv", 0)
        if type(kv) is not int or kv not in (0, 8, 16):
            raise ValueError(f"keys and values of {kv!r} bits")
        if extra := sorted(set(tensors) - {f"{n}.{part}" for n in codes for part in ("values", "scales")}):
            raise ValueError(f"{extra[0]} belongs to no matrix")
        refuse_ranges(ranges)
        found = numbers({n: digest(n, c) for n, c in codes.items()}, ranges)
        if found != facts["numbers"]:
            raise ValueError(f"codes and ranges hash to {found}, the record says {facts['numbers']}")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot be read as a record of training", who=str(path), why=why, fix=AGAIN) from None
    return Record(codes, targets, ranges, found, kv)


def _codes(name: str, target: Target, tensors: Mapping[str, Any]) -> Codes:
    values, scales = (tensors[f"{name}.weight.{part}"] for part in ("values", "scales"))
    if values.dtype != np.int8 or scales.dtype != np.float16 or values.ndim != 2 or scales.ndim != 2:
        raise ValueError(f"{name} is {values.dtype} and {scales.dtype}, not int8 and float16 matrices")
    codes = Codes(values, scales, target.group)
    try:
        target.form.pack(codes)
    except ConfigError as error:
        raise ValueError(f"{name}: {error.what}") from None
    return codes
