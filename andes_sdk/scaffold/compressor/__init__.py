"""A compressor: rewrites weights so that they fit a format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import and_, ge, le

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Compressor


@frozen(eq=False, kw_only=True)
class Example:
    """Round linear layers to few bits. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"

    bits: int = field(default=8, validator=and_(ge(2), le(8)), metadata={"help": "bits per weight, 2 to 8"})

    @hookimpl
    def andes_compressors(self) -> Sequence[Compressor]:
        """One compressor, named "example"."""
        from .rounding import Rounding

        return [Rounding(self.bits)]
