"""A reward: scores answers for reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Reward


@frozen(eq=False, kw_only=True)
class Example:
    """Right or wrong, after the thinking. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"

    ignore_case: bool = field(default=True, metadata={"help": "whether 'Red' counts as 'red'"})

    @hookimpl
    def andes_rewards(self) -> Sequence[Reward]:
        """One reward, named "example"."""
        from .reward import ExactMatch

        return [ExactMatch(self.ignore_case)]
