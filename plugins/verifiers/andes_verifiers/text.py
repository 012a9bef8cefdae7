"""Rewards that compare text: exact, numeric, choice, regex. Each gives 1.0 or 0.0."""

from __future__ import annotations

import functools
import math
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError

from .answers import final_answer, misfit, truth

_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?\s?[$€£¥]?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.\d*|\.\d+)?(?:[eE][-+]?\d+)?"
    r"(?:\s?/\s?\d+(?:\.\d+)?)?\s?%?"
)
_SURROUNDINGS = string.punctuation + string.whitespace + "。，、！？：；“”‘’（）"
_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.):,](?:\s.*)?|\)\s.*)?", re.DOTALL)
_NAMED = re.compile(r"\b(?:option|choice|answer)(?:\s+is)?\s*:?\s*\(?([A-Z])\b(?!')", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([A-Z])\)")


@frozen
class Exact:
    """1.0 where the final answer equals the truth, or one of several, but for space, width and outer punctuation."""

    ignore_case: bool = True
    name: str = "exact"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The truth is a text or number, or a list of those that are right."""
        right = truth(sample, self.name)
        options = right if isinstance(right, Sequence) and not isinstance(right, str) else [right]
        said = self.normalised(final_answer(answer))
        return float(any(said == self.normalised(str(option)) for option in options))

    def normalised(self, text: str) -> str:
        """NFKC, one space between words, no punctuation around them; what is punctuation alone stays."""
        text = " ".join(unicodedata.normalize("NFKC", text).split())
        text = text.strip(_SURROUNDINGS) or text
        return text.casefold() if self.ignore_case else text


@frozen
class Numeric:
    """1.0 where the last number of the final answer is the truth within a share of it.

    Reads thousands separators, currency signs, exponents, fractions `1/2` and per cent (`50%` is 0.5 on both sides).
    """

    tolerance: float = 1e-6
    name: str = "numeric"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The sample's own `tolerance` goes before the plugin's."""
        right = truth(sample, self.name)
        numbers = [float(right)] if isinstance(right, int | float) else numbers_of(str(right))
        if isinstance(right, bool) or len(numbers) != 1 or not math.isfinite(numbers[0]):
            raise misfit(self.name, right, "one number")
        said = numbers_of(final_answer(answer))
        share = float(sample.get("tolerance", self.tolerance))
        # a few units of rounding are no error, even where the tolerance is 0
        return float(bool(said) and math.isclose(said[-1], numbers[0], rel_tol=1e-12, abs_tol=share * abs(numbers[0])))


def numbers_of(text: str) -> list[float]:
    """Every finite number in a text, in order."""
    found = []
    for match in _NUMBER.finditer(unicodedata.normalize("NFKC", text).replace("\u2044", "/")):
        raw = re.sub(r"[\s,$€£¥]", "", match[0]).replace("−", "-")
        if not any(c.isdigit() for c in raw):
            continue
        top, _, bottom = raw.rstrip("%").partition("/")
        if bottom and float(bottom) == 0.0:
            continue
        value = float(top) / float(bottom or 1) / (100 if raw.endswith("%") else 1)
        if math.isfinite(value):
            found.append(value)
    return found


@frozen
class Choice:
    """1.0 where the answer chooses the right letter of a multiple-choice question.

    Understands `B`, `(B)`, `B. a dog`, "option B", and the text of an option where the sample lists its `choices`.
    An answer that names several options in brackets chooses none.
    """

    name: str = "choice"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The truth is a letter A-Z; `choices` in the sample are the options' texts from A on."""
        right = str(truth(sample, self.name)).strip().upper()
        if not re.fullmatch("[A-Z]", right):
            raise misfit(self.name, right, "one letter from A to Z")
        return float(self.chosen(final_answer(answer), sample.get("choices", ())) == right)

    def chosen(self, text: str, choices: Sequence[str] = ()) -> str:
        """The letter that a text chooses, or nothing."""
        text = text.strip().strip("*").strip()
        if len(text) == 1:
            text = text.upper()
        letters = set(_BRACKETED.findall(text))
        if len(letters) > 1:
            return ""
        if match := _LETTER.fullmatch(text):
            return match[1]
        if named := _NAMED.findall(text):
            return str(named[-1]).upper()
        if letters:
            return str(letters.pop())
        plain = Exact().normalised
        same = [i for i, choice in enumerate(choices) if plain(str(choice)) == plain(text)]
        return string.ascii_uppercase[same[0]] if len(same) == 1 else ""


@frozen
class Regex:
    """1.0 where the sample's pattern is found in the final answer; anchor it with `^` and `$` for the whole."""

    name: str = "regex"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The pattern stands under `regex`, in Python's syntax."""
        if not isinstance(pattern := sample.get(self.name), str):
            raise InputError("the sample has no 'regex'", who=self.name, fix='add "regex": "…" to the sample')
        return float(_compiled(pattern).search(final_answer(answer)) is not None)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError("the sample's pattern cannot be read", who="regex", why=str(error), fix=pattern) from None
