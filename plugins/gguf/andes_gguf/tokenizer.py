"""The tokenizer of a file: byte-level BPE on the `tokenizers` library, chat through the file's own template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from andes_qwen3.bpe import Bpe, read_library, size_of, switch_off
from andes_qwen3.layout import write_layout
from andes_qwen3.tokenizer import assistant_text

from andes_sdk.errors import CheckpointError, InputError
from andes_sdk.types import Rendered, Slot, Turn

from . import vocabulary
from .container import read
from .template import WHO, render
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from andes_sdk.types import Files

_AROUND = (("<img>", "</img>"), ("<|vision_start|>", "<|vision_end|>"))
"""Tokens that stand around a picture, where the vocabulary has them."""

Piece = tuple[list[int], bool]
"""Ids, and whether a loss may stand on them."""


class GgufTokenizer:
    """Text to ids and back; an `andes_sdk.types.Tokenizer`. Its vocabulary is built when it is first needed.

    Attributes:
        vocab_size: one more than the highest id in use.
        eos, pad: ids.
        vocabulary: what it was made from.
    """

    def __init__(self, data: Vocabulary) -> None:
        """Raises CheckpointError where the vocabulary lacks a special token."""
        self.vocabulary, self.vocab_size = data, data.size
        try:
            self._ids: dict[str, int] = {token["content"]: token["id"] for token in data.added}
            self._image, self.eos, self.pad = (self._ids[t] for t in (data.image, data.eos, data.pad))
        except KeyError as error:
            raise CheckpointError(f"its vocabulary lacks the special token {error}", who=data.source) from None
        self._bpe = Bpe(partial(_build, data), data.source)
        self._hidden = {token["id"] for token in data.added if token["special"]}
        self._shown = {*self._ids.values()} - self._hidden
        self._special = re.compile("(" + "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))) + ")")

    @property
    def built(self) -> bool:
        """Whether the vocabulary has been built."""
        return self._bpe.built

    def placeholder(self, kind: str) -> int:
        """The id that stands for pictures. Raises InputError for any other kind: there is no token for it."""
        if kind != "image":
            who = self.vocabulary.source
            raise InputError(f"no placeholder for {kind!r}", who=who, why="the vocabulary has one for image")
        return self._image

    def encode(self, text: str) -> list[int]:
        """Special tokens written out in the text stay text."""
        return self._bpe.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Control tokens are left out; added tokens that belong to texts (`<think>`) are written out."""
        return self._bpe.decode([i for i in ids if i not in self._hidden])

    def render(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Rendered:
        """The chat template. With `generate`, an assistant's header follows, and `<think>` if `think`.

        If `generate` and the last turn is the assistant's, that turn is left open and continued: its text is the
        prefix. Templates that know `enable_thinking` are told `think`.

        Raises:
            InputError: no turns, no template, one that refuses them, a picture in an assistant's turn, or `think`
                where the vocabulary has no `<think>`.
        """
        if not turns:
            raise InputError("no messages", who=WHO)
        if not self.vocabulary.template:
            fix = "set gguf.chat_template, or use an instruction-tuned model"
            raise InputError("the file has none", who=WHO, fix=fix)
        is_open = generate and turns[-1].role == "assistant"
        closed = turns[:-1] if is_open else turns
        pieces = list(self._pieces(closed, think=think, generate=generate)) if closed else []
        prefix = ""
        if generate:
            prefix = assistant_text(turns[-1]) if is_open else ""
            if think and not prefix.startswith("<think>"):
                if "<think>" not in self._ids:
                    raise InputError("the vocabulary has no <think>", who=WHO, fix="leave thinking off")
                prefix = "<think>" + prefix
            pieces.append((self._answer(prefix), False))
        rows = [(i, mark) for part, mark in pieces for i in part]
        if self.vocabulary.bos and (start := (self._ids[self.vocabulary.bos], False)) != next(iter(rows), None):
            rows.insert(0, start)
        return Rendered(tuple(i for i, _ in rows), tuple(mark for _, mark in rows), prefix)

    def _pieces(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Iterator[Piece]:
        """What the template writes and the texts that it places; neighbouring texts are one run, but for answers."""
        data, run, ending = self.vocabulary, "", False
        names = {"bos_token": data.bos, "eos_token": data.eos, "pad_token": data.pad, "enable_thinking": think}
        for part in render(data.template, turns, generate=generate, **names):
            if isinstance(part, int) and turns[part].role == "assistant":
                yield self.encode(run), False
                yield self._answer(assistant_text(turns[part])), True
                run, ending = "", True
            elif isinstance(part, int):
                for text in turns[part].parts:
                    if isinstance(text, str):
                        run += text
                        continue
                    yield self.encode(run), False
                    yield self._slot(text), False
                    run = ""
            else:
                for number, text in enumerate(self._special.split(part)):
                    if number % 2 == 0:
                        run += text
                        continue
                    token = self._ids[text]
                    ends = ending and token in (self.eos, self.pad)
                    yield self.encode(run), ends
                    yield [token], ends
                    run, ending = "", ending and not ends
        yield self.encode(run), False

    def _slot(self, slot: Slot) -> list[int]:
        token = self.placeholder(slot.kind)
        for before, after in _AROUND:
            if before in self._ids and after in self._ids:
                return [self._ids[before], token, self._ids[after]]
        return [token]

    def _answer(self, text: str) -> list[int]:
        """Assistant text: added tokens that belong to texts become their ids."""
        ids: list[int] = []
        for part in self._special.split(text):
            ids += [self._ids[part]] if self._ids.get(part) in self._shown else self.encode(part)
        return ids

    def save(self, folder: Path) -> None:
        """As `andes_qwen3.layout.write_layout`."""
        data = self.vocabulary
        write_layout(
            folder,
            data.content(),
            eos=data.eos,
            pad=data.pad,
            bos=data.bos or None,
            chat_template=data.template,
            andes_gguf={"size": data.size, "bos": data.bos, "image": data.image},
        )


def find(path: str, files: Files | None, *, image_token: str, template: str) -> GgufTokenizer:
    """The file's tokenizer if there is a file, else the checkpoint's.

    Raises:
        CheckpointError: neither, or one that cannot be used.
    """
    if path:
        made = vocabulary.from_metadata(read(path).metadata, path, image=image_token, template=template)
    elif files is not None:
        made = vocabulary.from_files(files, image=image_token, template=template)
    else:
        raise CheckpointError("there is no tokenizer", who="gguf", fix="give gguf.path, or load a checkpoint")
    return GgufTokenizer(made)


def _build(data: Vocabulary) -> Tokenizer:
    """The library's tokenizer of a vocabulary.

    Raises:
        CheckpointError: it cannot be used, holds other ids than it states, or could spell control tokens.
    """
    tokenizer = read_library(data.read, "its vocabulary cannot be used", data.source)
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    stated = {token["content"]: token["id"] for token in data.added}
    size = size_of(tokenizer)
    if size != data.size or added != stated:
        why = f"{size} ids and {len(added)} added tokens, stated are {data.size} and {len(stated)}"
        raise CheckpointError("its vocabulary does not have the ids that it states", who=data.source, why=why)
    switch_off(tokenizer)
    hidden = {token["content"]: token["id"] for token in data.added if token["special"]}
    forged = [t for t, number in hidden.items() if number in tokenizer.encode(t, add_special_tokens=False).ids]
    if forged:
        why = "written out in a text they would become control tokens"
        raise CheckpointError(f"its merges make {', '.join(forged[:5])}", who=data.source, why=why)
    return tokenizer
