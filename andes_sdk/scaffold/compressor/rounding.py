"""Round to nearest on a symmetric grid, one scale per output channel. No data is needed, and none is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import nn

from andes_sdk.errors import ConfigError
from andes_sdk.types import Compressed

if TYPE_CHECKING:
    from andes_sdk.types import Model


@frozen
class Rounding:
    """See `andes_sdk.types.Compressor`."""

    bits: int
    name = "example"

    @torch.no_grad()
    def compress(self, model: Model, **options: Any) -> Compressed:
        """Round the weights of every linear layer in place; embeddings, and heads tied to them, stay as they are.

        Returns:
            A report. layers: how many were rewritten. bits_per_weight: of those, 16 bits per scale included.
            relative_error: norm of the change ÷ norm of the weights.

        Raises:
            ConfigError: an option; this compressor has none beside the plugin's.
        """
        if options:
            raise ConfigError(f"unknown options {sorted(options)}", who=self.name, fix="set the plugin's options")
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in tables]
        weights = scales = 0
        change = size = 0.0
        top = 2 ** (self.bits - 1) - 1
        for layer in layers:
            weight = layer.weight  # (out, in)
            step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
            rounded = (weight / step).round().clamp(-top, top) * step
            change += float((rounded - weight).double().square().sum())
            size += float(weight.double().square().sum())
            weight.copy_(rounded)
            weights += weight.numel()
            scales += len(weight)
        report = {
            "layers": len(layers),
            "bits_per_weight": self.bits + 16 * scales / max(weights, 1),
            "relative_error": (change / size) ** 0.5 if size else 0.0,
        }
        return Compressed(report=report)
