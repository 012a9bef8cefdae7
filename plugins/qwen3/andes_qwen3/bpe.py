"""The byte-level BPE of the `tokenizers` library, built when it is first needed."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import CheckpointError

from .layout import NAME, Stated, read_layout, refuse_gone

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from andes_sdk.types import Files

_BUILDING = threading.Lock()
"""Of all objects, so that each can be copied and pickled."""


def _renew() -> None:
    """In a forked child: who held the lock may be a thread that the child does not have."""
    global _BUILDING
    _BUILDING = threading.Lock()


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_renew)


class LazyBpe:
    """A `tokenizers.Tokenizer` to come. Threads that need it at once wait for one of them.

    Attributes:
        tokenizer: None until it has been built.
    """

    def __init__(self, files: Files, stated: Stated) -> None:
        self._files, self._stated = files, stated
        self.tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        # the library would copy the vocabulary, and forget that written-out special tokens are text
        return {**self.__dict__, "tokenizer": None}

    def get(self) -> Tokenizer:
        """Encodes with every added token switched off, whether or not it is marked "special".

        Raises:
            CheckpointError: the files are damaged or gone, or hold other ids than they stated when they were opened.
        """
        if self.tokenizer is None:
            with _BUILDING:
                if self.tokenizer is None:
                    self.tokenizer = _build(self._files, self._stated)
        return self.tokenizer


def _build(files: Files, stated: Stated) -> Tokenizer:
    from tokenizers import Tokenizer

    refuse_gone(files, stated)
    try:
        tokenizer = Tokenizer.from_buffer(read_layout(files))
    except CheckpointError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError("not a tokenizer.json", who=files.where(NAME), why=str(error)) from error
    added = tokenizer.get_added_tokens_decoder()
    wanted = {token["id"]: token["content"] for token in stated.tokens}
    found = {number: token.content for number, token in added.items()}
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    if found != wanted or size != stated.size:
        ids = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        told = ", ".join(f"{n} is {found.get(n)!r}, not {wanted.get(n)!r}" for n in ids[:5])
        why = told or f"it has {size} ids, not {stated.size}"
        fix = "use the tokenizer that belongs to the weights, and leave its files alone while it is in use"
        raise CheckpointError("does not have the ids that it states", who=files.where(NAME), why=why, fix=fix)
    for token in added.values():
        token.special = True
    tokenizer.add_special_tokens(list(added.values()))
    tokenizer.encode_special_tokens = True
    return tokenizer
