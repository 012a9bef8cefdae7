"""Two training stages for models that read and point: dense reading, and fine-tuning with supervised attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt

from andes_sdk import hookimpl

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""One red pixel, for the samples of the conformance kit."""


@frozen(eq=False, kw_only=True)
class Grounding:
    """Teach a small model to read and to point. Shortest use: Pipeline.from_plugins([..., "grounding"])."""

    contract = "1.1"
    samples: ClassVar[Sequence[Mapping[str, object]]] = tuple(
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"Where is {name}?"}]},
                      {"role": "assistant", "content": f"<|box_start|>({x},0),({x + 400},900)<|box_end|>"}],
         "images": [PIXEL], "glyphs": [[name, x / 1000, 0.5]]}
        for name, x in (("A", 100), ("b", 300), ("7", 600))
    )  # fmt: skip

    read_rate: float = field(
        default=1e-3, validator=gt(0.0), metadata={"help": "reading: learning rate of the vision encoder"}
    )
    read_slots: int = field(
        default=4, validator=and_(ge(1), lt(64)), metadata={"help": "reading: characters told apart in one patch"}
    )
    place_weight: float = field(
        default=0.3, validator=and_(ge(0.0), lt(1e3)), metadata={"help": "reading: weight of the loss of places"}
    )
    rate: float = field(default=1e-3, validator=gt(0.0), metadata={"help": "pointing: rate of the language model"})
    projector_rate: float = field(
        default=1e-3, validator=ge(0.0), metadata={"help": "pointing: rate of the projector; 0 freezes it"}
    )
    encoder_rate: float = field(
        default=0.0, validator=ge(0.0), metadata={"help": "pointing: rate of the vision encoder; 0 freezes it"}
    )
    look_weight: float = field(
        default=0.5, validator=and_(ge(0.0), lt(1e3)), metadata={"help": "pointing: weight of the attention's loss"}
    )
    look_layer: int = field(
        default=-2, metadata={"help": "pointing: layer whose first head is supervised; below 0 from the end"}
    )

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """Two stages: `reading`, `pointing`."""
        from .pointing import PointingStage
        from .reading import ReadingStage

        rates = {"language_model": self.rate, "mlp": self.projector_rate, "vision_encoder": self.encoder_rate}
        return [
            ReadingStage(rate=self.read_rate, slots=self.read_slots, place_weight=self.place_weight),
            PointingStage(module_rates=rates, weight=self.look_weight, layer=self.look_layer),
        ]
