"""Rewards that compare text: exact, numeric, choice, regex. Each gives 1.0 or 0.0."""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError

from .answers import final_answer, misfit, truth
from .letters import chosen
from .numerals import values_of
from .surroundings import bare


@frozen
class Exact:
    """1.0 where the final answer equals the truth, or one of several, but for case, space, width and its surroundings.

    Surroundings are sentence punctuation (`red.` `: red`), a pair of quotes, brackets or Markdown around all of it
    (`"red"` `(red)` `**red**` `$5$`), and a lone closing bracket. Everything else is meant: signs and points before
    (`-5` `.5` `#5` `$5`), signs after (`50%` `C++` `5!`), raised digits, and brackets around a list, such as `(0, 1]`.
    All dashes of the width of a hyphen or minus sign are one character, and so are straight and curly quotes.
    """

    ignore_case: bool = True
    name: str = "exact"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The truth is a text or number, or a list of those that are right. No answer is never right."""
        right = truth(sample, self.name)
        options = right if isinstance(right, Sequence) and not isinstance(right, str) else [right]
        said = self.normalised(final_answer(answer))
        return float(bool(said) and any(said == self.normalised(str(option)) for option in options))

    def normalised(self, text: str) -> str:
        """What of a text is compared."""
        text = bare(text)
        return text.casefold() if self.ignore_case else text


@frozen
class Numeric:
    """1.0 where the last number of the final answer is the truth within a share of it.

    Reads `1,200`, `1 200`, `$3`, `1/2`, `3 1/2`, `1½`, `10²`, `10^2`, `6e3`, `6 × 10^3`, the same in LaTeX, and per
    cent: `50%` is 0.5 on both sides. A sign belongs to a number if it stands directly before it, and no word or number
    directly before the sign. What is not one number (`3-4`, `2 + 3`, `12:30`, `3,14`, `3 or 4`, `√2`, `2π`, `1.2.3`)
    has no value, so it scores 0.0 where it stands last. Numbers after "not" do not count.
    """

    tolerance: float = 1e-6
    name: str = "numeric"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The sample's own `tolerance` goes before the plugin's.

        Raises:
            InputError: the truth is not one finite number, or the tolerance is no share.
        """
        wanted, share = self._wanted(truth(sample, self.name)), self._share(sample.get("tolerance"))
        said = list(values_of(final_answer(answer)))
        # a few units of rounding are no error, even where the tolerance is 0
        return float(bool(said) and math.isclose(said[-1], wanted, rel_tol=1e-12, abs_tol=share * abs(wanted)))

    def _wanted(self, right: Any) -> float:
        try:
            numbers = [float(right)] if isinstance(right, int | float) else list(values_of(str(right)))
        except OverflowError:
            numbers = []
        if isinstance(right, bool) or len(numbers) != 1 or not math.isfinite(numbers[0]):
            raise misfit(self.name, right, "one number")
        return numbers[0]

    def _share(self, own: Any) -> float:
        if own is None:
            return self.tolerance
        if not isinstance(own, int | float) or isinstance(own, bool) or not 0 <= own < math.inf:
            what = f"the sample's tolerance is {repr(own)[:80]}"
            raise InputError(what, who=self.name, fix="write a share of the truth, such as 0.05, or leave it out")
        return float(own)


@frozen
class Choice:
    """1.0 where the answer chooses the right letter of a multiple-choice question, and no other.

    First what stands alone or at the beginning counts: `B`, `(B)`, `B. a dog`, `B, because …`. Then what is called the
    answer: "answer: B", "I choose B", "it is B", "B is correct", a letter on a line of its own. Then "option B" and
    `(B)` anywhere. Last the text of an option, where the sample lists its `choices`. `A` and `I` are letters only where
    they cannot be words. Options that are denied ("not B", "B is wrong") do not count. An answer that names several
    others, or a letter with another option's text, chooses none.
    """

    name: str = "choice"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The truth is a letter A-Z; `choices` in the sample are the options' texts from A on.

        Raises:
            InputError: the truth is no letter, or none of the choices, or these are no list of up to 26.
        """
        choices = sample.get("choices") or ()
        if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) > 26:
            why, fix = f"{repr(choices)[:80]} is no list of up to 26 texts", "write a list, or leave it out"
            raise InputError("the sample's choices cannot be used", who=self.name, why=why, fix=fix)
        right = str(truth(sample, self.name)).strip().upper()
        letters = string.ascii_uppercase[: len(choices) or 26]
        if len(right) != 1 or right not in letters:
            raise misfit(self.name, right, f"one letter from A to {letters[-1]}")
        return float(chosen(final_answer(answer), choices) == right)


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
