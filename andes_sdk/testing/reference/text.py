"""Reference tokenizer: a token per byte, and four special tokens that no text can spell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from andes_sdk.errors import InputError
from andes_sdk.types import Rendered, Slot, Turn

PAD, END, START, IMAGE = 256, 257, 258, 259


class ByteTokenizer:
    """See `andes_sdk.types.Tokenizer`. A turn is START, role, newline, parts, END.

    `kinds` other than "image" have as placeholders the bytes that no UTF-8 text holds: 255 and, for more, those below.
    """

    vocab_size = 260
    eos = END
    pad = PAD

    def __init__(self, kinds: Sequence[str] = ()) -> None:
        """At most ten `kinds`."""
        self._placeholders = {"image": IMAGE, **{kind: 255 - i for i, kind in enumerate(kinds[:10])}}

    def placeholder(self, kind: str) -> int:
        """The id that stands for rows of a kind. Raises InputError for a kind that it was not made with."""
        if kind not in self._placeholders:
            why = f"it has some for {', '.join(self._placeholders)}"
            raise InputError(f"no placeholder for {kind!r}", who="tokenizer", why=why, fix="add it to `kinds`")
        return self._placeholders[kind]

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out; incomplete characters become U+FFFD."""
        hidden = self._placeholders.values()
        return bytes(i for i in ids if i < 256 and i not in hidden).decode(errors="replace")

    def render(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Rendered:
        """Turns one after another; with `generate` an assistant's header follows, and `<think>` if asked for.

        Raises:
            InputError: an unknown role.
        """
        prefix = "<think>" if generate and think else ""
        marked = [pair for turn in turns for pair in self._turn(turn)]
        if generate:
            marked += [(i, False) for i in (START, *self.encode(f"assistant\n{prefix}"))]
        return Rendered(tuple(i for i, _ in marked), tuple(mark for _, mark in marked), prefix)

    def _turn(self, turn: Turn) -> Iterator[tuple[int, bool]]:
        if turn.role not in ("system", "user", "assistant"):
            raise InputError(f"unknown role {turn.role!r}", who="chat template")
        answer = turn.role == "assistant"
        for i in (START, *self.encode(f"{turn.role}\n")):
            yield i, False
        for part in turn.parts:
            for i in (self.placeholder(part.kind),) if isinstance(part, Slot) else self.encode(part):
                yield i, answer
        yield END, answer

    def save(self, folder: Path) -> None:
        """Writes nothing: bytes need no vocabulary."""
