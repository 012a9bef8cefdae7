"""The word tables of the VQA challenge's answer comparison (visualqa.org/evaluation)."""

from __future__ import annotations

ARTICLES = frozenset(("a", "an", "the"))

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(value) for value, word in enumerate(_COUNTED)} | {"none": "0"}

_WHOLE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
y'all'd've you'd you'd've you'll you're you've
"""
_ODD = {
    "somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at",
    "yall'll": "y'all'll", "y'allll": "y'all'll", "yall'd've": "y'all'd've", "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}  # fmt: skip
"""Entries of the challenge's table that do not follow from the whole words."""


def _without_one_apostrophe() -> dict[str, str]:
    made = {}
    for word in _WHOLE.split():
        for at, character in enumerate(word):
            if character == "'":
                made[word[:at] + word[at + 1 :]] = word
    return made


CONTRACTIONS = {**_without_one_apostrophe(), **_ODD}
"""Contraction that lacks an apostrophe -> the whole one."""
