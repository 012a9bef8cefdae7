"""Chat templates: the Jinja text of a file, rendered in a sandbox, with texts kept apart from what the template writes.

The template sees a placeholder for each turn's text, so that nothing that a user writes can become a special token.
Hence it can place a text, once, but not look into it or change it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from andes_sdk.errors import InputError
from andes_sdk.types import Turn

_MARK = re.compile("\ue000(\\d+)\ue001")
WHO = "chat template"


def render(text: str, turns: Sequence[Turn], *, generate: bool, **names: Any) -> Iterator[str | int]:
    """What the template writes, in order: its own texts, and numbers of turns where their texts stand.

    Args:
        generate: ask for the header of an answer.
        names: further variables of the template.

    Raises:
        InputError: the template refuses the conversation, fails, or leaves out or repeats a text.
    """
    messages = [{"role": turn.role, "content": f"\ue000{i}\ue001"} for i, turn in enumerate(turns)]
    try:
        written = _compiled(text).render(
            messages=messages, add_generation_prompt=generate, tools=None, documents=None, **names
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise InputError("refuses this conversation", who=WHO, why=f"{type(error).__name__}: {error}") from error
    parts: list[str | int] = [int(p) if i % 2 else p for i, p in enumerate(_MARK.split(written))]
    if sorted(p for p in parts if isinstance(p, int)) != list(range(len(turns))):
        raise InputError("leaves out or repeats a text", who=WHO, fix="set gguf.chat_template to another one")
    return iter(parts)


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(text)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
