"""What matrices are given on a few texts and pictures: the statistics of one-shot pruning."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from andes_training.data.samples import stage_samples
from andes_training.packing import collate, pack
from andes_training.reading import RowMaker
from andes_training.recipe import DataRecipe
from attrs import frozen
from torch import Tensor, nn

from andes_sdk.assembling.building import build_processor
from andes_sdk.errors import ConfigError
from andes_sdk.plan import Plan

if TYPE_CHECKING:
    from andes_training.packing import Batch

    from andes_sdk.model import VisionLanguageModel

PATCHES = 1 << 14
"""Most patches of one pack."""


class _Enough(Exception):
    """The layers that are looked at have seen everything."""


@frozen(eq=False)
class Calibration:
    """Packs of lines, and the (T, D) rows that enter the first layer for each."""

    model: VisionLanguageModel
    packs: Sequence[Batch]
    embeds: Sequence[Tensor]

    @property
    def tokens(self) -> int:
        """Rows of all packs."""
        return sum(len(p.ids) for p in self.packs)

    @classmethod
    @torch.no_grad()
    def of(cls, model: VisionLanguageModel, data: str, lines: int, max_tokens: int, who: str) -> Calibration:
        """Read the first lines of a file.

        Raises:
            ConfigError: no file is named. TrainingError: it cannot be read, or a line cannot be used.
        """
        if not data:
            why, fix = "it weighs inputs of the matrices", "give the option `data` a file of conversations"
            raise ConfigError("needs calibration data", who=who, why=why, fix=fix)
        found = stage_samples([DataRecipe(path=Path(data))], Path())
        maker = RowMaker(build_processor(model, Plan(plugins=())))
        rows = [maker.row(found[i], random.Random(i)) for i in range(min(lines, len(found)))]
        packs = [collate(g).to(model.device) for g in pack(rows, max_tokens=max_tokens, max_patches=PATCHES)]
        return cls(model, packs, [model.embed(p.ids, model.encode(p.media)) for p in packs])

    @torch.no_grad()
    def after(self, last: int) -> Tensor:
        """(T, D) rows that leave a layer, of the first pack."""
        found: list[Tensor] = []

        def stop(layer: int, hidden: Tensor) -> None:
            if layer > last:
                found.append(hidden.clone())
                raise _Enough

        batch = self.packs[0]
        try:
            return self.model.hidden_states(self.embeds[0], batch.positions, batch.attend, stop)
        except _Enough:
            return found[0]

    @torch.no_grad()
    def show(self, last: int, modules: Mapping[str, nn.Linear], see: Callable[[str, Tensor], None]) -> None:
        """Run all packs up to the end of a layer; `see` gets each module's name and the (T, columns) that enter."""

        def stop(layer: int, hidden: Tensor) -> None:
            if layer > last:
                raise _Enough

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, args: see(name, args[0].reshape(-1, args[0].shape[-1]))

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
        try:
            for batch, embeds in zip(self.packs, self.embeds, strict=True):
                try:
                    self.model.hidden_states(embeds, batch.positions, batch.attend, stop)
                except _Enough:
                    continue
        finally:
            for handle in handles:
                handle.remove()
