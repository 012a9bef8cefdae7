"""Modules: what a plugin adds to a model, or changes in it, before its weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel


@frozen(eq=False, kw_only=True)
class Example:
    """Add a head that guesses the token after the next. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"
    testing = {"rank": 4}  # noqa: RUF012 - not annotated: attrs must not take it for an option

    rank: int = field(default=256, validator=ge(1), metadata={"help": "width of the head's bottleneck"})

    @hookimpl
    def andes_modules(self, model: VisionLanguageModel) -> Sequence[str]:
        """The head is `model.ahead`; a checkpoint made without this plugin lacks its weights.

        Weights of the model may not be read here, only their shapes; the head's values follow from torch's seed.
        """
        from .head import Ahead

        model.add_module("ahead", Ahead(model.text.width, self.rank, model.text.vocab_size))
        return ["ahead."]
