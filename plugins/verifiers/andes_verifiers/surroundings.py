"""What may go around an answer without changing what it says."""

from __future__ import annotations

import functools
import re
import unicodedata

_MEANT = ("<super>", "<sub>", "<fraction>")
_SAME = str.maketrans(dict.fromkeys("‐‑‒–−", "-") | dict.fromkeys("‘’", "'") | dict.fromkeys("“”„", '"'))
_OPENING = {"(": ")", "[": "]", "{": "}", "（": "）", "«": "»", "「": "」", "『": "』", "《": "》", "【": "】"}
_CLOSING = {close: opening for opening, close in _OPENING.items()}
_ROUNDS = 16
_SENTENCE = ".,;:?。，、！？：；।—… "
_MARKS = ("***", "**", "*", "_", "```", "`", "~~", "$$", "$", '"', "'")
_LATEX = (("\\(", "\\)"), ("\\[", "\\]"))
_BEFORE = re.compile(r"(?:[,;:¿¡。，、：；]|=(?![=>])|—)+ ?|\*\* |[-*•·] (?=[^\W\d]{2})|\.{2,}")
_AFTER = re.compile(r'(?:(?<![\d)\]}!])!|(?<=[^\W\d_])"|(?<=\w)\*\*| \*\*)\Z')


def bare(text: str) -> str:
    """One space between words, one width, and nothing around that carries no meaning; that alone stays."""
    text = " ".join(_one_width(text).translate(_SAME).split())
    for _ in range(_ROUNDS):
        less = _less(text)
        if less in ("", text):
            break
        text = less
    return text


@functools.lru_cache(maxsize=1024)
def _of_one_width(c: str) -> str:
    tag, *codes = unicodedata.decomposition(c).split() or [""]
    if not tag.startswith("<") or tag in _MEANT:
        return c
    return "".join(_of_one_width(chr(int(code, 16))) for code in codes)


def _one_width(text: str) -> str:
    """NFKC, but raised, lowered and fractional signs stay: `10²` is not `102`."""
    if text.isascii():
        return text
    text = "".join(map(_of_one_width, unicodedata.normalize("NFC", text)))
    return unicodedata.normalize("NFC", text)


def _less(text: str) -> str:
    """A text without one thing at its ends."""
    for opening, closing in _LATEX:
        if text.startswith(opening) and text.endswith(closing) and closing not in text[2:-2]:
            return text[2:-2].strip()
    for mark in _MARKS:
        inside = text[len(mark) : -len(mark)]
        if text == mark + inside + mark and inside.strip() and mark[0] not in inside:
            return inside.strip()
    if match := _BEFORE.match(text):
        return text[match.end() :]
    if (less := text.rstrip(_SENTENCE)) != text:
        return less
    if match := _AFTER.search(text, max(0, len(text) - 4)):
        return text[: match.start()].rstrip()
    return _unbracketed(text)


def _unbracketed(text: str) -> str:
    """Without a pair of brackets around all of it, if no comma makes it a list, or one that belongs to no other."""
    opened: list[int] = []
    for index, c in enumerate(text):
        if c in _OPENING:
            opened.append(index)
        elif c in _CLOSING and (not opened or text[opened.pop()] != _CLOSING[c]):
            alone = index == len(text) - 1 and not any(o in text for o in _OPENING)
            return text[:-1].rstrip() if alone else text
        elif c in _CLOSING and index == len(text) - 1 and not opened and _wraps(text):
            return text[1:-1].strip()
    return text


def _wraps(text: str) -> bool:
    depth = 0
    for index, c in enumerate(text):
        depth += (c in _OPENING) - (c in _CLOSING)
        if depth == 0:
            return index == len(text) - 1 and not re.search("[,;，；、]", text)
    return False
