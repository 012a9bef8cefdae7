"""How long a value becomes in the residual stream: norms of W_O v, head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_sdk.types import Model


class Outputs:
    """The output projections of a model, each read when it is first asked for.

    Of a projection W (D, d) of one query head only its factor R (d, d) of W = QR is kept for Euclidean norms, since
    ‖W x‖ = ‖R x‖. An adapter's share of the projection is left out.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._spec = model, model.text
        self._factors: dict[int, Tensor] = {}
        self._names = {layer: name for name, (layer, role) in model.llm.linears().items() if role == "o"}
        if absent := [layer for layer in range(self._spec.layers) if layer not in self._names]:
            why = f"the language model names no linear layer of role 'o' in layers {absent[:5]}"
            fix = "choose a scorer that looks at keys and queries alone, such as snapkv"
            raise ConfigError("cannot weigh values by the output projection", who="okv.scorer", why=why, fix=fix)

    def euclidean(self, layer: int, head: int, rows: Tensor) -> Tensor:
        """‖W_O x‖₂ of (…, d) rows under each of the g query heads of a KV head -> (g, …)."""
        if layer not in self._factors:
            self._factors[layer] = torch.linalg.qr(self._matrix(layer), mode="r").R  # (Hq, d, d)
        factors = self._group(self._factors[layer], head)  # (g, d, d)
        return torch.stack([(rows @ one.T).norm(dim=-1) for one in factors])

    def absolute(self, layer: int, head: int, rows: Tensor) -> Tensor:
        """‖W_O x‖₁ of (n, d) rows under each of the g query heads of a KV head -> (g, n)."""
        return torch.stack([(rows @ one.T).abs().sum(dim=-1) for one in self._group(self._matrix(layer), head)])

    def _group(self, every: Tensor, head: int) -> Tensor:
        size = self._spec.query_heads // self._spec.kv_heads
        return every[head * size : (head + 1) * size]

    def _matrix(self, layer: int) -> Tensor:
        """(Hq, D, d) float32."""
        module: Any = self._model.language_model.get_submodule(self._names[layer])
        if type(module) is nn.Linear and not module.weight.is_meta:
            weight = module.weight.detach().float()
        else:  # weights that are read when they are used, or made anew: ask what the layer does
            columns = self._spec.query_heads * self._spec.head_dim
            probe = torch.eye(columns, device=self._model.device, dtype=self._model.dtype)
            weight = (module(probe) - module(torch.zeros_like(probe[:1]))).float().T  # (D, Hq * d)
        return weight.reshape(len(weight), self._spec.query_heads, self._spec.head_dim).transpose(0, 1)
