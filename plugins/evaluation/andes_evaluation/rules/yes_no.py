"""Whether an answer says yes or no."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+")


def opening(text: str) -> str:
    """ "yes", "no" or "": by the whole answer, or its first four characters; as MME."""
    said = text.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "")
    return next((word for word in ("yes", "no") if word in said[:4]), "")


def word(text: str) -> str:
    """ "yes" or "no" where exactly one of these words stands in the answer, else ""; as VLMEvalKit."""
    said = {w.lower() for w in _WORD.findall(text)} & {"yes", "no"}
    return said.pop() if len(said) == 1 else ""
