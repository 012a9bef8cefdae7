"""andes_sdk: assemble, train, compress and run AndesVL-class multimodal language models from plugins.

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from andes_sdk.hookspecs import hookimpl
from andes_sdk.version import CONTRACT, __version__

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.plan import Plan

__all__ = ["CONTRACT", "Pipeline", "Plan", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from andes_sdk.pipeline import Pipeline

        return Pipeline
    if name == "Plan":
        from andes_sdk.plan import Plan

        return Plan
    raise AttributeError(f"module 'andes_sdk' has no attribute {name!r}")
