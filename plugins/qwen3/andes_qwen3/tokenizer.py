"""Qwen3's tokenizer and AndesVL's chat template on the `tokenizers` library.

The template is ChatML without a default system prompt. A picture is `<img>`, one image token (the core repeats it), and
`</img>`, where its part stands. Thinking is a prefill of `<think>` after the assistant's header. Tools are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from andes_sdk.errors import CheckpointError, InputError
from andes_sdk.types import Rendered, Turn

from .layout import chat_template, read_layout
from .vocabulary import SPECIALS, qwen_tokenizer_json, write_atomically

SHOWN = ("<think>", "</think>", "<|box_start|>", "<|box_end|>")
"""Special tokens that are part of the text: `decode` writes them out, and assistant turns may contain them."""

ROLES = ("system", "user", "assistant")
_SHOWN_PATTERN = re.compile("(" + "|".join(map(re.escape, SHOWN)) + ")")
_REQUIRED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>", "<img>", "</img>", *SHOWN)


class QwenTokenizer:
    """Text to ids and back; an `andes_sdk.types.Tokenizer`.

    Attributes:
        vocab_size: one more than the highest id in use (a model may have more embeddings).
        image_token, eos, pad: ids of `<|vision_pad|>`, `<|im_end|>`, `<|endoftext|>`.
        thinking: whether a chat asks for `<think>` unless told otherwise.
        source: where the vocabulary came from.
    """

    def __init__(self, content: str, *, source: str, thinking: bool = False) -> None:
        """`content` is a tokenizer.json. Raises CheckpointError if it is damaged or lacks a special token."""
        self.source, self.thinking = source, thinking
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError("not a tokenizer.json", who=source, why=str(error)) from error
        added = self._tokenizer.get_added_tokens_decoder()
        self._ids = {token.content: number for number, token in added.items()}
        missing = [token for token in _REQUIRED if token not in self._ids]
        if missing:
            raise CheckpointError(
                f"the vocabulary lacks the special tokens {missing}",
                who=source,
                fix="use the tokenizer of an AndesVL or Qwen3 checkpoint, or train_small_tokenizer",
            )
        # Text is encoded with every added token switched off, whether or not it is marked "special".
        self._textual = {token.content for token in added.values() if not token.special}
        for token in added.values():
            token.special = True
        self._tokenizer.add_special_tokens(list(added.values()))
        self._tokenizer.encode_special_tokens = True
        self._hidden = frozenset(number for text, number in self._ids.items() if text not in SHOWN)
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.image_token = self._ids["<|vision_pad|>"]
        self.eos = self._ids["<|im_end|>"]
        self.pad = self._ids["<|endoftext|>"]

    @classmethod
    def load(cls, path: Path, *, thinking: bool = False) -> QwenTokenizer:
        """From a tokenizer.json, or a folder in one of transformers' layouts.

        Raises:
            CheckpointError: nothing there, or not a tokenizer of this family.
        """
        return cls(read_layout(path), source=str(path), thinking=thinking)

    @classmethod
    def qwen(cls, *, thinking: bool = False) -> QwenTokenizer:
        """The Qwen vocabulary of 151 643 byte strings, from the distribution `qwen-tokenizer`."""
        return cls(qwen_tokenizer_json(), source="qwen-tokenizer", thinking=thinking)

    @classmethod
    def find(cls, option: str, folder: Path | None, *, tiny: bool, thinking: bool) -> QwenTokenizer:
        """The option if given, else the checkpoint's own, else the one that goes with the preset."""
        if option:
            return cls.load(Path(option).expanduser(), thinking=thinking)
        if folder is not None:
            return cls.load(folder, thinking=thinking)
        if tiny:
            return cls.load(Path(__file__).parent / "data" / "tiny_tokenizer.json", thinking=thinking)
        return cls.qwen(thinking=thinking)

    def id_of(self, token: str) -> int:
        """The id of a special token. Raises InputError if there is none of that text."""
        if token not in self._ids:
            raise InputError(f"no special token {token!r}", who=self.source)
        return self._ids[token]

    def encode(self, text: str) -> list[int]:
        """Text is brought to NFC; special tokens written out in it stay text."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeError, TypeError) as error:
            raise InputError("text that is not valid Unicode", who=self.source, why=str(error)) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out, except those that are part of the text (`SHOWN`).

        Bytes that are no complete character become U+FFFD; at the end of a stream they may still be completed.
        """
        return self._tokenizer.decode([i for i in ids if i not in self._hidden], skip_special_tokens=False)

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
            written = _assistant_text(turns[-1]) if is_open else ""
            prefix = "<think>" + written if think and not written.startswith("<think>") else written
            pieces += [(self._header("assistant\n"), False), (self._answer(prefix), False)]
        ids = tuple(i for part, _ in pieces for i in part)
        supervised = tuple(mark for part, mark in pieces for _ in part)
        return Rendered(ids=ids, supervised=supervised, prefix=prefix)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; `transformers.AutoTokenizer` reads them too."""
        content = json.loads(self._tokenizer.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["content"] not in self._textual
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "chat_template": chat_template(thinking=self.thinking),
        }
        write_atomically(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False).encode())
        write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode() + b"\n")

    def _header(self, text: str) -> list[int]:
        return [self._ids["<|im_start|>"], *self.encode(text)]

    def _turn(self, turn: Turn) -> Iterator[tuple[list[int], bool]]:
        """Pieces of ids, each with whether a loss may stand on it."""
        if turn.role not in ROLES:
            raise InputError(f"unknown role {turn.role!r}", who="chat template", fix=f"one of {list(ROLES)}")
        if turn.role == "assistant":
            yield self._header("assistant\n"), False
            yield [*self._answer(_assistant_text(turn)), self.eos], True
        else:
            picture = [self._ids["<img>"], self.image_token, self._ids["</img>"]]
            runs = list(_runs(turn.parts))
            # Role and text are one run of text for the pre-tokenizer, as in the written-out template.
            yield self._header(f"{turn.role}\n{runs[0]}"), False
            for text in runs[1:]:
                yield [*picture, *self.encode(text)], False
            yield [self.eos], False
        yield self.encode("\n"), False

    def _answer(self, text: str) -> list[int]:
        """Assistant text: the tokens of `SHOWN` become their ids."""
        ids: list[int] = []
        for part in _SHOWN_PATTERN.split(text):
            ids += [self._ids[part]] if part in SHOWN else self.encode(part)
        return ids


def _runs(parts: Sequence[str | None]) -> Iterator[str]:
    """Text before, between and after the pictures: one more run than there are pictures."""
    run = ""
    for part in parts:
        if part is None:
            yield run
            run = ""
        else:
            run += part
    yield run


def _assistant_text(turn: Turn) -> str:
    if any(part is None for part in turn.parts):
        raise InputError("an assistant's turn cannot hold a picture", who="chat template")
    return "".join(part for part in turn.parts if part is not None)


__all__ = ["ROLES", "SHOWN", "SPECIALS", "QwenTokenizer"]
