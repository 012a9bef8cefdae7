"""Chat templates: the Jinja text of a file, rendered in a sandbox, with texts kept apart from what the template writes.

The template sees the texts themselves and may cut, trim and move them; each character is followed (`provenance`), so
nothing that a user writes can become a special token, and what an assistant said is known wherever it stands.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2

from andes_sdk.errors import CheckpointError, InputError
from andes_sdk.types import Slot, Turn

from .provenance import MIXED, Source, Text
from .sandbox import Sandbox, TooMuch, rendered

WHO = "chat template"
_ANOTHER = "set gguf.chat_template to another one"
_SLOT = "\ufffc"
"""Stands for a picture in a text. By its source it is told from the same character in a text."""


def render(text: str, turns: Sequence[Turn], *, generate: bool, **names: Any) -> list[tuple[str, Source]]:
    """What the template writes, in order, and where it comes from: `Source`, slots numbered through all turns.

    Args:
        generate: ask for the header of an answer.
        names: further variables of the template.

    Raises:
        InputError: the template refuses the conversation, fails, leaves out a text or a picture, or repeats one.
        CheckpointError: it asks for too much time or memory, or cannot be run.
    """
    messages, slots = [], 0
    for number, turn in enumerate(turns):
        content: list[Text] = []
        for part in turn.parts:
            if isinstance(part, Slot):
                slots += 1
                content.append(Text(_SLOT, [(1, -slots)]))
            elif part:
                content.append(Text(part, [(len(part), number)]))
        messages.append({"role": turn.role, "content": Text.joined(content)})
    given = {"messages": messages, "add_generation_prompt": generate, "tools": None, "documents": None, **names}
    try:
        pieces = rendered(_compiled(text), given).pieces()
    except TooMuch as error:
        raise CheckpointError("asks for too much", who=WHO, why=str(error), fix=_ANOTHER) from None
    except (SyntaxError, AssertionError, MemoryError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("cannot be run", who=WHO, why=why, fix=_ANOTHER) from error
    except (
        jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise InputError("refuses this conversation", who=WHO, why=f"{type(error).__name__}: {error}") from error
    _check(pieces, turns, slots)
    return pieces


def _check(pieces: Sequence[tuple[str, Source]], turns: Sequence[Turn], slots: int) -> None:
    """Refuse what would be answered without something that was asked. Reasoning of earlier turns may be left out."""
    counts: Counter[Source] = Counter()
    for text, source in pieces:
        counts[source] += len(text)
    texts = ["".join(part for part in turn.parts if isinstance(part, str)) for turn in turns]
    mixed = MIXED in counts
    for number, (turn, text) in enumerate(zip(turns, texts, strict=True)):
        lost = turn.role != "assistant" and text.strip() and not counts[number] and not mixed
        if lost or counts[number] > len(text):
            raise InputError("leaves out or repeats a text", who=WHO, why=f"that of message {number}", fix=_ANOTHER)
    shown = [source for text, source in pieces if isinstance(source, int) and source < 0 for _ in text]
    if shown != [-1 - number for number in range(slots)]:
        raise InputError("leaves out, repeats or reorders pictures", who=WHO, fix=_ANOTHER)


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    return Sandbox().template(text)
