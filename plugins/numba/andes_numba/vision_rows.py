"""What happens to rows of a vision transformer between products, in float32: norms, activations, rotary positions."""

from __future__ import annotations

import numpy as np

from .activations import address, exp, inline, silu
from .simd import (
    ONE,
    abs_f,
    add_f,
    choose_f,
    div_f,
    fma,
    less_i,
    load_f,
    mul_f,
    splat_f,
    store_f,
    sub_f,
    total_f,
    zeros_f,
)  # fmt: skip

GELU, GELU_TANH, SWIGLU = 0, 1, 2
LAYER, RMS = 0, 1


@inline
def norm_row(kind, x, weights, biases, out, size, eps):
    """LayerNorm or RMSNorm of `size` numbers (a multiple of 16) at x, to out."""
    total, squares = zeros_f(ONE), zeros_f(ONE)
    if kind == LAYER:
        for j in range(0, size, 16):
            total = add_f(total, load_f(ONE, x + 4 * j, 0))
    mean = splat_f(total_f(total) / np.float32(size))
    for j in range(0, size, 16):
        part = sub_f(load_f(ONE, x + 4 * j, 0), mean)
        squares = fma(part, part, squares)
    factor = splat_f(np.float32(1) / np.sqrt(total_f(squares) / np.float32(size) + eps))
    for j in range(0, size, 16):
        part = mul_f(sub_f(load_f(ONE, x + 4 * j, 0), mean), factor)
        store_f(out + 4 * j, 0, fma(part, load_f(ONE, weights + 4 * j, 0), load_f(ONE, biases + 4 * j, 0)))


@inline
def norm(kind, x, parts, out, size, eps, count):
    """`norm_row` of `count` rows, parts (2, size)."""
    for r in range(count):
        norm_row(kind, address(x[r]), address(parts[0]), address(parts[1]), address(out[r]), size, eps)


@inline
def gelu_tanh(x):
    """x / (1 + e**-2u), u = sqrt(2 / pi) (x + 0.044715 x**3)."""
    factor = splat_f(np.float32(-2 * 0.7978845608028654))
    u = mul_f(x, fma(mul_f(x, x), mul_f(factor, splat_f(np.float32(0.044715))), factor))
    return div_f(x, add_f(splat_f(np.float32(1)), exp(u)))


@inline
def gelu(x):
    """x (1 + erf(x / sqrt 2)) / 2, erf after Abramowitz & Stegun 7.1.26: off by 1.5e-7 at most."""
    one, z = splat_f(np.float32(1)), mul_f(abs_f(x), splat_f(np.float32(0.7071067811865476)))
    t = div_f(one, fma(z, splat_f(np.float32(0.3275911)), one))
    value = fma(t, splat_f(np.float32(1.061405429)), splat_f(np.float32(-1.453152027)))
    value = fma(value, t, splat_f(np.float32(1.421413741)))
    value = fma(value, t, splat_f(np.float32(-0.284496736)))
    value = mul_f(fma(value, t, splat_f(np.float32(0.254829592))), t)
    far = mul_f(mul_f(value, exp(sub_f(zeros_f(ONE), mul_f(z, z)))), splat_f(np.float32(0.5)))  # (1 - erf z) / 2
    return mul_f(x, choose_f(less_i(x, zeros_f(ONE)), far, sub_f(one, far)))


@inline
def activate_rows(kind, x, gates, count, columns):
    """The activation, in place; SwiGLU takes silu of `gates`."""
    for r in range(count):
        for j in range(0, columns, 16):
            at = address(x[r]) + 4 * j
            value = load_f(ONE, at, 0)
            if kind == SWIGLU:
                value = mul_f(silu(load_f(ONE, address(gates[r]) + 4 * j, 0)), value)
            elif kind == GELU:
                value = gelu(value)
            else:
                value = gelu_tanh(value)
            store_f(at, 0, value)


@inline
def rotate(row, first, heads, size, half, cos, sin):
    """Rotary positions of the heads of one row from column `first` on, in place: feature i turns with i + half."""
    for h in range(heads):
        low = first + h * size
        if half % 16 == 0:
            for j in range(0, half, 16):
                at, other = address(row) + 4 * (low + j), address(row) + 4 * (low + half + j)
                a, b = load_f(ONE, at, 0), load_f(ONE, other, 0)
                c, s = load_f(ONE, address(cos) + 4 * j, 0), load_f(ONE, address(sin) + 4 * j, 0)
                store_f(at, 0, sub_f(mul_f(a, c), mul_f(b, s)))
                store_f(other, 0, add_f(mul_f(b, c), mul_f(a, s)))
        else:
            for j in range(half):
                a, b = row[low + j], row[low + half + j]
                row[low + j] = a * cos[j] - b * sin[j]
                row[low + half + j] = b * cos[j] + a * sin[j]
