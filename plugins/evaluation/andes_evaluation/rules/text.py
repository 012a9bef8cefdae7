"""Answers that are a few words or a number: relaxed accuracy, ANLS, VQA accuracy, containment."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import numpy as np

from .words import ARTICLES, CONTRACTIONS, NUMBERS

CLOSE = 0.05
"""Relative error that ChartQA lets pass (arXiv 2203.10244, section 5.1)."""
SIMILAR = 0.5
"""ANLS below which an answer scores 0 (Biten et al., arXiv 1905.13648)."""


def number_of(text: str) -> float | None:
    """A number as Python writes it; `12%` is 0.12."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(answer: str, truth: str, tolerance: float = CLOSE) -> float:
    """1.0 for a number within 5 % of the true one, or for the same text; as ChartQA."""
    said, right = number_of(answer), number_of(truth)
    if said is not None and right:
        return float(abs(said - right) / abs(right) <= tolerance)
    return float(answer.lower() == truth.lower())


def edit_distance(one: Sequence[object], other: Sequence[object]) -> int:
    """Insertions, deletions and replacements between two sequences (Levenshtein)."""
    long, short = _coded(one, other)
    steps = np.arange(len(long) + 1)
    row = steps.copy()
    for number, code in enumerate(short, 1):
        above = np.minimum(row[1:] + 1, row[:-1] + (long != code))
        # insertions: the least of all that stand before, one more for each step
        row = np.minimum.accumulate(np.concatenate(([number], above)) - steps) + steps
    return int(row[-1])


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """Length of the longest common subsequence."""
    long, short = _coded(one, other)
    row = np.zeros(len(long) + 1, dtype=np.int64)
    for code in short:
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], row[:-1] + (long == code)))
    return int(row[-1])


def _coded(one: Sequence[object], other: Sequence[object]) -> tuple[np.ndarray, np.ndarray]:
    """Both as numbers, the longer first."""
    codes: dict[object, int] = {}
    made = [np.array([codes.setdefault(x, len(codes)) for x in some], dtype=np.int64) for some in (one, other)]
    made.sort(key=len, reverse=True)
    return made[0], made[1]


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity to the nearest truth, 0.0 below 0.5; as DocVQA and InfoVQA.

    Texts are compared in lower case with single spaces, and measured as they were written.
    """
    said = " ".join(answer.strip().lower().split())
    best = 0.0
    for truth in truths:
        right = " ".join(truth.strip().lower().split())
        length = max(len(truth.upper()), len(answer.upper()))
        best = max(best, 1 - edit_distance(right, said) / length if length else 1.0)
    return best if best >= SIMILAR else 0.0


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Mean over the people asked of min(1, how many of the others gave this answer / 3); as TextVQA (VQA v2)."""
    said, given = vqa_text(answer), [vqa_text(truth) for truth in truths]
    if not given:
        return 0.0
    same = given.count(said)
    # a person who gave this answer has one fewer other who did
    return sum(min(1.0, (same - (one == said)) / 3) for one in given) / len(given)


_PERIOD = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"(?<=\d),+(?=\d)")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def vqa_text(text: str) -> str:
    """An answer as the VQA challenge compares it: lower case, no articles, digits for small numbers, contractions."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    cleaned, thousands = text, _COMMA.search(text) is not None
    for mark in _MARKS:
        loose = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if loose or thousands else " ")
    cleaned = _PERIOD.sub("", cleaned, count=32)  # the challenge's code stops after so many
    words = [NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def contains(answer: str, truth: str) -> float:
    """1.0 where the truth stands in the answer, in lower case and without full stops; as MTVQA."""
    said, right = (text.strip().lower().replace(".", "") for text in (answer, truth))
    return float(right in said)


def narrow(text: str) -> str:
    """Full-width ASCII as ASCII."""
    return "".join(chr(ord(c) - 0xFEE0) if "！" <= c <= "～" else " " if c == "\u3000" else c for c in text)


def ocr_contains(answer: str, truths: Sequence[str], *, formula: bool = False) -> float:
    """1.0 where one of the truths stands in the answer; as OCRBench.

    Args:
        formula: a handwritten formula: spaces do not count, and case does.
    """

    def plain(text: str) -> str:
        return text.strip().replace("\n", " ").replace(" ", "") if formula else ocr_text(text)

    said = plain(answer.strip())
    return float(any(plain(truth) in said for truth in truths))


def ocr_text(text: str) -> str:
    """Lower case, ASCII of one width, spaces for line feeds."""
    return narrow(text).lower().strip().replace("\n", " ")


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def unpunctuated(text: str) -> str:
    """Lower case without ASCII's punctuation, as an exact match of lmms-eval that ignores both."""
    return text.lower().translate(_PUNCTUATION)


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""A Chinese or Japanese sign, or a run of other letters and digits; marks are no words."""


def rouge_l(one: str, other: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), from 0.0 to 1.0.

    Each Chinese or Japanese sign is a word. Case and marks do not count. Two texts without a word score 1.0 if equal.
    """
    a, b = _WORD.findall(narrow(one).lower()), _WORD.findall(narrow(other).lower())
    return 2 * common(a, b) / (len(a) + len(b)) if a or b else float(one == other)
