"""What changes a model during a stage: the stage itself, if it is a `ModelChange`, then what the recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from andes_sdk.errors import TrainingError
from andes_sdk.types import ModelChange, TrainingStage
from andes_training.lora import Lora
from andes_training.recipe import StageRecipe, rates_of

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel


def put_in_changes(
    model: VisionLanguageModel, stage: TrainingStage, recipe: StageRecipe
) -> tuple[Sequence[ModelChange], dict[str, float]]:
    """Change a model in place -> (the changes, first to last; module prefix -> learning rate).

    Low-rank adapters learn in place of what the stage would train; the recipe's own rates hold beside them.

    Raises:
        TrainingError: a change does not fit the model, needs what is not installed, or is a second adapter.
    """
    changes: list[ModelChange] = [stage] if isinstance(stage, ModelChange) else []
    for change in changes:
        change.put_in(model)
    if recipe.lora is None:
        return changes, rates_of(recipe, stage.rates(model))
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        why, fix = f"stage {recipe.stage!r} brings an adapter of its own", "leave lora out"
        raise TrainingError("a second adapter in one stage", who="stages.lora", why=why, fix=fix)
    lora = Lora(recipe.lora, recipe.adapter)
    lora.put_in(model)
    return [*changes, lora], {**recipe.rates, **lora.rates(model)}
