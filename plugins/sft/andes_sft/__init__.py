"""Supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt, optional

from andes_sdk import hookimpl


@frozen(eq=False, kw_only=True)
class SFT:
    """Learn from conversations. Shortest use: Pipeline.from_plugins([..., "sft"])."""

    contract = "1.1"

    rate: float = field(default=1e-5, validator=gt(0.0), metadata={"help": "learning rate of the language model"})
    projector_rate: float | None = field(
        default=None, validator=optional(ge(0.0)), metadata={"help": "of the projector; None: the same"}
    )
    encoder_rate: float | None = field(
        default=None,
        validator=optional(ge(0.0)),
        metadata={"help": "of the vision encoder; None: the same, 0 freezes it"},
    )

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `sft`."""
        from .stage import SupervisedFineTuning

        def own(rate: float | None) -> float:
            return self.rate if rate is None else rate

        return [SupervisedFineTuning(self.rate, own(self.projector_rate), own(self.encoder_rate))]
