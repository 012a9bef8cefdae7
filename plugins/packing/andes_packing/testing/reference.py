"""The smallest plugin with a format: what the checks of formats are tested with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_packing.formats import Format


@frozen(eq=False, kw_only=True)
class ReferenceFormat:
    """Four bits with a scale for each `group`. Shortest use: `Pipeline.from_plugins([..., ReferenceFormat()])`."""

    contract = "1.1"

    group: int = field(default=64, validator=ge(8), metadata={"help": "columns that share a scale, a multiple of 8"})

    @hookimpl
    def andes_formats(self) -> Sequence[Format]:
        """One format."""
        from andes_packing.formats import Grid, Integer

        return [Integer(name=f"w4_g{self.group}", group=self.group, grid=Grid(bits=4, low=-8, high=7))]
