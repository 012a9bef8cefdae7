"""A matrix product may add in another order when more rows come together, so a row's bits depend on its company.

Here each row of a linear layer is multiplied on its own: slower, and the same bits whether tokens are verified one by
one or together. Sessions, the KV store and attention are the core's; a backend may replace as little as this, or all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.functional import linear

from andes_sdk.runtime.torch_backend import CompiledTorch, TorchBackend

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model


class RowLinear(nn.Linear):
    """A linear layer that shares its weights with the one it stands for; adapters take it for a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.cat([linear(row, self.weight, self.bias) for row in torch.split(rows, 1)])
        return out.reshape(*x.shape[:-1], len(self.weight))


def row_by_row(module: nn.Module) -> None:
    """Replace every linear layer inside a module."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, RowLinear(child))
        else:
            row_by_row(child)


@frozen
class RowByRow:
    """See `andes_sdk.types.Backend`."""

    name = "example"
    rows = None

    def compile(self, model: Model, *, device: str, dtype: str, taps: Sequence[int] = ()) -> CompiledTorch:
        """A copy of the modules that shares the weights; the pipeline's own model keeps its layers.

        Raises:
            BackendUnavailable: the machine has no such device.
        """
        moved = TorchBackend().compile(cast("VisionLanguageModel", model), device=device, dtype=dtype).model
        shared = {id(p): p for p in moved.parameters()} | {id(moved.tokenizer): moved.tokenizer}
        own = copy.deepcopy(moved, shared)
        row_by_row(own)
        return RowByRowModel(own, taps=tuple(taps))


@frozen(eq=False)
class RowByRowModel(CompiledTorch):
    """See `andes_sdk.types.Compiled`."""

    def facts(self) -> Mapping[str, str]:
        """What `explain()` shows."""
        return {**CompiledTorch.facts(self), "linear layers": "row by row: a row's bits do not depend on the others"}
