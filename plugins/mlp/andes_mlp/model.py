"""Pixel shuffle and two linear layers (AndesVL report, arXiv 2510.11496).

Patches arrive in block order, so the shuffle is a reshape: `merge**2` consecutive rows are one token. The published
projector has biases, the exact GELU and no normalisation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from andes_sdk.errors import InputError


class PixelShuffleMLP(nn.Sequential):
    """Linear(m*Dv -> m*Dv), GELU, Linear(m*Dv -> D) with m = merge**2; state-dict names `0.*` and `2.*`."""

    def __init__(self, vision_width: int, text_width: int, merge: int = 2) -> None:
        wide = vision_width * merge**2
        first, second = nn.Linear(wide, wide), nn.Linear(wide, text_width)
        super().__init__(first, nn.GELU(), second)
        self.merge = merge
        for layer in (first, second):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def blueprint(self) -> dict[str, Any]:
        """Structure and weights as plain data, for backends that compile projectors (`andes_numba.blueprint`)."""
        first, second = ((layer.weight, layer.bias) for layer in (self[0], self[2]))
        return {"merge": self.merge, "first": first, "activation": "gelu", "second": second}

    def forward(self, features: Tensor) -> Tensor:
        """(N, Dv) in block order -> (N / merge**2, D).

        Raises:
            InputError: N is not a multiple of merge**2.
        """
        block = self.merge**2
        rows, width = features.shape
        if rows % block:
            raise InputError(
                f"{rows} patches cannot be merged {block} by {block}",
                who="mlp",
                fix=f"give every image a patch grid whose sides are multiples of {self.merge}",
            )
        return super().forward(features.reshape(rows // block, block * width))
