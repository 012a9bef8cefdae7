"""What a check says when a plugin does not conform. Not `assert`: `python -O` must not switch a check off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Nonconformance(AssertionError):
    """A plugin breaks the contract."""


class NotApplicable(Exception):
    """A check says why it does not concern this plugin."""


def require(condition: Any, message: str) -> None:
    """Raise Nonconformance unless the condition holds."""
    if not condition:
        raise Nonconformance(message)


def require_close(got: Tensor, wanted: Tensor, tolerance: float, message: str) -> None:
    """Raise Nonconformance if a value differs by more than `tolerance` of the largest wanted magnitude (at least 1)."""
    require(got.shape == wanted.shape, f"{message}: shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
    if not got.numel():
        return
    allowed = tolerance * max(1.0, float(wanted.detach().abs().max()))
    off = float((got.detach().double() - wanted.detach().double()).abs().max())
    require(off <= allowed, f"{message}: off by {off:.3g}, allowed {allowed:.3g}")


def require_bits(got: Tensor, wanted: Tensor, message: str) -> None:
    """Raise Nonconformance unless two tensors are equal to the bit."""
    import torch

    require(torch.equal(got, wanted), f"{message}: not equal to the bit")


def require_finite(values: Tensor, message: str) -> None:
    """Raise Nonconformance for a NaN or an infinity."""
    require(bool(values.isfinite().all()), f"{message}: NaN or infinite")
