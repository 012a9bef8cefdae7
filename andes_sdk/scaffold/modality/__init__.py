"""A modality: a sense beside pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Modality


@frozen(eq=False, kw_only=True)
class Example:
    """Hear samples of sound. Shortest use: `Pipeline.from_plugins(["aimv2", "mlp", LANGUAGE_MODEL, "example"])`.

    The tokenizer of LANGUAGE_MODEL must have a placeholder for "audio".
    """

    contract = "1.1"
    testing = {"hop": 8, "stack": 2}  # noqa: RUF012 - not annotated: attrs must not take it for an option
    examples = {"audio": [[0.5, -0.5] * 60, [0.25], [0.0, 0.125, 1.0] * 9]}  # noqa: RUF012 - items that the kit packs

    hop: int = field(default=320, validator=ge(1), metadata={"help": "samples of a frame"})
    stack: int = field(default=4, validator=ge(1), metadata={"help": "frames that become one row"})

    @hookimpl
    def andes_modalities(self) -> Sequence[Modality]:
        """One sense: `{"type": "audio", "audio": samples}` in a message."""
        from .audio import Audio

        return [Audio(self.hop, self.stack)]
