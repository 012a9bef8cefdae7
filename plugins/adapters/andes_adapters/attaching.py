"""`pipe.add_adapter(name, folder)` and `pipe.remove_adapter(name)`: adapters of a pipeline's compiled model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve

from andes_adapters.reading import read_adapter
from andes_sdk.errors import ConfigError
from andes_sdk.types import AdaptableCompiled

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def add_adapter(pipeline: Pipeline, name: str, folder: str | Path, *, any_base: bool = False) -> None:
    """Attach a LoRA adapter that peft saved; `session.adapter` and `GenerationOptions.adapter` take its name.

    Nothing is merged or rebuilt; sessions with different adapters share the weights, in one batch too.

    Args:
        any_base: attach it to other weights than it was trained on, too.

    Raises:
        CheckpointError: files that are damaged, or do not fit the language model. ConfigError: a feature of peft
        that is not computed, another base, or a backend without adapters. DuplicateName: there is one of this name.
    """
    adapter = read_adapter(name, folder, pipeline.model.language_model)
    _adaptable(pipeline).add_adapter(evolve(adapter, base="") if any_base else adapter)


def remove_adapter(pipeline: Pipeline, name: str) -> None:
    """Forget an adapter and free its matrices.

    Raises:
        ConfigError: there is none of that name, or a backend without adapters. SessionError: open sessions use it.
    """
    _adaptable(pipeline).remove_adapter(name)


def _adaptable(pipeline: Pipeline) -> AdaptableCompiled:
    compiled = pipeline.compiled
    if not isinstance(compiled, AdaptableCompiled):
        fix = 'use backend="torch"'
        raise ConfigError("takes no adapters", who=f"backend {pipeline.plan.backend!r}", fix=fix)
    return compiled
