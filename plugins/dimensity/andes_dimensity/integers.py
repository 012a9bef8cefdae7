"""Static int16 as LiteRT's kernels on a CPU compute it: rounding of values, and of sums of products.

- A value x becomes clip(rint(x * (1 / scale))), in float32 (`tflite/kernels/internal/reference/quantize.h`).
- A sum of a matrix's products is multiplied with scale_in * scale_channel / scale_out as a fraction of 31 bits and a
  shift, each rounded half up (ruy's kernels; both roundings were found on files, to the bit).
- A sum of attention's products takes 16 bits of that fraction, and one rounding (`MultiplyByQuantizedMultiplier` for
  int64 in `tflite/kernels/internal/common.h`).

An NPU may round otherwise. Sums here are exact; LiteRT's of matrices wrap at 32 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

HIGH = 32767


def codes_of(x: Tensor, scale: float) -> Tensor:
    """Floats -> whole numbers within int16, as int64."""
    inverse = float(np.float32(1) / np.float32(scale))
    return torch.clamp(torch.round(x.float() * inverse), -HIGH - 1, HIGH).long()


def fraction(scales: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positive scales -> (fraction times 2**31, exponent) of each, as `QuantizeMultiplier`."""
    part, exponent = np.frexp(scales)
    whole = np.floor(part * (1 << 31) + 0.5).astype(np.int64)
    over = whole == 1 << 31
    return np.where(over, whole // 2, whole), exponent.astype(np.int64) + over


def matrix_sums(total: Tensor, scales: NDArray[np.float64]) -> Tensor:
    """(..., out) sums and a scale for each channel (out,) -> codes of int16."""
    whole, exponent = fraction(scales)
    left, right = (torch.from_numpy(np.maximum(e, 0)) for e in (exponent, -exponent))
    high = ((total << left) * torch.from_numpy(whole) + (1 << 30)) >> 31
    half = (torch.ones_like(right) << right) >> 1
    return torch.clamp((high + half) >> right, -HIGH - 1, HIGH)


def attention_sums(total: Tensor, scale: float) -> Tensor:
    """Sums and their one scale -> codes of int16."""
    (whole,), (exponent,) = fraction(np.array([scale], np.float64))
    short = (int(whole) + (1 << 15)) >> 16 if whole < 0x7FFF0000 else 0x7FFF
    shift = 15 - int(exponent)
    return torch.clamp((total * short + (1 << shift - 1)) >> shift, -HIGH - 1, HIGH)


def whole_product(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, d) and (..., d, m) whole numbers -> their exact sums of products, int64."""
    return torch.matmul(a.double(), b.double()).long()


def divided(*scales: float) -> float:
    """First times second over third, of float32 scales in float64 as LiteRT takes them."""
    a, b, c = (float(np.float32(s)) for s in scales)
    return a * b / c


def channel_scales(step_in: float, steps: Any, step_out: float) -> NDArray[np.float64]:
    """Of each channel of a matrix: scale of its sums over the scale of its output."""
    return np.float64(np.float32(step_in)) * np.asarray(steps, np.float64) / np.float64(np.float32(step_out))
