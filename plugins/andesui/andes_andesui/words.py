"""Words of an interface: usual labels, real words, and words that nobody has seen; each word is of train or of test."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

from attrs import field, frozen

from andes_sdk.errors import InputError

HELD = 10
"""Percent of all words that only test applications show."""


def held_out(word: str) -> bool:
    """Whether only test applications may show a word; the same for every seed, and for upper and lower case."""
    return hashlib.blake2b(word.casefold().encode(), digest_size=2).digest()[0] * 100 < HELD * 256


@frozen
class Language:
    """What pages of one language are written with.

    Attributes:
        labels: what usual controls say, by what they do.
        syllables: joined to made words; else `letters` are.
        lengths: how many syllables or letters a made word has, least and most.
    """

    code: str
    words: tuple[str, ...]
    labels: dict[str, str]
    names: tuple[str, ...] = ()
    syllables: tuple[str, ...] = ()
    endings: tuple[str, ...] = ("",)
    lengths: tuple[int, int] = (2, 4)
    right_to_left: bool = False

    def made(self, random: Random) -> str:
        """A word that is in no dictionary but by chance."""
        count = random.randint(*self.lengths)
        word = "".join(random.choice(self.syllables) for _ in range(count))
        return word + (random.choice(self.endings) if random.random() < 0.5 else "")


@cache
def languages() -> dict[str, Language]:
    """All languages by their codes."""
    data = tomllib.loads((Path(__file__).parent / "languages.toml").read_text(encoding="utf-8"))
    english = tuple(data["en"]["names"].split())
    return {
        code: Language(
            code,
            tuple(part["words"].split()),
            part["labels"],
            tuple(part.get("names", "").split()) or english,
            tuple(part["syllables"].split()) if "syllables" in part else tuple(part["letters"]),
            tuple(part.get("endings", "").split()) or ("",),
            tuple(part.get("lengths", (2, 3))),
            part.get("right_to_left", False),
        )
        for code, part in data.items()
    }


def read_words(path: Path) -> tuple[str, ...]:
    """The words of a file, one a line.

    Raises:
        InputError: it cannot be read, or has too few words of one of the two parts.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        fix = "give a file of UTF-8 text with one word a line"
        raise InputError("words cannot be read", who=str(path), why=str(error), fix=fix) from None
    found = tuple(dict.fromkeys(word for line in lines if (word := " ".join(line.split()))))
    test = sum(map(held_out, found))
    if min(test, len(found) - test) < 10:
        why = f"{len(found) - test} of them are for training, {test} for tests; a word's hash decides"
        raise InputError("too few words", who=str(path), why=why, fix="give a few hundred words")
    return found


@frozen
class Words:
    """Draws texts of one language and one part.

    Attributes:
        test: draw only words that are held out; else only others. Usual labels are in both parts.
        usual: how often a control says what such controls usually say.
        invented: how often a word is made up.
        own: words of the user in place of the language's.
    """

    language: Language
    random: Random
    test: bool = False
    usual: float = 0.5
    invented: float = 0.4
    own: Sequence[str] = ()
    pool: tuple[str, ...] = field(init=False)

    @pool.default
    def _pool(self) -> tuple[str, ...]:
        return _part(tuple(self.own) or self.language.words, self.test)

    def word(self) -> str:
        """One word, as it is written within a sentence."""
        if not self.own and (not self.pool or self.random.random() < self.invented):
            while held_out(word := self.language.made(self.random)) != self.test:
                pass
            return word
        return self.random.choice(self.pool)

    def phrase(self, low: int = 1, high: int = 3) -> str:
        """Some words, written as a title, a sentence, in capitals or small."""
        text = " ".join(self.word() for _ in range(self.random.randint(low, high)))
        return self.random.choices((_title, _sentence, str.upper, str), (4, 5, 1, 1))[0](text)

    def label(self, action: str) -> str:
        """What a control with this purpose says; often another text."""
        usual = self.language.labels.get(action)
        return usual if usual and self.random.random() < self.usual else self.phrase(1, 2)

    def sentence(self, low: int = 4, high: int = 10) -> str:
        """A few words with a full stop."""
        return _sentence(" ".join(self.word() for _ in range(self.random.randint(low, high)))) + "."

    def name(self) -> str:
        """A person."""
        return f"{self.random.choice(self.language.names)} {_title(self.word())}"

    def number(self) -> str:
        """A count, an amount, a share."""
        value = self.random.randint(0, 10 ** self.random.randint(1, 5))
        return self.random.choice((f"{value}", f"{value:,}", f"{value / 100:.2f}", f"{value % 101}%"))

    def price(self) -> str:
        """An amount of money."""
        value = self.random.randint(50, 99_999) / 100
        return self.random.choice((f"${value:.2f}", f"{value:.2f} €", f"£{value:.0f}", f"¥{value * 100:.0f}"))

    def time(self) -> str:
        """A time of day."""
        return f"{self.random.randint(0, 23):02}:{self.random.randint(0, 59):02}"

    def date(self) -> str:
        """A day."""
        year, month, day = self.random.randint(2019, 2029), self.random.randint(1, 12), self.random.randint(1, 28)
        return self.random.choice((f"{year}-{month:02}-{day:02}", f"{day}.{month}.{year}", f"{month}/{day}/{year}"))


@cache
def _part(words: tuple[str, ...], test: bool) -> tuple[str, ...]:
    return tuple(word for word in words if held_out(word) == test)


def _title(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
