"""A benchmark: a task with a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Benchmark


@frozen(eq=False, kw_only=True)
class Example:
    """Name the colour of a picture. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"
    testing = {"side": 64}  # noqa: RUF012 - not annotated: attrs must not take it for an option

    side: int = field(default=224, validator=ge(28), metadata={"help": "side of the pictures in pixels"})

    @hookimpl
    def andes_benchmarks(self) -> Sequence[Benchmark]:
        """One benchmark, named "example"."""
        from .colours import Colours

        return [Colours(self.side)]
