"""Keys and values rounded while a model trains, as a session holds them: integers, one scale for each row and head.

The rule is that of the backend numba with `kv = "int8"`, and of the reference dimensity with `a8` or `a16`: the scale
is the row's largest magnitude ÷ 127 or 32767, after norms of heads and rotary positions. New rows are rounded before
they are looked at, too. The gradient passes: no number lies beyond its grid. Nothing is learned, so nothing has to be
packed. Left out: ranges that are the same for all rows, which static graphs of int16 have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import frozen
from torch import Tensor

if TYPE_CHECKING:
    from andes_sdk.types import Attend, Model, Tap


class _Rows(torch.autograd.Function):
    """(…, d) -> codes times scales; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: int) -> Tensor:
        wide = x.float()
        most = wide.abs().amax(-1, keepdim=True)
        inverse = torch.where(most > 0, high / most, 0.0)
        return (torch.round(wide * inverse) * (most / high)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def rounded_rows(x: Tensor, bits: int) -> Tensor:
    """Rows of keys or values (…, d) as whole numbers of `bits` bits, symmetric, times a scale for each row."""
    return cast("Tensor", _Rows.apply(x, (1 << bits - 1) - 1))


@frozen(eq=False)
class RoundedRows:
    """Attention over rounded rows: an `andes_sdk.types.Attend` around another one."""

    inner: Attend
    bits: int

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""
        return self.inner(layer, q, rounded_rows(k, self.bits), rounded_rows(v, self.bits), scale)


class RoundingRows:
    """What `put_in` mixes into a language model's class, so that copies of the model round, too."""

    kv_bits: int

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """As the language model, over rounded rows."""
        above = cast("Any", super())
        return cast("Tensor", above.hidden_states(embeds, positions, RoundedRows(attend, self.kv_bits), tap))


def put_in(model: Model, bits: int) -> None:
    """Make the language model round its keys and values from here on; one that does gets these bits."""
    module = model.language_model
    if isinstance(module, RoundingRows):
        module.kv_bits = bits
        return
    kind = type(module)
    module.__class__ = type(kind.__name__, (RoundingRows, kind), {"__module__": kind.__module__})
    cast("RoundingRows", module).kv_bits = bits


def take_out(model: Model) -> None:
    """Make it what it was."""
    module = model.language_model
    if isinstance(module, RoundingRows):
        module.__class__ = type(module).__mro__[2]
        del module.kv_bits
