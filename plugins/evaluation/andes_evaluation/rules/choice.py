"""Which option an answer chooses.

Benchmarks differ in how they read an answer, and their published scores depend on it. So there is one function for each
way, and each gives what lmms-eval 0.7.3 gives where lmms-eval has the task. Left out: the random letter that some take
where an answer chooses none; here such an answer is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

PHRASES = (
    *(f"{lead}{noun} is" for lead in ("the ", "") for noun in ("answer", "correct answer", "best answer")),
    *(f"{lead}{noun} is" for lead in ("the ", "") for noun in ("correct option", "best option")),
    *(f"{lead}{noun} is" for lead in ("the ", "") for noun in ("choice", "correct choice")),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
"""How a letter may be written inside a text, and how much that says."""
FIRST, LAST, AFTER_PHRASE, ANYWHERE = 10, 9, 7, 0


def ranked_letter(text: str, letters: Sequence[str]) -> str:
    """The letter that stands in the most telling place, the last of several; "" for none.

    As MMStar, RealWorldQA and the static MMBench of lmms-eval (`extract_mcq_answer`).
    """
    if not text.strip():
        return ""
    bare = text.strip()
    for mark in ",.!?;:'\"":
        bare = bare.strip(mark)
    padded = f" {bare} "
    inner, lowered = padded.strip(), padded.lower()
    starts = [at + len(phrase) for phrase in PHRASES if (at := lowered.find(phrase)) >= 0]
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        found += [(rank, at, letter) for form, rank in FORMS if (at := padded.rfind(form.format(letter))) >= 0]
        found += [(AFTER_PHRASE, at, letter) for start in starts if (at := padded.find(letter, start)) >= 0]
        if inner.startswith(letter) and not inner[1:2].isalpha():
            found.append((FIRST, 0, letter))
        if inner.endswith(letter) and not inner[:-1][-1:].isalpha():
            found.append((LAST, 0, letter))
    if not found:
        found = [(ANYWHERE, at, letter) for letter in letters if (at := padded.rfind(letter)) >= 0]
    return max(found, key=lambda one: one[:2])[2] if found else ""


def mentioned_letter(text: str, options: Mapping[str, str]) -> str:
    """The letter written as `(A)`, else `A `, else `A.`, else the option whose text stands in a longer answer.

    As MMMU and Q-Bench, whose code this way comes from; the last of several wins.
    """
    padded = _padded(text)
    for form, last in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if named := [letter for letter in options if form.format(letter) in padded]:
            return _last(named, [padded.rfind(last.format(letter)) for letter in named])
    if len(padded.split()) <= 5:
        return ""
    lowered = padded.lower()
    named = [letter for letter, option in options.items() if option.lower() in lowered]
    return _last(named, [lowered.rfind(options[letter].lower()) for letter in named])


def spaced_letter(text: str, letters: Sequence[str]) -> str:
    """The letter written as `(A)`, else ` A `, else `A.`; as MMT-Bench."""
    padded = _padded(text.strip())
    for form in ("({})", " {} ", "{}."):
        if named := [letter for letter in letters if form.format(letter) in padded]:
            return _last(named, [padded.rfind(f" {letter} ") for letter in named])
    return ""


def _padded(text: str) -> str:
    for mark in ",.!?;:'":
        text = text.strip(mark)
    return f" {text} "


def _last(letters: list[str], places: list[int]) -> str:
    return letters[places.index(max(places))] if letters else ""


def stated_letter(text: str, letters: str) -> str:
    """A short first line that is a letter, else what follows "answer", else the last `(A)`, else a leading letter.

    As BLINK.
    """
    text, one = text.strip(), f"[{re.escape(letters)}]"
    line = text.split("\n", 1)[0].strip()
    if len(line) <= 4 and (alone := re.match(rf"\(?({one})\)?[\.\s:,)]*$", line, re.IGNORECASE)):
        return alone[1].upper()
    answer = rf"answers?(?:\s+is)?\s*[:\-]?\s*\(?({one})\)?(?![A-Za-z])"
    named = re.findall(answer, text, re.IGNORECASE) or re.findall(rf"\(({one})\)", text)
    if named:
        return str(named[-1]).upper()
    leading = re.match(rf"[\(\s]*({one})", text, re.IGNORECASE)
    return leading[1].upper() if leading else ""


def leading_letter(text: str) -> str:
    """`B` of "B. a dog"; any other text as it is. As AI2D and MuirBench, which then compare the whole text."""
    match = re.match(r"\s*([A-Z])\.", text)
    return match[1] if match else text


def first_letter(text: str) -> str:
    """The first character; as SEED-Bench-2-Plus."""
    return text.strip()[:1].strip().upper()


_CORNERS = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip


def matched_letter(text: str, options: Mapping[str, str]) -> str:
    """A letter that stands alone and is the only one, else the only option whose text stands in the answer.

    Where neither is, `ranked_letter`. As MMBench, without its judge. `Failed to obtain answer via API` chooses nothing.
    """
    return _alone(text) or _contained(text, options) or ranked_letter(text, sorted(options))


def _alone(text: str) -> str:
    if "Failed to obtain answer via API" in text:
        return ""
    words = text.split()
    single = [letter for letter in "ABCDE" if letter in words]
    if len(single) == 1 and not ("A" in words and len(words) > 3):  # there "A" may be an article
        return single[0]
    for before, after in _CORNERS:
        named = [letter for letter in "ABCDE" if f"{before}{letter}{after}" in words]
        if len(named) == 1:
            return named[0]
    return ""


def _contained(text: str, options: Mapping[str, str]) -> str:
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in lowered]
    return named[0] if len(named) == 1 else ""


_NOT_WORDS = re.compile(r"[^\w\s]")


def bare(text: str) -> str:
    """A text without punctuation."""
    return _NOT_WORDS.sub("", text).strip()


def written_option(text: str, options: Mapping[str, str]) -> str:
    """The letter of the first option whose text stands in the answer, else the answer without punctuation; as CRPE."""
    said = bare(text)
    if not options:
        return said
    match = re.search("|".join(re.escape(option.strip()) for option in options.values()), said)
    letters = {option.strip(): letter for letter, option in options.items()}
    return letters[match[0]] if match and match[0] in letters else said
