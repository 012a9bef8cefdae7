"""Pre-training stages of the AndesVL report: alignment, joint and multi-task pre-training."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt, le

from andes_sdk import hookimpl
from andes_sdk.errors import ConfigError


def _rate(default: float, help: str) -> Any:
    return field(default=default, validator=ge(0.0), metadata={"help": f"{help}; 0 freezes it"})


@frozen(eq=False, kw_only=True)
class Pretraining:
    """Teach a language model to see, in three stages. Shortest use: Pipeline.from_plugins([..., "pretraining"])."""

    contract = "1.1"

    projector_rate: float = field(
        default=1e-3, validator=gt(0.0), metadata={"help": "alignment: learning rate of the projector"}
    )
    encoder_rate: float = _rate(0.0, "alignment: learning rate of the vision encoder")
    joint_rate: float = _rate(2e-5, "joint: learning rate of the language model")
    joint_projector_rate: float = _rate(2e-5, "joint: learning rate of the projector")
    joint_encoder_rate: float = _rate(2e-5, "joint: learning rate of the vision encoder")
    multitask_rate: float = _rate(2e-5, "multitask: learning rate of the language model")
    multitask_projector_rate: float = _rate(2e-5, "multitask: learning rate of the projector")
    multitask_encoder_rate: float = _rate(2e-5, "multitask: learning rate of the vision encoder")
    replace_positions: float = field(
        default=0.5,
        validator=[ge(0.0), le(1.0)],
        metadata={"help": "joint: share of samples whose image rows get random positions; 0 turns it off"},
    )
    replace_span: float = field(
        default=2.0, validator=gt(1.0), metadata={"help": "positions that an image may spread over, per image row"}
    )

    def __attrs_post_init__(self) -> None:
        for stage in ("joint", "multitask"):
            if not any(self._rates(stage).values()):
                raise ConfigError(f"stage {stage!r} trains nothing", who=f"{stage}_rate", fix="give one rate above 0")

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """Three stages: `alignment`, `joint`, `multitask`."""
        from .positions import Replacement
        from .stage import PretrainingStage

        replacement = Replacement(share=self.replace_positions, span=self.replace_span)
        alignment = {"mlp": self.projector_rate, "vision_encoder": self.encoder_rate}
        return [
            PretrainingStage(name="alignment", module_rates=alignment),
            PretrainingStage(name="joint", module_rates=self._rates("joint"), replacement=replacement),
            PretrainingStage(name="multitask", module_rates=self._rates("multitask")),
        ]

    def _rates(self, stage: str) -> dict[str, float]:
        names = {"language_model": "rate", "mlp": "projector_rate", "vision_encoder": "encoder_rate"}
        return {module: getattr(self, f"{stage}_{name}") for module, name in names.items()}
