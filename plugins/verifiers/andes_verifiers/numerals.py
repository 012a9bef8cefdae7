"""Numbers in a text, as people and models write them.

A text is cut into chains: numbers, and what joins them directly. A chain of one number has its value; so has a power of
ten with its factor. Any other chain, such as `3-4`, `2 + 3`, `12:30` or `3 or 4`, is not one number: its value is NaN.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator

_DASHES = dict.fromkeys(map(ord, "‐‑‒–−"), "-")
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_LATEX = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname)\s*\{([^{}]*)\}", r"\1"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", "°"),
        (r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2"),
        (r"\\[dt]?frac\s*(\d)\s*(\d)(?!\d)", r" \1/\2"),
        (r"\\[dt]?frac\s*(?:\{[^{}]*\}\s*){0,2}", "√0 "),  # not numbers alone: no number
        (r"\\(?:times|cdot)(?![a-zA-Z])", "×"),
        (r"\\(?:left|right|displaystyle)(?![a-zA-Z])", ""),
        (r"\\div(?![a-zA-Z])", "÷"),
        (r"\\pm(?![a-zA-Z])", "±"),
        (r"\\pi(?![a-zA-Z])", "π"),
        (r"\\sqrt(?![a-zA-Z])", "√"),
        (r"\\([%$#])", r"\1"),
        (r"\\[,;:! ]", " "),
        (r"\{,\}", ","),
        (r"\^\s*\{\s*([-+]?\d+)\s*\}", r"^\1"),
    )
]
_CURRENCY = "[$¢-¥֏؋৲৳฿៛₠-₿]"
_PLAIN = [
    (re.compile(pattern), new)
    for pattern, new in (
        (rf"(?<!\w){_CURRENCY} ?(?=[-+]?[\d.])", ""),
        (rf"(?<=\w){_CURRENCY} ?(?=[-+]?[\d.])", " "),
        (r"\.{2,}", " "),
        (r"(?<!\w)_+|_+(?!\w)", " "),
    )
]
_WHOLE = r"(?:\d{1,3}(?:(?:,\d{3})+|(?:['’]\d{3})+|(?:_\d{3})+|(?: \d{3})+)(?!\d)|\d+)"
_ATOM = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+(?!\w))?"
_VALUE = (
    rf"(?:(?P<mixed>\d+) (?P<over>\d+) ?/ ?(?P<under>\d+)|(?P<top>{_ATOM})"
    rf"(?: ?/ ?(?P<bottom>\d+(?:\.\d+)?)| ?(?:\^|\*\*) ?(?P<open>\()?(?P<power>[-+]?\d+)(?(open)\)))?)"
    r"(?P<share>\s?(?:%|‰|per ?cent\b))?"
)
_UNNAMED = re.sub(r"\(\?P<\w+>", "(?:", _VALUE).replace(r"(?:\()?", r"\(?").replace(r"(?(open)\))", r"\)?")
_JOIN = r"(?: {0,2}(?:\*\*|[-+*×·÷±^/]) {0,2}| ?x ?| or |[,.:'’_])"
_CHAIN = re.compile(rf"(?P<sign>[-+] {{0,2}})?(?P<values>{_UNNAMED}(?:{_JOIN}[-+]?{_UNNAMED})*)", re.IGNORECASE)
_ONE = re.compile(_VALUE, re.IGNORECASE)
_TEN = re.compile(rf"(?P<factor>{_ATOM}) {{0,2}}[×·*x] {{0,2}}10 ?(?:\^|\*\*) ?(?P<power>[-+]?\d+)", re.IGNORECASE)
_DENIED = re.compile(r"(?:\bnot|n['’]t|\brather than|\binstead of)\s+[*\"'“(]*$", re.IGNORECASE)
_DIGITS = re.compile(r"[,'’_ ]")


def numbers_of(text: str) -> list[float]:
    """Every finite number in a text, in order."""
    return [value for value in values_of(text) if math.isfinite(value)]


def values_of(text: str) -> Iterator[float]:
    """As `numbers_of`, with NaN for each chain that is not one number. Numbers after "not" are left out."""
    text = plain(text)
    for match in _CHAIN.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        values = match["values"]
        if not match["sign"] and _in_a_word(before):
            if not _ONE.fullmatch(values):
                yield math.nan
        elif not _DENIED.search(before):
            torn = _torn(match["sign"], before, text[match.end() : match.end() + 4])
            yield math.nan if torn else _value(match["sign"], values)


def plain(text: str) -> str:
    """Width, LaTeX, dashes, currency, raised and lowered digits, and fractions of one sign, in plain characters."""
    for pattern, new in _LATEX:
        text = pattern.sub(new, text)
    text = re.sub(r"([⁰¹²³⁴-⁹]+)[⁄/]([₀-₉]+)", lambda m: f" {m[1].translate(_SUPER)}/{m[2].translate(_SUB)}", text)
    text = re.sub(r"(?<=[^\W\d_⁰¹²³⁴-⁹₀-₉])(?:\^[-+]?\d+|[⁺⁻]?[⁰¹²³⁴-⁹]+|[₀-₉]+)", "", text)  # of units and names
    text = re.sub(r"[⁺⁻]?[⁰¹²³⁴-⁹]+", lambda m: "^" + m[0].translate(_SUPER), text)
    text = re.sub(r"[₀-₉]+", lambda m: "_" + m[0].translate(_SUB), text)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅟↉])", " ", text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/").translate(_DASHES)
    for pattern, new in _PLAIN:
        text = pattern.sub(new, text)
    return text


def _in_a_word(before: str) -> bool:
    """Whether digits belong to a name such as `x5`. Letters of scripts without spaces between words end one."""
    last = before[-1:]
    return last in ("_", ".") if not last.isalnum() else unicodedata.category(last) != "Lo"


def _torn(sign: str | None, before: str, after: str) -> bool:
    """Whether a chain is a part of something larger: an operand, a root, a base."""
    if re.match(r" ?[π√]|\^|_\w", after) or re.search(r"(?:√|sqrt)[ ({]*$|[\^/×÷±] ?$", before):
        return True
    if not sign:
        return before.endswith("—")
    line = before.rpartition("\n")[2].rstrip(" ")
    if len(sign) > 1:  # a minus sign with space is a dash, unless nothing but an opening stands before it
        return bool(line and line[-1] not in "=(:[{,≈*") or ("\n" in before and not line)
    last = before[-1:] or " "
    return last in ")]}°%π-+—." or (last.isalnum() and unicodedata.category(last) != "Lo")


def _value(sign: str | None, values: str) -> float:
    try:
        if ten := _TEN.fullmatch(values):
            size = float(_DIGITS.sub("", ten["factor"])) * 10.0 ** int(ten["power"])
        elif one := _ONE.fullmatch(values):
            size = _single(one)
        else:
            return math.nan
    except (OverflowError, ZeroDivisionError, ValueError):
        return math.nan
    return -size if sign and sign[0] == "-" else size


def _single(one: re.Match[str]) -> float:
    if one["mixed"] is not None:
        whole, over, under = int(one["mixed"]), int(one["over"]), int(one["under"])
        if over >= under:
            return math.nan
        size = whole + over / under
    else:
        size = float(_DIGITS.sub("", one["top"]))
        if one["bottom"]:
            size /= float(one["bottom"])
        if one["power"]:
            size **= int(one["power"])
    share = (one["share"] or "").strip()
    return size / (1000 if share == "‰" else 100) if share else size
