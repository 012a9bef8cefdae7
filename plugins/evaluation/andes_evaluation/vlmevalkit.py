"""Pipelines as models of VLMEvalKit.

In its `vlmeval/config.py`, or in a script before `vlmeval` runs:

    from functools import partial
    from andes_evaluation.vlmevalkit import model_class
    supported_VLM["andes"] = partial(model_class(), model_path="FOLDER")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from andes_verifiers.answers import final_answer

from andes_sdk.config import structure
from andes_sdk.errors import BackendUnavailable, InputError
from andes_sdk.runtime.options import GenerationOptions

LONGEST = 4096
"""Most tokens of an answer where none are given, as in the published scripts."""


class Answers:
    """What VLMEvalKit asks of a model, without its base class.

    Args:
        model_path: as `Pipeline.from_pretrained`. plugins, backend, device: likewise.
        finals: give the final answer alone, cut as AndesVL's evaluation does.
        options: of generation (max_tokens, temperature, think …).
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(
        self,
        model_path: str,
        *,
        plugins: Sequence[Any] = (),
        backend: Any = None,
        device: str = "cpu",
        finals: bool = True,
        **options: Any,
    ) -> None:
        from andes_sdk.pipeline import Pipeline

        self.pipeline = Pipeline.from_pretrained(model_path, plugins=plugins, backend=backend, device=device)
        self.finals = finals
        self.options = structure(GenerationOptions, {"max_tokens": LONGEST, **options}, "generation")

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """A message of VLMEvalKit -> the answer's text."""
        answer = self.pipeline.generate([turn(message)], self.options)
        return final_answer(answer.text) if self.finals else answer.text

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """A conversation of VLMEvalKit, `{"role", "content"}` each -> the next answer's text."""
        asked = [spoken(one["content"]) if one["role"] == "assistant" else turn(one["content"]) for one in message]
        answer = self.pipeline.generate(asked, self.options)
        return final_answer(answer.text) if self.finals else answer.text

    def use_custom_prompt(self, dataset: str) -> bool:
        """The data sets' own prompts are asked."""
        return False


def turn(message: Sequence[Mapping[str, Any]] | str) -> dict[str, Any]:
    """Parts `{"type": "text" or "image", "value"}` -> a user message; parts are joined by line feeds, as published.

    Raises:
        InputError: a part of another type.
    """
    if isinstance(message, str):
        return {"role": "user", "content": message}
    content: list[dict[str, Any]] = []
    for number, part in enumerate(message):
        if number:
            content.append({"type": "text", "text": "\n"})
        if part.get("type") == "text":
            content.append({"type": "text", "text": part["value"]})
        elif part.get("type") == "image":
            content.append({"type": "image", "image": part["value"]})
        else:
            fix = "choose a data set of pictures"
            raise InputError(f"a part of type {part.get('type')!r}", who="VLMEvalKit's message", fix=fix)
    return {"role": "user", "content": content}


def spoken(content: Sequence[Mapping[str, Any]] | str) -> dict[str, Any]:
    """An assistant's message: its texts alone."""
    texts = [content] if isinstance(content, str) else [str(one["value"]) for one in content if one["type"] == "text"]
    return {"role": "assistant", "content": "\n".join(texts)}


def model_class() -> type:
    """`Answers` with VLMEvalKit's base class, as its registry wants it.

    Raises:
        BackendUnavailable: VLMEvalKit is not installed.
    """
    try:
        from vlmeval.vlm.base import BaseModel
    except ImportError as error:
        fix = "install VLMEvalKit from its repository"
        raise BackendUnavailable("VLMEvalKit is not installed", why=str(error), fix=fix) from None

    class Andes(Answers, BaseModel):
        """A pipeline of andes_sdk."""

        def __init__(self, model_path: str, **options: Any) -> None:
            BaseModel.__init__(self)
            Answers.__init__(self, model_path, **options)

    return Andes
