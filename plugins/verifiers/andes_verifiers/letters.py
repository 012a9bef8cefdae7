"""Which option of a multiple-choice question a text chooses."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence

from .surroundings import bare

_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}|\\[()\[\]]|[*`$\"“”]")
_END = (
    r"(?=\s*(?:$|[.,;:!?)\]。，、；：！？—–/&(\n]|-\s|'(?!\w)|"
    r"(?:because|since|as|for|and|or|not|over|is|was|which|that)\b))"
)
"""What may follow a letter that could be a word: `A` and `I` are words before any other."""
_NO_WORD = r"(?![A-Za-z0-9'’+#*_-])"
_ANY = rf"[\(\[]?(?P<{{0}}>[B-HJ-Z]{_NO_WORD}|[AI]{_NO_WORD}{_END})[\)\]]?"
_SURE = rf"[\(\[]?(?P<{{0}}>[A-Z]){_NO_WORD}{_END}[\)\]]?"
_SMALL = rf"[\(\[]?(?P<{{0}}>[a-z]){_NO_WORD}(?=\s*(?:$|[.,;:!?)\]。，、\n]|(?:is|because|since)\b))[\)\]]?"
_IS = r"(?:\s*(?:is|would be|must be|should be|was)\b|\s*[:=]|\s*(?:是|为|應為|应为)){0,2}\s*[:：]?\s*"
_ALONE = re.compile(r"[\s(\[{'.,:]*([A-Za-z])[\s)\]}'.,:;!?。，、]*")
_LABEL = re.compile(
    r"\s*(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])(?:[.):。、](?=\s|$)|(?=\s+[-–—]\s)|(?=\s*\n|\s*$)))"
)
_LABELS = re.compile(r"(?m:^)\s*[\[(]?([A-Z])[\])]?[.):]\s")
_LABEL_COMMA = re.compile(r"\s*([A-HJ-Z])(?:,|，|\s+(?:because|since|as)\b)")
_VERDICTS = [
    re.compile(p)
    for p in (
        rf"(?i:\b(?:answer|solution))(?i:{_IS})(?i:(?:option|choice)\s+)?(?:{_ANY.format('a')}|{_SMALL.format('b')})",
        rf"(?:答案|选择|选|選)(?:{_IS})(?:选项)?{_ANY.format('a')}",
        rf"(?i:\b(?:is|be|it['’]s|choose|chose|pick|select|going with|go with|but|so|thus|hence|therefore),?\s*:?\s*)"
        rf"(?i:(?:option|choice)\s+)?{_SURE.format('a')}",
        rf"(?<![\w'’]){_SURE.format('a')}\s+(?i:is|was|seems)\s+(?i:the\s+)?(?i:correct|right|best|answer)\b",
        rf"(?m:^)\s*{_SURE.format('a')}\s*[.。]?\s*(?m:$)",
    )
]
_MENTIONS = [
    re.compile(p)
    for p in (
        r"(?i:\b(?:option|choice)s?)(?:\s*(?i:is)\b)?\s*[:：]?\s*"
        rf"(?:[\(\[]?(?P<a>[A-Z]){_NO_WORD}[\)\]]?|{_SMALL.format('b')})",
        r"选项\s*(?P<a>[A-Z])(?![A-Za-z0-9])",
        r"(?<![\w)\]])[\(\[](?P<a>[A-Z])[\)\]]",
    )
]
_MORE = re.compile(
    rf"[\)\]]?\s*(?:\bor\b|\band\b|/|,|&|、|，|或|和)\s*(?i:(?:option|choice)\s+)?(?:{_ANY.format('a')})"
)
_DENIED = re.compile(
    r"(?i:\b(?:not|nor|neither|except|excluding|without|other than|rather than|instead of|rules? out|ruled out|"
    r"eliminated?|excluded?)|n['’]t|不是|不选|除了)\s*(?i:be\s+|the\s+|for\s+)?[\(\[]?$"
)
_REFUTED = re.compile(
    r"[\)\]]?\s*(?i:(?:is|was|are|looks|seems)\s+(?:clearly\s+|definitely\s+|also\s+)?(?:wrong|incorrect|false|not|out)\b|"
    r"(?:is|was|ca|does|would)n['’]t\b|cannot\b|不对|错)"
)

_LED = re.compile(
    r"^\W*(?:the )?(?:correct |right |final |best )?(?:answer|option|choice)\b(?: is)?\s*:?", re.IGNORECASE
)


def chosen(text: str, choices: Sequence[str] = ()) -> str:
    """The letter that a text chooses, or nothing."""
    text = _LATEX.sub(lambda m: m[1] or "", unicodedata.normalize("NFKC", text)).strip()
    if alone := _ALONE.fullmatch(text):
        return _of_these([alone[1].upper()], choices)
    if said := _by_text(text, choices):
        return said
    found = _label(text) or _found(_VERDICTS, text) or _found(_MENTIONS, text)
    letter = _of_these([one for one, _ in found], choices)
    if letter:
        rest = "".join(text[: spans[0]] + " " + text[spans[1] :] for _, spans in found[:1])
        other = _by_text(_unled(rest), choices)
        return letter if other in ("", letter) else ""
    return "" if found else _by_text(_unled(text), choices)


def _of_these(letters: Sequence[str], choices: Sequence[str]) -> str:
    """The one letter, if there is one only; letters that no option has are none."""
    known = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase
    named = {letter for letter in letters if letter in known}
    return named.pop() if len(named) == 1 else ""


Found = list[tuple[str, tuple[int, int]]]


def _label(text: str) -> Found:
    """A letter that the text begins with, and others that are named beside it."""
    match = _LABEL.match(text) or _LABEL_COMMA.match(text)
    if match is None or _REFUTED.match(text, match.end()):
        return []
    letter = next(group for group in match.groups() if group).upper()
    end = match.end() - (text[match.end() - 1 : match.end()] in ",，")
    found = [(letter, match.span()), *_more(text, end)]
    found += [(m[1], m.span()) for m in _LABELS.finditer(text, end)]
    found += [(m[1], m.span()) for m in [_ALONE.fullmatch(text, end)] if m]
    return found + [one for one in _found([*_VERDICTS, *_MENTIONS], text) if one[1][0] >= end]


def _found(patterns: Sequence[re.Pattern[str]], text: str) -> Found:
    found: Found = []
    for pattern in patterns:
        for match in pattern.finditer(text):
            group = "a" if match["a"] else "b"
            start, end = match.span(group)
            if _DENIED.search(text[max(0, match.start() - 30) : match.start()]):
                continue
            if _DENIED.search(text[max(0, start - 30) : start]) or _REFUTED.match(text, end):
                continue
            found += [(match[group].upper(), match.span()), *_more(text, end)]
    return found


def _more(text: str, end: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Letters that follow with "or", "and" or a comma."""
    while match := _MORE.match(text, end):
        yield match["a"], match.span()
        end = match.end("a")


def _unled(text: str) -> str:
    """Without "answer:" and the like before it."""
    return _LED.sub("", text)


def _by_text(text: str, choices: Sequence[str]) -> str:
    """The letter of the one option whose text this is."""
    said = bare(text).casefold()
    same = []
    for letter, choice in zip(string.ascii_uppercase, choices, strict=False):
        own = re.sub(rf"^\s*(?:\({letter}\)|{letter}[.):])\s*(?=\S)", "", str(choice))
        if said and said in (bare(own).casefold(), bare(str(choice)).casefold()):
            same.append(letter)
    return same[0] if len(same) == 1 else ""
