"""The byte-level BPE of the `tokenizers` library, built when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from andes_sdk.errors import CheckpointError, InputError

from .lazy import Lazy

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Bpe:
    """Text to ids and back. A copy builds its own vocabulary.

    The library would copy it, and forget that written-out special tokens are text.
    """

    def __init__(self, build: Callable[[], Tokenizer], source: str) -> None:
        """`build` can be pickled; `source` is named in errors."""
        self._library, self._source = Lazy(build), source

    @property
    def built(self) -> bool:
        """Whether the vocabulary has been built."""
        return self._library.built

    def encode(self, text: str) -> list[int]:
        """Added tokens written out in the text stay text. Raises InputError for what is not valid Unicode."""
        try:
            return self._library.get().encode(text, add_special_tokens=False).ids
        except (UnicodeError, TypeError) as error:
            raise InputError("text that is not valid Unicode", who=self._source, why=str(error)) from error

    def decode(self, ids: Sequence[int]) -> str:
        """All of these ids, added tokens written out."""
        return self._library.get().decode(ids, skip_special_tokens=False)


def read_library(read: Callable[[], bytes], what: str, who: str) -> Tokenizer:
    """The content of a tokenizer.json -> the library's tokenizer.

    Raises:
        CheckpointError: the library refuses it (`what` and `who` say it), or `read` raises one.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(read())
    except CheckpointError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(what, who=who, why=str(error)) from error


def switch_off(tokenizer: Tokenizer) -> None:
    """Take every added token written out in a text for text, whether or not it is marked "special"."""
    added = list(tokenizer.get_added_tokens_decoder().values())
    for token in added:
        token.special = True
    tokenizer.add_special_tokens(added)
    tokenizer.encode_special_tokens = True


def size_of(tokenizer: Tokenizer) -> int:
    """One more than the highest id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
