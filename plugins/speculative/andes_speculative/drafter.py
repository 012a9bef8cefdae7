"""What a drafter is: it guesses what may follow, and how likely each guess is. What is worth verifying, others choose.

A memory of a conversation may have `join(session, inputs)` too. It is told of the session and of the prompt, pictures
included, before the prompt is read, and again for the session of a fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from andes_sdk.types import Inputs, Rows, Session


@frozen
class Guess:
    """One token that may follow.

    Attributes:
        parent: index of its predecessor among the guesses, which stands before it; -1 for the answer's last token.
        chance: how likely it and all before it on its path are right, from 0 to 1.
    """

    token: int
    parent: int
    chance: float


class Memory(Protocol):
    """What a drafter knows of one conversation."""

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed, the prompt's first, and what the model computed for them."""

    def fork(self) -> Memory:
        """A memory of its own with the same content."""


class JoiningMemory(Protocol):
    """A memory that wants to know the session and the prompt. Optional."""

    def join(self, session: Session, inputs: Inputs) -> None:
        """Before the prompt is read; after a fork once more, with the fork's session."""


class Drafter(Protocol):
    """Guesses what follows."""

    @property
    def name(self) -> str:
        """As users write it."""

    @property
    def taps(self) -> Sequence[int]:
        """Layers whose entering rows it wants to read."""

    @property
    def free(self) -> bool:
        """Whether guessing costs next to nothing, so that the guesses may be made before one knows how many pay."""

    @property
    def stride(self) -> int:
        """Tokens that one of its passes guesses. 1: it can go on pass by pass; more: it guesses no more than those."""

    def open(self) -> Any:
        """A memory for a new conversation."""

    def guess(self, memories: Sequence[Any], last: Sequence[int], depth: int) -> list[list[Guess]]:
        """What may follow the last token of each conversation, which its memory has not read, up to `depth` tokens."""
