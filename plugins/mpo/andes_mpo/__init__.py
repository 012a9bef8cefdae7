"""Mixed preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import ge, gt, in_, optional

from andes_sdk import hookimpl

_QUESTION = {"role": "user", "content": "Is the sky blue?"}


def _weight(default: float, of: str) -> Any:
    return field(default=default, validator=ge(0.0), metadata={"help": f"weight of {of}"})


@frozen(eq=False, kw_only=True)
class MPO:
    """Learn from pairs of a better and a worse answer. Shortest use: Pipeline.from_plugins([..., "mpo"])."""

    contract = "1.1"
    samples: ClassVar[Sequence[Mapping[str, object]]] = (
        {"prompt": [_QUESTION], "chosen": "Yes, by day.", "rejected": "No."},
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "chosen": "4", "rejected": "It is five, I think."},
        {"prompt": [_QUESTION], "chosen": "Yes.", "rejected": "Yes, it is green."},
    )

    rate: float = field(default=1e-6, validator=gt(0.0), metadata={"help": "learning rate of the language model"})
    projector_rate: float | None = field(
        default=None, validator=optional(ge(0.0)), metadata={"help": "of the projector; None: the same, 0 freezes it"}
    )
    encoder_rate: float | None = field(
        default=None,
        validator=optional(ge(0.0)),
        metadata={"help": "of the vision encoder; None: the same, 0 freezes it"},
    )
    beta: float = field(default=0.1, validator=gt(0.0), metadata={"help": "reward per nat away from the reference"})
    dpo: float = _weight(0.8, "the preference loss (DPO, sigmoid)")
    bco: float = _weight(0.2, "the quality loss (BCO, on pairs)")
    sft: float = _weight(1.0, "the generation loss on the chosen answers")
    shift: str = field(
        default="running",
        validator=in_(("running", "none")),
        metadata={"help": "BCO's reward shift: the running mean of rewards, or none as in TRL since 1.0"},
    )
    reference: str = field(
        default="precomputed",
        validator=in_(("precomputed", "online")),
        metadata={"help": "log-probabilities of the model at the start: computed once and kept, or with each batch"},
    )

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `mpo`."""
        from .stage import MixedPreference

        def own(rate: float | None) -> float:
            return self.rate if rate is None else rate

        rates = {"language_model": self.rate, "mlp": own(self.projector_rate), "vision_encoder": own(self.encoder_rate)}
        return [
            MixedPreference(
                learning_rates=rates, beta=self.beta, weights=(self.dpo, self.bco, self.sft),
                running=self.shift == "running", online=self.reference == "online",
            )
        ]  # fmt: skip
