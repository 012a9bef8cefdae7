"""What of a text says something: two texts with the same words are the same to the filters."""

from __future__ import annotations

import unicodedata

_MARKS, _WIDE = ".,;:!?", "…。、，；：！？।॥؟،؛¿¡•‧"
_QUOTES = dict.fromkeys("‘’‚‛", "'") | dict.fromkeys("“”„‟«»", '"')
_DASHES = dict.fromkeys("‐‑‒–−", "-") | dict.fromkeys("―", "—")
_SAME = str.maketrans({**_QUOTES, **_DASHES})
_JOINERS = "\u200c\u200d"


def normalised(text: str) -> str:
    """A text in lower case, one space between words, without the punctuation that only divides or ends sentences.

    Letters, marks (vowel signs), numbers and symbols stay, by their Unicode category. So does punctuation that touches
    what it belongs to: points and signs before and within numbers, hyphens and apostrophes within words, `!` after a
    number, brackets at numbers, symbols, single letters or names, and everything that does not divide sentences, such
    as `%`, `#`, `/` and `*`. A text of nothing but punctuation stays as it is.
    """
    plain = unicodedata.normalize("NFC", text).lower().translate(_SAME)
    plain = "".join(c for c in plain if c in _JOINERS or unicodedata.category(c) != "Cf")
    kept = "".join(c if _says_something(plain, i) else " " for i, c in enumerate(plain))
    return " ".join(kept.split()) or " ".join(plain.split())


def _says_something(text: str, at: int) -> bool:
    c = text[at]
    if not unicodedata.category(c).startswith("P"):
        return unicodedata.category(c) != "Cc"
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if c in _WIDE:
        return _number(before) and _number(after)
    if c in _MARKS:
        return _belongs(after) or (c == "!" and (_number(before) or before == ")"))
    if c in "'\"":
        alone = not _belongs(text[at - 2 : at - 1])  # a prime, as in f'
        return _belongs(before) and (_belongs(after) or _number(before) or alone)
    if c == "-":
        return _sign(text, at)
    if c == "—":
        return False
    if unicodedata.category(c) in ("Ps", "Pe"):
        inner, outer, step = (after, before, 1) if unicodedata.category(c) == "Ps" else (before, after, -1)
        further = text[at + 2 * step : at + 2 * step + 1] if at + 2 * step >= 0 else ""
        return not inner.isalpha() or _belongs(outer) or not _belongs(further)
    return True


def _sign(text: str, at: int) -> bool:
    """Whether a hyphen is more than a dash between words: it touches one, or stands at a number, symbol or letter."""
    if _belongs(text[at - 1 : at]) or _belongs(text[at + 1 : at + 2]) or text[at + 1 : at + 2] == ".":
        return True
    sides = text[max(0, at - 40) : at].split()[-1:], text[at + 1 : at + 41].split()[:1]
    return any(side and (len(side[0]) == 1 or not side[0][0].isalpha()) for side in sides)


def _belongs(c: str) -> bool:
    return c != "" and unicodedata.category(c)[0] in "LMNS"


def _number(c: str) -> bool:
    return c != "" and unicodedata.category(c)[0] == "N"
