"""The options of the plugin, and what follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import in_

from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from attrs import Attribute

WEIGHTS = ("w8", "w4")
ACTIVATIONS = ("float", "a16", "a8")
LAYOUTS = ("cpu", "npu")


def _count(least: int, most: int) -> Any:
    def check(instance: object, attribute: Attribute[Any], value: int) -> None:
        if not least <= value <= most:
            raise ConfigError(f"is {value}", who=f"dimensity.{attribute.name}", fix=f"choose {least} to {most}")

    return check


@frozen(eq=False, kw_only=True)
class Options:
    """How a model is laid out for the chip."""

    weights: str = field(
        default="w8", validator=in_(WEIGHTS), metadata={"help": "matrices without codes of their own: w8 or w4"}
    )
    head: str = field(default="w8", validator=in_(WEIGHTS), metadata={"help": "LM head and embedding: w8 or w4"})
    vision: str = field(default="w8", validator=in_(WEIGHTS), metadata={"help": "encoder and projector: w8 or w4"})
    activations: str = field(
        default="float", validator=in_(ACTIVATIONS),
        metadata={"help": "of the reference: float (codes of weights alone), a16 or a8"},
    )  # fmt: skip
    rows: int = field(default=512, validator=_count(16, 1 << 17), metadata={"help": "rows of the static cache"})
    prompt: int = field(default=128, validator=_count(1, 4096), metadata={"help": "rows of the prompt graph"})
    tree: int = field(default=0, validator=_count(0, 256), metadata={"help": "rows of the graph that verifies drafts"})
    lora: int = field(
        default=0, validator=in_((0, 16, 32)),
        metadata={"help": "rank of adapters that the graphs take as inputs: 0 (none), 16 or 32"},
    )  # fmt: skip
    picture: str = field(
        default="", metadata={"help": "pixels of the picture graph, such as 112x112; empty: the preprocessor's least"}
    )
    layout: str = field(
        default="cpu", validator=in_(LAYOUTS),
        metadata={"help": "cpu: cache in the graph, runs in LiteRT-LM; npu: cache, masks and tables are inputs"},
    )  # fmt: skip

    def side(self, least: int, block: int) -> tuple[int, int]:
        """Height and width in pixels of the picture graph.

        Raises:
            ConfigError: it is no size, or one that whole blocks of patches do not fill.
        """
        text = self.picture or f"{max(least, block)}x{max(least, block)}"
        high, _, wide = text.partition("x")
        if not (high.isdigit() and wide.isdigit()):
            raise ConfigError(
                f"cannot read {text!r}", who="dimensity.picture", fix="write HEIGHTxWIDTH, such as 448x448"
            )
        size = int(high), int(wide)
        if any(not n or n % block or n > 4096 for n in size):
            why = f"a block of patches is {block} pixels wide"
            raise ConfigError(
                f"{text} pixels do not fit", who="dimensity.picture", why=why, fix=f"multiples of {block}"
            )
        return size
