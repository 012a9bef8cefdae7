"""Pictures of one colour each, made here: no download, the same for everybody, and a person scores 100 %."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from PIL import Image

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 160, 40),
    "blue": (20, 40, 220),
    "yellow": (240, 220, 20),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}
QUESTION = f"Which colour is this picture? Answer with one word: {', '.join(COLOURS)}."


@frozen
class Colours:
    """Share of pictures whose colour the answer names, and no other colour with it."""

    side: int
    name = "example"

    def run(self, pipeline: Any, *, limit: int | None = None) -> Mapping[str, float]:
        """Ask about each colour, or the first `limit` -> accuracy between 0 and 1, and the number of questions.

        Decoding is greedy, so two runs give the same score.
        """
        chosen = list(COLOURS.items())[:limit]
        right = 0
        for colour, rgb in chosen:
            picture = Image.new("RGB", (self.side, self.side), rgb)
            answer = pipeline.chat(QUESTION, images=[picture], max_tokens=8).lower()
            right += [c for c in COLOURS if c in answer] == [colour]
        return {"accuracy": right / len(chosen) if chosen else 0.0, "questions": float(len(chosen))}
