"""A language model and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, max_len

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import LanguageModel, Tokenizer


@frozen(eq=False, kw_only=True)
class Example:
    """Read and write bytes. Shortest use: `Pipeline.from_plugins(["aimv2", "mlp", "example"])`."""

    contract = "1.1"
    testing = {"layers": 2, "heads": 4}  # noqa: RUF012 - not annotated: attrs must not take it for an option

    layers: int = field(default=4, validator=ge(1), metadata={"help": "decoder layers"})
    heads: int = field(default=8, validator=ge(1), metadata={"help": "query heads; half as many KV heads"})
    max_positions: int = field(default=4096, validator=ge(1), metadata={"help": "longest conversation in tokens"})
    kinds: list[str] = field(
        factory=list, validator=max_len(10), metadata={"help": "modalities that have a placeholder, beside image"}
    )

    @hookimpl
    def andes_language_model(self) -> LanguageModel:
        """Random weights on torch's default device."""
        from .model import Decoder
        from .tokenizer import Bytes

        return Decoder(Bytes.vocab_size, self.layers, self.heads, self.max_positions)

    @hookimpl
    def andes_tokenizer(self, folder: Path | None) -> Tokenizer:
        """Bytes need no vocabulary, so a checkpoint holds none.

        Take `files` in place of `folder` to read a large vocabulary when text is first asked for: they may be read at
        any time, while the folder of a packed model is deleted when this returns.
        """
        from .tokenizer import Bytes

        return Bytes(self.kinds)
