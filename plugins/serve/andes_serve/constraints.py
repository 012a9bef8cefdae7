"""Which tokens may come next: grammars through llguidance, and biases of single tokens."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import torch
from attrs import define, field
from torch import Tensor

from andes_serve.failures import Failure
from andes_serve.texts import CLOSE, OPEN

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Tokenizer

TIGHT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as `json.dumps` writes it: a small model cannot lose itself in white space."""

LARGEST = 1 << 17
"""Characters of a grammar: some are read again at each token, while all other answers wait."""


@define(eq=False)
class Grammars:
    """Grammars of one vocabulary, whose bytes are read when the first one is asked for."""

    pipeline: Pipeline
    _library: Any = None
    _lock: threading.Lock = field(factory=threading.Lock)

    @property
    def size(self) -> int:
        """Logits of the model."""
        return int(self.pipeline.model.text.vocab_size)

    def matcher(self, grammar: str, param: str) -> Any:
        """What follows a grammar.

        Raises:
            Failure: the grammar is none, or too complex; `param` is the parameter that holds it.
        """
        if len(grammar) > LARGEST:
            what = f"the grammar has {len(grammar)} characters, with its quotes and names, and may have {LARGEST}"
            raise Failure(400, what, param=param, code="invalid_grammar")
        with self._lock:
            if self._library is None:
                self._library = library_of(self.pipeline.tokenizer, self.size)
        matcher = llguidance.LLMatcher(self._library, grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first is the dearest: here it keeps nobody else waiting
        if matcher.is_error():
            raise _unusable(matcher, param)
        return matcher


def _unusable(matcher: Any, param: str) -> Failure:
    """What went wrong, without the state of the parser behind it; of a regex that is none, what is wrong with it."""
    first, *rest = str(matcher.get_error()).partition("<state>")[0].strip().splitlines() or ["no reason is given"]
    what = "nothing fits it" if first == "NoExtensionBias" else first[:500]
    what += next((f" {line.strip()[:200]}" for line in rest if line.strip().startswith("error:")), "")
    return Failure(400, f"the grammar cannot be used: {what}", param=param, code="invalid_grammar")


def library_of(tokenizer: Tokenizer, size: int) -> Any:
    """The vocabulary as llguidance takes it; special tokens, however they are spelt, are no text.

    Bytes of tokens come from the tokenizer's own tokenizer.json, where it has one. Else they are the tokens' texts, and
    tokens that are half a character cannot be part of a grammar.
    """
    ids = range(size)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        file = Path(folder) / "tokenizer.json"
        if file.is_file():
            own = llguidance.LLTokenizer(file.read_text(encoding="utf-8"), n_vocab=size, eos_token=tokenizer.eos)
            special = {n for n in ids if n >= tokenizer.vocab_size or own.is_special_token(n)}
            pieces = [b"" if n in special else own.decode_bytes([n]) for n in ids]
        else:
            texts = [tokenizer.decode([n]) if n < tokenizer.vocab_size else "" for n in ids]
            pieces = [b"" if "\ufffd" in text else text.encode() for text in texts]
            special = {n for n, piece in enumerate(pieces) if not piece}
    words = _Words()
    words.eos_token_id, words.encode = tokenizer.eos, tokenizer.encode
    words.tokens = [f"<{n}>".encode() if n in special else piece for n, piece in enumerate(pieces)]
    words.special_token_ids = sorted(special)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(words), n_vocab=size)


class _Words:
    """What llguidance asks of a tokenizer: text that spells a special token stays text."""

    eos_token_id: int
    bos_token_id = None
    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    encode: Any

    def __call__(self, text: str) -> Any:
        return self.encode(text)


@define(eq=False)
class Guided:
    """`Constraint` of a grammar and of biases; the grammar begins after the reasoning, if the answer has some.

    Attributes:
        matcher: follows the grammar; None: biases alone. bias: (V,) added to logits, or None.
        thinking: whether the answer begins inside a `<think>`. param: of the request that holds the grammar.
    """

    tokenizer: Tokenizer
    size: int
    matcher: Any = None
    bias: Tensor | None = None
    thinking: bool = False
    param: str = ""
    _read: list[int] = field(factory=list)
    _begin: int = 0

    def copy(self) -> Guided:
        """Another one that has read nothing."""
        matcher = None if self.matcher is None else self.matcher.deep_copy()
        return Guided(self.tokenizer, self.size, matcher, self.bias, self.thinking, self.param)

    def allowed(self, answer: Sequence[int]) -> Tensor | None:
        """(V,) bool, or floats where there are biases; None while the reasoning goes on."""
        if self.matcher is None or not self._begun(answer):
            return self.bias
        own = list(answer[self._begin :])
        if own[: len(self._read)] != self._read:
            self.matcher.reset()
            self._read = []
        for token in own[len(self._read) :]:
            if not self.matcher.consume_token(token):
                raise _unusable(self.matcher, self.param)
            self._read.append(token)
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little", count=min(self.size, 8 * len(bits))).astype(bool)
        mask = np.pad(mask, (0, self.size - len(mask)))
        if self.matcher.is_error():
            raise _unusable(self.matcher, self.param)
        allowed = torch.from_numpy(mask)
        return allowed if self.bias is None else self.bias.masked_fill(~allowed, -torch.inf)

    def _begun(self, answer: Sequence[int]) -> bool:
        if not self.thinking or self._begin:
            return True
        if CLOSE in self.tokenizer.decode(answer[-16:]):
            self._begin = len(answer)
        return bool(self._begin)


def guided(
    grammars: Grammars, grammar: tuple[str, str] | None, bias: Mapping[str, float] | None, prefix: str
) -> Guided | None:
    """The constraint of a request, or None.

    Args:
        grammar: and the parameter that holds it. prefix: what counts as answered already.

    Raises:
        Failure: a grammar or a bias that does not fit.
    """
    if grammar is None and not bias:
        return None
    added = None
    if bias:
        added = torch.zeros(grammars.size)
        for text, value in bias.items():
            number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
            if not 0 <= number < grammars.size or not -100 <= value <= 100:
                what = f"logit_bias: {text!r}: {value} does not fit: tokens are 0 to {grammars.size - 1}, "
                raise Failure(400, f"{what}biases -100 to 100", param="logit_bias", code="invalid_value")
            added[number] = value
    matcher = None if grammar is None else grammars.matcher(*grammar)
    thinking = OPEN in prefix and CLOSE not in prefix
    param = "" if grammar is None else grammar[1]
    return Guided(grammars.pipeline.tokenizer, grammars.size, matcher, added, thinking, param)


def grammar_of(kind: str, value: Any, param: str) -> tuple[str, str]:
    """A grammar as llguidance writes it, and the parameter it came from.

    Args:
        kind: "json_schema", "regex", "choice" or "grammar" (Lark, or llama.cpp's GBNF).

    Raises:
        Failure: it is none.
    """
    try:
        if kind == "json_schema":
            return llguidance.LLMatcher.grammar_from_json_schema(value, TIGHT), param
        if kind == "choice":
            if not value or not all(isinstance(one, str) for one in value):
                raise ValueError("expected a list of texts")
            return llguidance.grammar_from("choice", json.dumps(value)), param
        return llguidance.grammar_from("regex" if kind == "regex" else "grammar", value), param
    except (ValueError, TypeError) as error:
        raise Failure(400, f"{param}: {error}", param=param, code="invalid_grammar") from None
