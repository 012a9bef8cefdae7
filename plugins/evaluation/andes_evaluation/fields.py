"""What a row means, whichever of the layouts it came in: question, options, right answer, pictures."""

from __future__ import annotations

import ast
import base64
import binascii
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError

LETTERS = string.ascii_uppercase
_NUMBERED = re.compile(r"image_(\d+)")


@frozen
class Reader:
    """One row, and where it stands.

    Attributes:
        row: as it was read. where: file and row, for errors. folder: what paths of pictures are relative to.
    """

    row: Mapping[str, Any]
    where: str
    folder: Path

    def has(self, name: str) -> bool:
        """Whether there is something under that name."""
        value = self.row.get(name)
        return value is not None and not (isinstance(value, str) and value == "")

    def get(self, *names: str) -> Any:
        """The first of these that is there, or None."""
        return next((self.row[name] for name in names if self.has(name)), None)

    def need(self, *names: str) -> Any:
        """The first of these that is there.

        Raises:
            InputError: none is.
        """
        value = self.get(*names)
        if value is None:
            why = f"it has {', '.join(self.row) or 'no field'}"
            raise self.wrong(f"lacks {' or '.join(map(repr, names))}", why)
        return value

    def text(self, *names: str) -> str:
        """As `need`, as text."""
        return str(self.need(*names))

    def wrong(self, what: str, why: str = "") -> InputError:
        """An error of this row."""
        return InputError(f"the row {what}", who=self.where, why=why, fix="give the task's own data")

    # ------------------------------------------------------------ choices

    def options(self) -> dict[str, str]:
        """Options by letter, in order; none for an open question."""
        if (listed := self.get("options", "choices", "candidates")) is not None:
            texts = plain_list(listed)
            return {letter: str(text) for letter, text in zip(LETTERS, texts, strict=False)}
        for form in ("{}", "choice_{}"):
            if any(self.has(form.format(letter)) for letter in "AB"):
                found = {c: self.text(form.format(c)) for c in LETTERS if self.has(form.format(c))}
                return {c: text for c, text in found.items() if text != "nan"}  # so pandas wrote what is not there
        numbered = [self.row[f"option{i}"] for i in range(10) if self.has(f"option{i}")]
        return dict(zip(LETTERS, (str(v) for v in numbered if v != "N/A"), strict=False))

    def letter(self, options: Mapping[str, str], *names: str) -> str:
        """The right letter: written as `B`, `(B)`, as an index from 0, or as the option's text.

        Raises:
            InputError: none of these.
        """
        given = self.need(*(names or ("answer", "correct_option", "correct_choice", "label")))
        text = str(given).strip()
        bare = text.strip("()").rstrip(".").strip()
        if len(bare) == 1 and bare.upper() in LETTERS:
            return bare.upper()
        if bare.isdigit() and int(bare) < len(options):
            return LETTERS[int(bare)]
        same = [letter for letter, option in options.items() if option.strip() == text]
        if len(same) != 1:
            raise self.wrong(f"has the answer {text[:60]!r}", f"it is none of {', '.join(options) or 'no options'}")
        return same[0]

    def answers(self, *names: str) -> list[str]:
        """The right answers: one, a list, or a list written as text.

        Raises:
            InputError: there is none.
        """
        found = [str(value) for value in plain_list(self.need(*(names or ("answers", "answer", "label"))))]
        if not found:
            raise self.wrong("has no answer")
        return found

    # ------------------------------------------------------------ pictures

    def pictures(self) -> list[bytes]:
        """Encoded pictures in order.

        Raises:
            InputError: one that cannot be read.
        """
        for name in ("image", "images", "image_list", "decoded_image", "image_path", "imgpath", "img_filename"):
            # a set of mathematics has the picture's name as `image`, and the picture beside it
            if self.has(name) and not (name == "image" and self.has("decoded_image")):
                return [self._picture(one, name) for one in plain_list(self.row[name])]
        matches = sorted((int(m[1]), m[0]) for name in self.row if (m := _NUMBERED.fullmatch(name)))
        return [self._picture(self.row[name], name) for _, name in matches if self.has(name)]

    def _picture(self, value: Any, name: str) -> bytes:
        if isinstance(value, bytes | bytearray):
            return bytes(value)
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            value = value.get("path")
        if not isinstance(value, str):
            raise self.wrong(f"has no picture under {name!r}", f"got {type(value).__name__}")
        if value.startswith("data:"):
            value = value.partition(",")[2]
        elif (path := _file(self.folder, value)) is not None:
            return path.read_bytes()
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            why = f"there is no file {value[:80]!r} below {self.folder}"
            raise self.wrong(f"has a picture under {name!r} that cannot be read", why) from None


def _file(folder: Path, name: str) -> Path | None:
    try:
        return path if (path := folder / name).is_file() else None
    except (OSError, ValueError):  # too long for a name, or no name: it is a picture written as text
        return None


def plain_list(value: Any) -> list[Any]:
    """A list, a list written as text (`['a', 'b']`), or one value -> a list."""
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
    if isinstance(value, Mapping | str | bytes | bytearray) or not isinstance(value, Iterable):
        return [value]
    return list(value)
