"""Reference modality: sound as frames of samples, each a row."""

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


class Frames(nn.Module):
    """One linear layer over each frame."""

    def __init__(self, frame: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(frame, width)

    def forward(self, data: Tensor, sizes: Sequence[tuple[int, ...]]) -> Tensor:
        """(frames, samples per frame), one (frames,) per recording -> (frames, D)."""
        if len(data) != sum(count for (count,) in sizes):
            raise InputError(f"{len(data)} frames do not fill the recordings {list(sizes)}", who="audio")
        rows: Tensor = self.embed(data)
        return rows


@frozen
class Audio:
    """Recordings: sequences of numbers in [-1, 1]. The last frame is filled up with silence."""

    frame: int
    name: str = "audio"

    def build(self, text: TextSpec) -> nn.Module:
        """Random weights."""
        return Frames(self.frame, text.width)

    def pack(self, items: Sequence[Any], *, allow_remote: bool = False) -> Media:
        """Recordings -> frames (N, samples per frame), and how many each has."""
        parts = [torch.zeros(0, self.frame), *map(self._frames, items)]
        counts = tuple(len(part) for part in parts[1:])
        return Media(data=torch.cat(parts), sizes=tuple((count,) for count in counts), rows=counts)

    def _frames(self, item: Any) -> Tensor:
        try:
            samples = torch.as_tensor(item, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError("this is no recording", who="audio", why=str(error), fix="pass numbers") from error
        if samples.ndim != 1 or not len(samples) or not bool(samples.isfinite().all()):
            why = f"its shape is {tuple(samples.shape)}, or a sample is not finite"
            raise InputError("this is no recording", who="audio", why=why, fix="pass finite numbers, one channel")
        return nn.functional.pad(samples, (0, -len(samples) % self.frame)).reshape(-1, self.frame)
