"""Text to ids and back, and what conversations become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from pathlib import Path


class Tokenizer(Protocol):
    """Text to ids and back, with the family's special tokens and chat template."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""

    @property
    def eos(self) -> int:
        """The id that ends an answer."""

    @property
    def pad(self) -> int:
        """The id that fills; it ends an answer too."""

    def placeholder(self, kind: str) -> int:
        """The id that stands where a row of this kind goes: "image", or the name of a modality.

        Raises:
            InputError: the vocabulary has none for it; says which kinds there are.
        """

    def encode(self, text: str) -> list[int]:
        """Plain text; special tokens written out in it stay text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, but for those that belong to answers (`<think>`, boxes)."""

    def render(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Rendered:
        """Chat template: turns -> ids, with one placeholder per `Slot`, where its rows are to be inserted."""

    def save(self, folder: Path) -> None:
        """Write what `andes_tokenizer` needs to build the same tokenizer again."""


class Files(Protocol):
    """Files of something saved, of a folder or inside an artefact. Each is read when it is asked for, and not kept.

    Names are relative, with `/` between their parts.
    """

    def __contains__(self, name: object) -> bool:
        """Whether there is a file of that name."""

    def where(self, name: str = "") -> str:
        """Where a file lies, or all of them, for errors."""

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            CheckpointError: it is not there, cannot be read, or differs from its checksum.
        """


@frozen
class Slot:
    """Stands in a turn for one item that is no text and travels beside it; `kind` is "image" or a modality's name."""

    kind: str


@frozen
class Turn:
    """One message: a role and its parts in order, texts and slots."""

    role: str
    parts: tuple[str | Slot, ...]


@frozen
class Rendered:
    """A rendered conversation.

    Attributes:
        ids: token ids, exactly one placeholder for each `Slot`, in order (later repeated once per row).
        supervised: True where a training stage may place a loss (assistant text and its end of turn).
        prefix: text that counts as already answered (`<think>` when thinking is asked for).
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    prefix: str = ""
