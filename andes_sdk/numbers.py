"""The numbers that a model computes with, named by one hash: what an adapter was trained on, and nothing else."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.types.compression import Codes, Quantised, Range

if TYPE_CHECKING:
    from torch import nn

LARGEST = float(np.finfo(np.float32).max)


def digest(name: str, codes: Codes) -> bytes:
    """sha256 over a name, and the values and float16 scales of its codes, little-endian.

    Raises:
        CheckpointError: scales that float16 cannot hold.
    """
    values = np.ascontiguousarray(codes.values)
    scales = np.ascontiguousarray(half_scales(codes.scales, name).astype("<f2"))
    head = f"{len(name.encode())}:{name}:{values.dtype.name}:{values.shape}:{scales.shape}:{codes.group}"
    made = hashlib.sha256(head.encode())
    made.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    made.update(scales.data)
    return made.digest()


def numbers(digests: Mapping[str, bytes], ranges: Mapping[str, Range]) -> str:
    """One sha256, in hex, over the digests of all matrices and all ranges, each in the order of their names."""
    made = hashlib.sha256(b"".join(digests[name] for name in sorted(digests)))
    for name in sorted(ranges):
        one = ranges[name]
        made.update(f"{len(name.encode())}:{name}".encode() + struct.pack("<qdq", one.bits, one.scale, one.zero))
    return made.hexdigest()


def range_problem(one: Range) -> str:
    """What is wrong with a range, or nothing."""
    if type(one.bits) is not int or not 2 <= one.bits <= 16:
        return f"bits are {one.bits!r}, not 2 to 16"
    if not isinstance(one.scale, float) or not math.isfinite(one.scale) or not 0 < one.scale <= LARGEST:
        return f"scale is {one.scale!r}, not a float32 above 0"
    if type(one.zero) is not int or abs(one.zero) >= 1 << one.bits:
        return f"zero is {one.zero!r}, which {one.bits} bits cannot hold"
    return ""


def quantised(model: nn.Module) -> tuple[dict[str, Codes], dict[str, Range]]:
    """Codes by name of the tensor (a shared one's first), and ranges by name of the module, of `Quantised` modules.

    Raises:
        ConfigError: one of them has no parameter `weight`, or a range that cannot be.
    """
    codes: dict[int, tuple[str, Codes]] = {}
    ranges: dict[str, Range] = {}
    owned = {n: id(t) for n, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    for name, module in model.named_modules():
        if not isinstance(module, Quantised):
            continue
        if f"{name}.weight" not in owned:
            raise ConfigError("a quantised module without `weight`", who=name, fix="let it own what it quantises")
        codes.setdefault(owned[f"{name}.weight"], (f"{name}.weight", module.codes()))
        if (one := module.input_range()) is not None:
            ranges[name] = one
    refuse_ranges(ranges)
    return dict(codes.values()), ranges


def refuse_ranges(ranges: Mapping[str, Range]) -> None:
    """Refuse ranges that cannot be.

    Raises:
        ConfigError: naming the first module.
    """
    for name, one in ranges.items():
        if why := range_problem(one):
            raise ConfigError("an input range that cannot be", who=name, why=why, fix="measure it on finite inputs")


def numbers_of(model: nn.Module) -> str:
    """The hash of the numbers of a model's `Quantised` modules; "" where it has none."""
    codes, ranges = quantised(model)
    return numbers({name: digest(name, one) for name, one in codes.items()}, ranges) if codes else ""


def weights_of(model: nn.Module, *, exact: bool = False) -> str:
    """A name for the weights of a float model: a hash over each parameter's name, shape and up to 4096 of its values.

    Values are rounded to bfloat16, so the name is the same in whatever precision the model was opened. `exact` takes
    all of them, as they are. "" of modules without memory.
    """
    made = hashlib.sha256()
    for name, one in model.named_parameters():
        if one.is_meta:
            return ""
        some = one.detach().flatten()[:: 1 if exact else max(1, -(-one.numel() // 4096))]
        made.update(f"{len(name.encode())}:{name}:{tuple(one.shape)}".encode())
        made.update((some if exact else some.bfloat16()).float().cpu().numpy().astype("<f4").data)
    return f"weights:{made.hexdigest()}"


def half_scales(scales: NDArray[Any], who: str) -> NDArray[np.float16]:
    """Scales as float16, checked before they are cast.

    Raises:
        CheckpointError: scales that are not finite, that float16 makes infinite, or that it makes zero.
    """
    if scales.dtype == np.float16:
        wrong = ~np.isfinite(scales)
        halves = scales
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            halves = scales.astype(np.float16)
        wrong = ~np.isfinite(scales) | ~np.isfinite(halves) | ((scales != 0) & (halves == 0))
    if wrong.any():
        row, group = np.argwhere(wrong)[0]
        why = f"row {row}, group {group}: {float(scales[row, group]):g}"
        fix = "float16 holds 6e-8 to 65504: scale the weights, or check them"
        raise CheckpointError("scales that are not finite, or that float16 cannot hold", who=who, why=why, fix=fix)
    return halves
