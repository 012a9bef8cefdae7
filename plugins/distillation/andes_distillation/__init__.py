"""Distillation: a student learns what a teacher says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import Attribute, field, frozen
from attrs.validators import and_, ge, gt, lt

from andes_sdk import hookimpl
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_sdk.plan import Plan


def _weight(default: float, of: str) -> Any:
    return field(default=default, validator=and_(ge(0.0), lt(1e6)), metadata={"help": f"weight of {of}"})


def _rate(default: float, of: str) -> Any:
    return field(default=default, validator=and_(ge(0.0), lt(1e3)), metadata={"help": f"learning rate of {of}"})


def _pairs(plugin: Any, attribute: Attribute[Any], value: Sequence[Sequence[int]]) -> None:
    if any(len(pair) != 2 for pair in value):
        raise ValueError(f"'{attribute.name}' must hold pairs [student's layer, teacher's layer]: {value}")


@frozen(eq=False, kw_only=True)
class Distillation:
    """Learn from a teacher. Shortest use: Pipeline.from_plugins([..., {"distillation": {"teacher": "folder"}}]).

    Raises:
        ConfigError: on construction, for weights and layers of which one has no effect without the other.
    """

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {
        "teacher": str(Path(__file__).parent / "data" / "tiny-teacher"), "k": 32, "temperature": 2.0,
    }  # fmt: skip
    companions: ClassVar[Sequence[object]] = (
        {"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}},
    )  # fmt: skip

    teacher: str = field(
        default="", metadata={"help": "where the teacher is: a folder, a file or a name", "local": True}
    )
    rate: float = field(default=1e-5, validator=gt(0.0), metadata={"help": "learning rate of the language model"})
    projector_rate: float = _rate(1e-5, "the projector; 0 freezes it")
    encoder_rate: float = _rate(0.0, "the vision encoder; 0 freezes it")
    kl: float = _weight(1.0, "the divergence from the teacher")
    ce: float = _weight(0.5, "the cross-entropy on the data's answers")
    hidden: float = _weight(0.0, "the squared error of hidden states; it needs `layers`")
    k: int = field(
        default=64, validator=ge(1), metadata={"help": "most likely tokens of the teacher; the rest is one bucket"}
    )
    temperature: float = field(
        default=1.0, validator=and_(gt(0.0), lt(1e3)), metadata={"help": "what both models' logits are divided by"}
    )
    layers: list[list[int]] = field(
        factory=list,
        validator=_pairs,
        metadata={
            "help": "pairs [student, teacher]: what enters these layers; below 0 from the end, -1: the last norm"
        },
    )
    map_rate: float = _rate(1e-3, "the maps between hidden states of different widths")

    def __attrs_post_init__(self) -> None:
        if not self.kl and not self.hidden:
            fix = "give kl or hidden a weight"
            raise ConfigError("nothing of the teacher is learnt", who="distillation", fix=fix)
        if bool(self.hidden) != bool(self.layers):
            fix = "give both, such as hidden = 1.0 and layers = [[-1, -1]], or neither"
            raise ConfigError("`hidden` and `layers` belong together", who="distillation", fix=fix)

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `distillation`."""
        from .stage import DistillationStage, HiddenStage

        common: dict[str, Any] = {
            "source": self.teacher, "kl": self.kl, "ce": self.ce, "k": self.k, "temperature": self.temperature,
            "module_rates": {
                "language_model": self.rate, "mlp": self.projector_rate, "vision_encoder": self.encoder_rate,
            },
        }  # fmt: skip
        if not self.layers:
            return [DistillationStage(**common)]
        pairs = [(student, teacher) for student, teacher in self.layers]
        return [HiddenStage(**common, hidden=self.hidden, layers=pairs, map_rate=self.map_rate)]

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Who teaches what."""
        if not self.teacher:
            return {"teacher": "none: the stage needs the option `teacher`"}
        parts = {"kl": self.kl, "ce": self.ce, "hidden": self.hidden}
        learnt = ", ".join(f"{weight:g} · {name}" for name, weight in parts.items() if weight)
        return {"teacher": self.teacher, "loss": f"{learnt}; top {self.k} at temperature {self.temperature:g}"}
