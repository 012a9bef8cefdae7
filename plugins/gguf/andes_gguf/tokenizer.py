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
from .provenance import MIXED, Source
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
        self._headers: dict[bool, str] = {}
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
                where the vocabulary has no `<think>`. CheckpointError: a template that asks for too much.
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
        """What the template writes and the texts that it places; neighbouring texts are one run, but for answers.

        Learned is what the model would write: from the end of an answer's header to its end token.
        """
        slots = [part for turn in turns for part in turn.parts if isinstance(part, Slot)]
        run, now, ending = "", False, False
        for text, source, learned in self._marked(turns, think=think, generate=generate):
            if learned != now:
                yield self.encode(run), now
                run, now, ending = "", learned, now
            if source == MIXED or (isinstance(source, int) and source >= 0 and not learned):
                run += text
                continue
            if isinstance(source, int) and source < 0:
                yield self.encode(run), False
                yield self._slot(slots[-1 - source]), False
                run = ""
                continue
            for number, part in enumerate(self._special.split(text)):
                # of an answer's own texts only those tokens count that belong to texts
                if number % 2 == 0 or (source is not None and self._ids[part] not in self._shown):
                    run += part
                    continue
                ends = ending and self._ids[part] in (self.eos, self.pad)
                yield self.encode(run), learned or ends
                yield [self._ids[part]], learned or ends
                run, ending = "", ending and not ends
        yield self.encode(run), now

    def _marked(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Iterator[tuple[str, Source, bool]]:
        """Texts, where they come from, and whether they are an answer's: its own and what the template writes in it."""
        parts = self._rendered(turns, think=think, generate=generate)
        places: dict[Source, list[int]] = {}
        for index, (_, source) in enumerate(parts):
            places.setdefault(source, []).append(index)
        spoken = [
            n for n, turn in enumerate(turns) if turn.role == "assistant" and assistant_text(turn) and n in places
        ]
        inside = {index for n in spoken for index in range(places[n][0], places[n][-1] + 1)}
        headers = [self._header(think), self._header(not think)] if spoken else []
        for index, (text, source) in enumerate(parts):
            header = next((one for one in headers if one and one in text), "")
            if header and source is None and index + 1 in inside and index not in inside:
                cut = text.rindex(header) + len(header)
                yield text[:cut], source, False
                yield from ((text[cut:], source, True),) if text[cut:] else ()
            else:
                yield text, source, index in inside

    def _header(self, think: bool) -> str:
        """What the template writes where an answer is asked for."""
        if think not in self._headers:
            try:
                plain, asked = (
                    "".join(text for text, _ in self._rendered([Turn("user", ("?",))], think=think, generate=generate))
                    for generate in (False, True)
                )
            except InputError:  # it wants more than one turn
                plain = asked = ""
            self._headers[think] = asked.removeprefix(plain) if asked.startswith(plain) else ""
        return self._headers[think]

    def _rendered(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> list[tuple[str, Source]]:
        data = self.vocabulary
        names = {"bos_token": data.bos, "eos_token": data.eos, "pad_token": data.pad, "enable_thinking": think}
        return render(data.template, turns, generate=generate, **names)

    def _slot(self, slot: Slot) -> list[int]:
        token = self.placeholder(slot.kind)
        for before, after in _AROUND:
            if before in self._ids and after in self._ids:
                return [self._ids[before], token, self._ids[after]]
        return [token]

    def _answer(self, text: str) -> list[int]:
        """Assistant text: added tokens that belong to texts become their ids."""
        ids: list[int] = []
        run = ""
        for part in self._special.split(text):
            if self._ids.get(part) in self._shown:
                ids += [*self.encode(run), self._ids[part]]
                run = ""
            else:
                run += part
        return ids + self.encode(run)

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
