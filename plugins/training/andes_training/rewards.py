"""What a reward says of an answer, checked: rewards are plugins' code, and judge what a model wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import AndesError, PluginBroken, TrainingError

if TYPE_CHECKING:
    from andes_sdk.types import Reward


def reward_of(reward: Reward, entry: Mapping[str, Any], text: str, where: str) -> float:
    """A reward's score of an answer to a data line.

    Raises:
        TrainingError: the reward refuses the line. PluginBroken: it fails, or gives no finite number. Both name the
            reward, file and line.
    """
    name = f"reward {reward.name!r}"
    try:
        found: Any = reward.score(entry, text)
    except AndesError as error:
        raise TrainingError(f"{name}: {error.what}", who=where, why=error.why, fix=error.fix) from error
    except Exception as error:
        why, fix = f"{type(error).__name__}: {error}", "correct the reward, or what it needs of the line"
        raise PluginBroken(f"{name} fails", who=where, why=why, fix=fix) from error
    try:
        value = float(found)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise PluginBroken(f"{name} is {found!r}", who=where, why="no finite number", fix="correct it")
    return value
