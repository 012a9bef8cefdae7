"""Rewards that check an answer against a truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs.validators import ge, gt, le

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Reward


@frozen(eq=False, kw_only=True)
class Verifiers:
    """Exact, numeric, choice, regex, box, math … Shortest use: `Pipeline.from_plugins([..., "verifiers"])`."""

    contract = "1.1"
    samples: ClassVar[Sequence[Mapping[str, object]]] = (
        {
            "answer": "4",
            "choice": "B",
            "regex": "^4$",
            "box": [10, 10, 50, 50],
            "iou": [10, 10, 50, 50],
            "reasoning_gym": {"dataset": "chain_sum", "entry": {"question": "2 + 2 =", "answer": "4", "metadata": {}}},
        },
    )

    ignore_case: bool = field(default=True, metadata={"help": "exact: whether 'Red' counts as 'red'"})
    tolerance: float = field(
        default=1e-6,
        validator=ge(0.0),
        metadata={"help": "numeric: largest error as a share of the truth (ChartQA: 0.05)"},
    )
    length_limit: int = field(
        default=8192, validator=gt(0), metadata={"help": "length: characters from which an answer scores -1"}
    )
    length_grace: float = field(
        default=0.2,
        validator=[ge(0.0), le(1.0)],
        metadata={"help": "length: share of the limit over which the score falls from 0 to -1"},
    )

    @hookimpl
    def andes_rewards(self) -> Sequence[Reward]:
        """The rewards by name: exact, numeric, choice, regex, box, iou, format, length, math, reasoning_gym."""
        from .form import Format, Length
        from .gym import ReasoningGym
        from .mathematics import Math
        from .places import Box, Overlap
        from .text import Choice, Exact, Numeric, Regex

        return [
            Exact(self.ignore_case), Numeric(self.tolerance), Choice(), Regex(), Box(), Overlap(),
            Format(), Length(self.length_limit, self.length_grace), Math(), ReasoningGym(),
        ]  # fmt: skip
