"""Which elements of a screen count: those that a person sees whole and can point at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from attrs import asdict, field, frozen

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture."""

LEAST = 6.0
"""A smaller side, in pixels of a page, is refused."""

REASONS = {
    "hidden": "not visible",
    "outside": "not wholly on the screen",
    "small": f"a side below {LEAST:.0f} pixels of the page",
    "cut": "cut off by a scrolling box around it, or by an ellipsis",
    "covered": "its centre belongs to another element, or something lies over it",
    "nameless": "neither text nor an accessible name",
}
"""Why an element does not count."""


def _rounded(box: Sequence[float]) -> Box:
    x1, y1, x2, y2 = (round(float(side), 1) for side in box)
    return x1, y1, x2, y2


@frozen(kw_only=True)
class Element:
    """Something on a screen.

    Attributes:
        box: left, top, right, bottom in pixels of the picture.
        text: what it shows.
        name: what it is called where it shows no text, or beside its text.
        icon: it is a picture, or a control that shows only one.
        unique: nothing else that is seen on this screen is called the same.
        characters: each character with its box, where asked for and known.
    """

    box: Box = field(converter=_rounded)
    role: str
    text: str = ""
    name: str = ""
    icon: bool = False
    unique: bool = True
    state: dict[str, Any] = field(factory=dict)
    row: str = ""
    column: str = ""
    characters: list[list[Any]] | None = None

    @property
    def called(self) -> str:
        """What tells it from others: its text; for icons and fields their name, if they have one."""
        return (self.name or self.text) if self.icon or self.role in NAMED else (self.text or self.name)

    @property
    def centre(self) -> tuple[float, float]:
        """Horizontal and vertical, in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what says nothing."""
        facts = asdict(self)
        always = ("box", "role", "text", "icon", "unique")
        return {key: value for key, value in facts.items() if key in always or value not in ("", {}, None)}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Element:
        """The element of plain data."""
        return cls(**facts)


NAMED = {"field", "list", "checkbox", "radio button", "slider", "switch"}
"""Roles that are called by their label."""


def counted(
    raw: Sequence[dict[str, Any]], width: int, height: int, scale: float
) -> tuple[list[Element], dict[str, int]]:
    """Elements that count, and how many were refused by reason.

    Args:
        raw: what `extract.js` found.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        scale: pixels of the picture per pixel of the page.
    """
    seen = Counter(_key(facts) for facts in raw if facts["visible"] and _overlaps(facts["box"], width, height))
    kept, refused = [], Counter[str]()
    for facts in raw:
        reason = refusal(facts, width, height, scale)
        if reason:
            refused[reason] += 1
            continue
        facts = {**facts, "unique": seen[_key(facts)] == 1}
        x1, y1, x2, y2 = facts["box"]
        facts["box"] = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
        wanted = ("box", "role", "text", "name", "icon", "unique", "state", "row", "column", "characters")
        kept.append(Element(**{key: facts[key] for key in wanted if key in facts}))
    return kept, dict(refused)


def refusal(facts: dict[str, Any], width: int, height: int, scale: float) -> str:
    """Why an element does not count; empty if it does."""
    x1, y1, x2, y2 = facts["box"]
    if not facts["visible"]:
        return "hidden"
    if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
        return "outside"
    if min(x2 - x1, y2 - y1) < LEAST * scale:
        return "small"
    if facts["cut"]:
        return "cut"
    if not facts["hit"] or facts["covered"]:
        return "covered"
    if not facts["text"] and not any(map(str.isalnum, facts["name"])):
        return "nameless"
    return ""


def _key(facts: dict[str, Any]) -> tuple[bool, str]:
    """Fields are told from their labels by their role."""
    named = facts["role"] in NAMED
    text, name = facts["text"], facts["name"]
    called = (name or text) if facts["icon"] or named else (text or name)
    return named, called.casefold()


def _overlaps(box: Sequence[float], width: int, height: int) -> bool:
    return box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0
