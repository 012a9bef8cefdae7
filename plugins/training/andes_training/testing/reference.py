"""The smallest plugin with training stages: what the checks of stages are tested with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import gt

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk import types


@frozen(eq=False, kw_only=True)
class ReferenceStage:
    """Train projector and language model. Shortest use: `Pipeline.from_plugins([..., ReferenceStage()])`."""

    contract = "1.0"

    rate: float = field(default=1e-3, validator=gt(0.0), metadata={"help": "learning rate"})

    @hookimpl
    def andes_training_stages(self) -> Sequence[types.TrainingStage]:
        """One stage on the usual data, one on data of its own."""
        from .stages import OwnStage, Stage

        return [Stage(self.rate), OwnStage(self.rate)]
