"""Modules without memory for weights, on torch's meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "bernoulli_", "random_", "orthogonal_"})


class Undrawn(TorchFunctionMode):
    """Draws no random numbers on the meta device: torch would import its compiler for that, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch's function, but for `DRAWS`."""
        tensor = args[0] if args else (kwargs or {}).get("tensor")
        if func.__name__ in DRAWS and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **(kwargs or {}))
