"""A data filter: which training samples are worth their time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import DataFilter


@frozen(eq=False, kw_only=True)
class Example:
    """Drop empty answers and repetitions. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"

    shortest: int = field(default=1, validator=ge(0), metadata={"help": "fewest characters of an answer"})

    @hookimpl
    def andes_data_filters(self) -> Sequence[DataFilter]:
        """One filter, named "example"."""
        from .filters import Worthwhile

        return [Worthwhile(self.shortest)]
