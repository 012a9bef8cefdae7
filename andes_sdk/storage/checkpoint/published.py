"""Checkpoints in a published layout: the distribution that knows a `model_type` adds it by an entry point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.config import suggestion
from andes_sdk.errors import CheckpointError
from andes_sdk.hookspecs import LAYOUTS

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan
    from andes_sdk.types import PublishedLayout


def layout_of(config: Mapping[str, Any], *, who: str) -> PublishedLayout:
    """What reads checkpoints whose `config.json` is `config`.

    Raises:
        CheckpointError: nothing installed knows its model type.
    """
    kind, known = str(config.get("model_type")), extensions(LAYOUTS)
    if kind not in known:
        fix = f"{suggestion(kind, known)}; or install the distribution that knows it"
        raise CheckpointError(f"no installed layout reads model_type {kind!r}", who=who, fix=fix)
    return cast("PublishedLayout", load_extension(LAYOUTS, kind))


def describe(model: VisionLanguageModel, plan: Plan, *, dtype: str) -> dict[str, Any] | None:
    """A `config.json` in the first published form that can describe these modules, or None."""
    for name in extensions(LAYOUTS):
        made = cast("PublishedLayout", load_extension(LAYOUTS, name)).config_of(model, plan, dtype=dtype)
        if made is not None:
            return made
    return None
