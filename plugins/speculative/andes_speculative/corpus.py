"""A text file to look into: read whole, tokenised, and kept as a suffix automaton."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from andes_sdk.errors import ConfigError

from .automaton import SuffixAutomaton

if TYPE_CHECKING:
    from andes_sdk.types import Tokenizer

LARGEST = 8 << 20
"""Bytes: some 2 million tokens, which take ten seconds and 300 MB."""
FIX = "give a text file in UTF-8"


def problem(path: str) -> str:
    """What is wrong with a corpus file before it is read, or nothing."""
    if not os.path.isfile(path):
        return f"the corpus {path!r} is no file: {FIX}"
    if not (size := os.path.getsize(path)):
        return f"the corpus {path!r} is empty: {FIX}"
    return f"the corpus {path!r} has {size:,} bytes, more than {LARGEST:,}: cut it" if size > LARGEST else ""


def read_corpus(path: str, tokenizer: Tokenizer) -> SuffixAutomaton:
    """A corpus file as an automaton.

    Raises:
        ConfigError: it is not there, empty, too large, or no text.
    """
    if why := problem(path):
        raise ConfigError(why.partition(": ")[0], who="speculative.corpus", fix=why.partition(": ")[2])
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        raise ConfigError("the corpus cannot be read", who=path, why=str(error), fix=FIX) from None
    if "\0" in text:
        raise ConfigError("the corpus is no text", who=path, why="it holds zero bytes", fix=FIX)
    return SuffixAutomaton.of(tokenizer.encode(text))
