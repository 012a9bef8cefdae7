"""Samples of sound, one channel: frames of them are encoded, and some frames side by side become one row.

A real encoder would look at the spectrum, and over the borders of frames; this one shows where it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn

from andes_sdk.errors import InputError
from andes_sdk.types import Media

if TYPE_CHECKING:
    from andes_sdk.types import TextSpec

WIDTH = 64
"""Features of a frame."""


class Encoder(nn.Module):
    """Frames -> features, and the rows of the language model that they become."""

    def __init__(self, hop: int, stack: int, width: int) -> None:
        super().__init__()
        self.stack = stack
        self.frames = nn.Linear(hop, WIDTH)
        self.rows = nn.Linear(stack * WIDTH, width)

    def forward(self, data: Tensor, sizes: Sequence[tuple[int, ...]]) -> Tensor:
        """(N, hop) frames of all items, (rows, stack) of each -> (M, D). Items never meet; none give (0, D)."""
        features = nn.functional.gelu(self.frames(data))  # (N, WIDTH)
        rows: Tensor = self.rows(features.reshape(-1, self.stack * WIDTH))  # (N / stack, D)
        return rows


@frozen
class Audio:
    """See `andes_sdk.types.Modality`. An item is a sequence of numbers, normally between -1 and 1.

    Attributes:
        hop: samples of a frame. stack: frames of a row; the last row is filled up with silence.
        name: as messages and the tokenizer's placeholder have it.
    """

    hop: int
    stack: int
    name = "audio"

    def build(self, text: TextSpec) -> nn.Module:
        """Random weights, saved under `modalities.audio.`."""
        return Encoder(self.hop, self.stack, text.width)

    def pack(self, items: Sequence[Any], *, allow_remote: bool = False) -> Media:
        """Recordings -> frames one after another, (rows, stack) of each, and its rows.

        Raises:
            InputError: what is no recording.
        """
        parts = [torch.zeros(0, self.hop), *map(self.frames, items)]
        rows = tuple(len(part) // self.stack for part in parts[1:])
        return Media(data=torch.cat(parts), sizes=tuple((n, self.stack) for n in rows), rows=rows)

    def frames(self, item: Any) -> Tensor:
        """Samples -> (frames, hop), a multiple of `stack`."""
        try:
            samples = torch.as_tensor(item, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError("this is no recording", who=self.name, why=str(error), fix="pass numbers") from error
        if samples.ndim != 1 or not len(samples) or not bool(samples.isfinite().all()):
            why = f"its shape is {tuple(samples.shape)}, or a sample is not finite"
            raise InputError("this is no recording", who=self.name, why=why, fix="pass finite numbers, one channel")
        return nn.functional.pad(samples, (0, -len(samples) % (self.hop * self.stack))).reshape(-1, self.hop)
