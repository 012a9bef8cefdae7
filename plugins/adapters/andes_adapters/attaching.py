"""`pipe.add_adapter(name, folder)` and `pipe.remove_adapter(name)`: adapters of a pipeline's compiled model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from andes_adapters.contract import contract_of, refuse_other_contract, text_parts
from andes_adapters.reading import contract_mark, read_adapter
from andes_sdk.errors import ConfigError
from andes_sdk.numbers import weights_of
from andes_sdk.types import AdaptableCompiled

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Adapter


def add_adapter(
    pipeline: Pipeline, name: str, folder: str | Path, *, any_base: bool = False, made: Adapter | None = None
) -> None:
    """Attach a LoRA adapter that peft saved; `session.adapter` and `GenerationOptions.adapter` take its name.

    Nothing is merged or rebuilt; sessions with different adapters share the weights, in one batch too.

    Args:
        any_base: attach it to other weights than it was trained on, too; one with a contract is refused all the same.
        made: what to attach in its place, such as its int8 form (`andes_adapters.loading.as_int8`).

    Raises:
        CheckpointError: files that are damaged, or do not fit the language model. ConfigError: a feature of peft
        that is not computed, another base, or a backend without adapters. DuplicateName: there is one of this name.
    """
    adapter = made or read_adapter(name, folder, pipeline.model.language_model)
    if (mark := contract_mark(folder)) is not None:
        _refuse_other(mark, pipeline, f"adapter {name!r}: {folder}")
    adaptable_compiled(pipeline).add_adapter(evolve(adapter, base="") if any_base else adapter)
    if not any_base and (why := _unchecked(adapter, pipeline)):
        logging.getLogger("andes_adapters").warning("adapter %r: its base was not checked: %s", name, why)


def _refuse_other(mark: Mapping[str, Any], pipeline: Pipeline, who: str) -> None:
    """Refuse an adapter whose contract is not this base's."""
    model = pipeline.model
    if pipeline.artefact is None:
        own = {"numbers": model.numbers, **text_parts(model.tokenizer)}
    else:  # what is not quantised counts, too
        own = contract_of(pipeline.artefact, model.tokenizer, mark["rank"]).mark
    refuse_other_contract(mark, own, who)


def _unchecked(adapter: Adapter, pipeline: Pipeline) -> str:
    """Why nobody could tell whether the adapter was trained on these weights, or nothing."""
    if not adapter.base:
        return "it does not say what it was trained on"
    hidden = adapter.base.startswith("weights:") and not pipeline.model.numbers
    return "the model's weights stay in a packed file" if hidden and not weights_of(pipeline.model) else ""


def remove_adapter(pipeline: Pipeline, name: str) -> None:
    """Forget an adapter and free its matrices.

    Raises:
        ConfigError: there is none of that name, or a backend without adapters. SessionError: open sessions use it.
    """
    adaptable_compiled(pipeline).remove_adapter(name)


def adaptable_compiled(pipeline: Pipeline) -> AdaptableCompiled:
    """The compiled model, which takes adapters.

    Raises:
        ConfigError: its backend does not.
    """
    compiled = pipeline.compiled
    if not isinstance(compiled, AdaptableCompiled):
        fix = 'use backend="torch"'
        raise ConfigError("takes no adapters", who=f"backend {pipeline.plan.backend!r}", fix=fix)
    return compiled
