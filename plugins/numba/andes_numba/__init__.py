"""Streaming low-bit CPU kernels for Qwen3, Qwen2 and Llama, written in Numba."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from andes_sdk import hookimpl

from .options import FORMATS, Options

if TYPE_CHECKING:
    from andes_sdk.plan import Plan
    from andes_sdk.types import Backend

__all__ = ["FORMATS", "Numba"]


@frozen(eq=False, kw_only=True)
class Numba(Options):
    """The backend "numba". Shortest use: `Pipeline.from_plugins([..., "qwen3", "numba"], backend="numba")`."""

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"format": "f16", "kv": "f32", "activations": "exact"}
    companions: ClassVar[Sequence[object]] = ({"qwen3": {"preset": "tiny"}},)

    @hookimpl
    def andes_backends(self) -> Sequence[Backend]:
        """One backend, "numba"."""
        from .backend import NumbaBackend

        return [NumbaBackend(self)]

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """The kernel set this processor gets, and what the backend would do."""
        if plan.backend != "numba":
            return {"kernels": f"inactive: the backend is {plan.backend!r}"}
        from .machine import intended

        return intended(self)
