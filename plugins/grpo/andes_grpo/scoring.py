"""Rewards of the pipeline, picked by name and weighted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from andes_training.rewards import reward_of
from attrs import frozen

from .objective import overlong_penalty
from .prompts import Completion, Prompt

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Reward

    from .options import Options


@frozen(eq=False)
class Scorer:
    """The weighted sum of rewards, and each of them.

    Attributes:
        rewards: with their weights. overlong: (max_answer, buffer) of the penalty, or None.
    """

    rewards: Sequence[tuple[Reward, float]]
    overlong: tuple[int, int] | None = None

    @classmethod
    def of(cls, pipeline: Pipeline, options: Options) -> Scorer:
        """The rewards that the options name.

        Raises:
            ConfigError: no plugin of the pipeline brings one of them.
        """
        rewards = [(pipeline.pick("rewards", name), weight) for name, weight in options.rewards.items()]
        penalty = (options.max_answer, options.overlong_buffer) if options.overlong == "penalty" else None
        return cls(rewards, penalty)

    def score(self, prompt: Prompt, completion: Completion) -> tuple[float, Mapping[str, float]]:
        """An answer -> (weighted sum, {reward: value}).

        Raises:
            TrainingError: a reward that refuses the line. PluginBroken: one that fails or is not finite. Both with the
                reward's name, file and line.
        """
        each: dict[str, float] = {}
        for reward, _ in self.rewards:
            each[reward.name] = reward_of(reward, prompt.entry, completion.text, prompt.where)
        total = sum(weight * each[reward.name] for reward, weight in self.rewards)
        if self.overlong is not None:
            limit, buffer = self.overlong
            each["overlong"] = overlong_penalty(len(completion.tokens), max_answer=limit, buffer=buffer)
            total += each["overlong"]
        return total, each
