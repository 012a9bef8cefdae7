"""When masks move, and to how many survivors; what of a recipe does not go with masks that move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from andes_sdk.errors import TrainingError

if TYPE_CHECKING:
    from andes_training.recipe import StageRecipe


def survivors(step: int, ramp: float, n: int, m: int) -> int:
    """Weights of every m that survive at a step: m at first, n after `ramp` steps."""
    left = max(0.0, 1.0 - step / ramp) if ramp else 0.0
    return n + math.ceil((m - n) * left)


def settled(steps: int, hold: float) -> int:
    """The step from which on masks stay for the share `hold` of all steps; one step at least is left after it."""
    return steps - max(1, round(hold * steps))


def is_due(step: int, every: int, last: int) -> bool:
    """Whether masks are chosen anew at a step: every few steps, and at the `last` one that may change them."""
    return step <= last and (step % every == 0 or step == last)


def refuse_options(recipe: StageRecipe, what: str, *, adapters: str, lost: str) -> None:
    """Refuse what would leave a model without its pattern.

    Args:
        what: the kind of training. adapters: why none are trained. lost: what an average would be saved without.

    Raises:
        TrainingError: naming the option.
    """
    refused = {
        "lora": (recipe.lora is not None, adapters),
        "epochs": (recipe.epochs, "the schedule counts steps: give steps"),
        "patience": (recipe.patience, "a stage that ends early may end before its masks have the pattern"),
        "ema_export": (
            recipe.ema and recipe.ema_export == "beside",
            f"the average would be saved without its {lost}",
        ),
    }
    for option, (given, why) in refused.items():
        if given:
            raise TrainingError(f"cannot be combined with {what}", who=option, why=why, fix=f"leave {option} out")
