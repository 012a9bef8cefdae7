"""What is asked and what is answered: items, ratings, answers on file. All but pictures is plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

Part = str | bytes
"""Text, or an encoded picture."""

Answered = Mapping[str, Any]
"""One line of a run's file: key, cluster, truth, facts, said, answer, score …; `run.py` writes it."""


@frozen(kw_only=True)
class Item:
    """One question.

    Attributes:
        key: names it within its task.
        parts: texts and pictures in their order.
        truth: what is right, as JSON data.
        facts: what the answer rule needs beside the truth, and what figures are grouped by, as JSON data.
        cluster: items of one cluster are drawn together when intervals are computed; the key for most tasks.
        start: text with which the answer is made to begin.
        question: for people.
    """

    key: str
    parts: tuple[Part, ...]
    truth: Any
    facts: Mapping[str, Any] = field(factory=dict)
    cluster: str = ""
    start: str = ""
    question: str = ""

    def messages(self, *, scale: float = 1.0) -> list[dict[str, Any]]:
        """The conversation: parts are joined by line feeds, as in AndesVL's published evaluation.

        Args:
            scale: pictures are enlarged by this factor first (bilinear, as published).
        """
        content: list[dict[str, Any]] = []
        text = ""
        for number, part in enumerate(self.parts):
            text += "\n" if number else ""
            if isinstance(part, str):
                text += part
                continue
            content += [{"type": "text", "text": text}] if text else []
            content.append({"type": "image", "image": scaled(part, scale)})
            text = ""
        content += [{"type": "text", "text": text}] if text else []
        asked = [{"role": "user", "content": content}]
        return [*asked, {"role": "assistant", "content": self.start}] if self.start else asked

    @property
    def pictures(self) -> list[bytes]:
        """Its pictures, encoded."""
        return [part for part in self.parts if isinstance(part, bytes)]

    def placed(self, cluster: object) -> Item:
        """The same in another cluster."""
        return evolve(self, cluster=str(cluster))


@frozen
class Rated:
    """What a rule says of an answer.

    Attributes:
        score: from 0.0 to 1.0. read: what the rule took for the answer, as JSON data; None if it found none.
        marks: further numbers, by the names that the task's figures know.
    """

    score: float
    read: Any = None
    marks: Mapping[str, float] = field(factory=dict)


def scaled(picture: bytes, factor: float) -> Any:
    """An encoded picture, or, where the factor is not 1, the enlarged one (a PIL image)."""
    if factor == 1.0:
        return picture
    from PIL import Image

    from andes_sdk.inputs.images import load_image

    image = load_image(picture)
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    return image.resize(size, Image.Resampling.BILINEAR)


_MARK = re.compile(r"<image(?: (\d+))?>", re.IGNORECASE)


def interleaved(text: str, pictures: Sequence[bytes]) -> tuple[Part, ...]:
    """A text with `<image>` or `<image 2>` in it, and pictures -> parts in order; those without a mark come first."""
    parts: list[Part] = []
    used: set[int] = set()
    end, following = 0, 0
    for match in _MARK.finditer(text):
        number = int(match[1]) - 1 if match[1] else following
        if not 0 <= number < len(pictures):
            continue  # a mark without a picture is part of the question's text
        following = number + 1
        parts += [text[end : match.start()].strip(), pictures[number]]
        used.add(number)
        end = match.end()
    parts.append(text[end:].strip() if used else text)
    before = [picture for number, picture in enumerate(pictures) if number not in used]
    return (*before, *(part for part in parts if part))
