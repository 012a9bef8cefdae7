"""A format: how compressed weights are laid out in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_packing.formats import Format


@frozen(eq=False, kw_only=True)
class Example:
    """Eight bits with a scale per group of columns. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"

    group: int = field(default=64, validator=ge(4), metadata={"help": "columns that share a scale, a multiple of 4"})

    @hookimpl
    def andes_formats(self) -> Sequence[Format]:
        """One format, named "example"."""
        from .layout import rows_of_bytes

        return [rows_of_bytes("example", self.group)]
