"""Pre-training stages of the AndesVL report; so far the first one, alignment."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt

from andes_sdk import hookimpl


@frozen(eq=False, kw_only=True)
class Pretraining:
    """Align pictures with text. Shortest use: Pipeline.from_plugins([..., "pretraining"])."""

    contract = "1.0"

    projector_rate: float = field(default=1e-3, validator=gt(0.0), metadata={"help": "learning rate of the projector"})
    encoder_rate: float = field(
        default=0.0, validator=ge(0.0), metadata={"help": "learning rate of the vision encoder; 0 freezes it"}
    )

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `alignment`."""
        from .stage import Alignment

        return [Alignment(projector_rate=self.projector_rate, encoder_rate=self.encoder_rate)]
