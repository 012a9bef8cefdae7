"""What of an answer counts, and where a sample keeps its truth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from andes_sdk.errors import InputError

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(r"the (?:final )?answer is:?", re.IGNORECASE)


def after_thinking(answer: str) -> str:
    """What follows the last `</think>`; nothing if a `<think>` was never closed."""
    head, closed, tail = answer.rpartition("</think>")
    if "<think>" in tail:
        return ""
    return tail if closed else head + tail


def final_answer(answer: str) -> str:
    r"""The part that is to be judged: cut after `</think>`, `<answer>`, "the answer is" and `\boxed{}`.

    The order is that of AndesVL's published evaluation; each cut applies to what the one before has left, and the last
    of several occurrences counts. Space and one full stop around it are dropped.
    """
    text = after_thinking(answer)
    if tagged := _TAG.findall(text):
        text = tagged[-1]
    if phrases := list(_PHRASE.finditer(text)):
        text = text[phrases[-1].end() :]
    text = (boxed(text) or text).strip()
    return text.removesuffix("。").removesuffix(".").rstrip()


def boxed(text: str) -> str:
    r"""What stands in the last complete `\boxed{…}`, braces balanced; nothing if there is none."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for index in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : index]
        start = text.rfind("\\boxed{", 0, start)
    return ""


def truth(sample: Mapping[str, Any], name: str) -> Any:
    """The truth for a reward: under the reward's own name, else under `answer`.

    Raises:
        InputError: the sample has neither.
    """
    value = sample.get(name, sample.get("answer"))
    if value is None:
        raise InputError(
            f"the sample has neither {name!r} nor 'answer'", who=name, fix=f'add "{name}": … to the sample'
        )
    return value


def misfit(name: str, value: object, wanted: str) -> InputError:
    """The error for a truth that a reward cannot use."""
    shown = repr(value)
    return InputError(
        "the sample's truth cannot be used", who=name, why=f"{shown[:80]} is not {wanted}", fix=f"write {wanted}"
    )
