"""A token per byte of UTF-8, and four special tokens that no text can spell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from andes_sdk.errors import InputError
from andes_sdk.types import Rendered, Slot, Turn

PAD, END, START, IMAGE = 256, 257, 258, 259
ROLES = ("system", "user", "assistant")


class Bytes:
    """See `andes_sdk.types.Tokenizer`. A turn is START, role, newline, parts, END.

    Modalities have as placeholders the bytes from 255 down, ten of which no UTF-8 text holds.
    """

    vocab_size = 260
    eos = END
    pad = PAD

    def __init__(self, kinds: Sequence[str] = ()) -> None:
        self.marks = {"image": IMAGE, **{kind: 255 - n for n, kind in enumerate(kinds)}}

    def placeholder(self, kind: str) -> int:
        """The id that stands for rows of a kind. Raises InputError for a kind that it was not made with."""
        if kind not in self.marks:
            why = f"it has some for {', '.join(self.marks)}"
            raise InputError(f"no placeholder for {kind!r}", who="tokenizer", why=why, fix="add it to `kinds`")
        return self.marks[kind]

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out; half a character becomes U+FFFD."""
        return bytes(i for i in ids if i < 256 and i not in self.marks.values()).decode(errors="replace")

    def render(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Rendered:
        """Turns one after another; with `generate` the header of an answer, and `<think>` if asked for.

        Raises:
            InputError: a role that the template does not know.
        """
        marked = [pair for turn in turns for pair in self._turn(turn)]
        prefix = "<think>" if think and generate else ""
        if generate:
            marked += [(i, False) for i in (START, *self.encode(f"assistant\n{prefix}"))]
        return Rendered(tuple(i for i, _ in marked), tuple(mark for _, mark in marked), prefix)

    def _turn(self, turn: Turn) -> Iterator[tuple[int, bool]]:
        """Ids of a message, each with whether a loss may stand on it: what the assistant says and the end of it."""
        if turn.role not in ROLES:
            raise InputError(f"no role {turn.role!r}", who="chat template", fix=f"use one of {', '.join(ROLES)}")
        learnt = turn.role == "assistant"
        for i in (START, *self.encode(f"{turn.role}\n")):
            yield i, False
        for part in turn.parts:
            for i in [self.placeholder(part.kind)] if isinstance(part, Slot) else self.encode(part):
                yield i, learnt
        yield END, learnt

    def save(self, folder: Path) -> None:
        """Writes nothing: bytes are the same everywhere."""
