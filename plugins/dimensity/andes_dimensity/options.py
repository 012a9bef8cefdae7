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
LEAST, LARGEST, MOST = 4, 4096, 8
"""Tokens of a picture's graph, and how many graphs. Fewer tokens than 4 no preprocessor makes."""


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
    buckets: str = field(
        default="",
        metadata={"help": "tokens of a picture's graphs, such as 64,256, for pictures of any shape; empty: `picture`"},
    )
    layout: str = field(
        default="cpu", validator=in_(LAYOUTS),
        metadata={"help": "cpu: cache in the graph, runs in LiteRT-LM; npu: cache, masks and tables are inputs"},
    )  # fmt: skip

    def __attrs_post_init__(self) -> None:
        if self.tokens and self.picture:
            why, fix = "a graph is for one size, or for any shape of so many tokens", "give one of both"
            raise ConfigError("picture and buckets are given", who="dimensity.buckets", why=why, fix=fix)
        if self.tokens and self.tokens[-1] >= self.rows:
            why = f"the cache has {self.rows} rows"
            raise ConfigError(
                f"a picture of {self.tokens[-1]} tokens", who="dimensity.buckets", why=why, fix="raise `rows`"
            )

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of a picture in each of its graphs, least first; none where the graph is for one size of picture.

        Raises:
            ConfigError: they are no numbers, are given twice, or are too small or too many.
        """
        if not self.buckets:
            return ()
        parts = [part.strip() for part in self.buckets.split(",")]
        if not all(part.isdecimal() for part in parts):
            fix = "write numbers with commas, such as 64,256"
            raise ConfigError(f"cannot read {self.buckets!r}", who="dimensity.buckets", fix=fix)
        found = tuple(sorted(int(part) for part in parts))
        if len(set(found)) < len(found) or len(found) > MOST or not LEAST <= found[0] <= found[-1] <= LARGEST:
            why = f"up to {MOST} different graphs of {LEAST} to {LARGEST} tokens"
            raise ConfigError(f"cannot take {self.buckets}", who="dimensity.buckets", why=why, fix="choose others")
        return found

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
