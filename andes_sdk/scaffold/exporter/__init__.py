"""An exporter: a model as a file of another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Exporter


@frozen(eq=False, kw_only=True)
class Example:
    """All weights in one archive of NumPy. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"

    half: bool = field(default=True, metadata={"help": "write float16 instead of float32"})

    @hookimpl
    def andes_exporters(self) -> Sequence[Exporter]:
        """One exporter, named "example"."""
        from .archive import NumpyArchive

        return [NumpyArchive(self.half)]
