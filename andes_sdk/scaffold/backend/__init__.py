"""A backend: a way to run a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Backend


@frozen(eq=False, kw_only=True)
class Example:
    """Linear layers row by row. Shortest use: `Pipeline.from_plugins([..., "example"], backend="example")`."""

    contract = "1.1"

    @hookimpl
    def andes_backends(self) -> Sequence[Backend]:
        """One backend, named "example"; it runs only where a pipeline asks for it."""
        from .backend import RowByRow

        return [RowByRow()]
