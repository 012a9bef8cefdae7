"""A decoder: how tokens are proposed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Decoder


@frozen(eq=False, kw_only=True)
class Example:
    """Guess by looking back in the text. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"
    testing = {"depth": 3}  # noqa: RUF012 - not annotated: attrs must not take it for an option

    depth: int = field(default=4, validator=ge(1), metadata={"help": "tokens guessed at once"})
    match: int = field(default=2, validator=ge(1), metadata={"help": "tokens that must have occurred before"})

    @hookimpl
    def andes_decoder(self, model: VisionLanguageModel) -> Decoder:
        """A decoder that needs nothing of the model but its words."""
        from .decoder import Lookup

        return Lookup(self.depth, self.match)
