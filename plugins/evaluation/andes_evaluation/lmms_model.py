"""Pipelines as models of lmms-eval 0.7: `lmms-eval --model andes --model_args pretrained=FOLDER --tasks …`.

lmms-eval loads this module; it is not imported anywhere here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from andes_verifiers.answers import after_thinking
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from andes_sdk.cli.loading import open_pipeline
from andes_sdk.errors import ConfigError, InputError
from andes_sdk.inputs.messages import user_message
from andes_sdk.runtime.options import GenerationOptions

LONGEST = 1024
"""Most tokens where a task names no number."""
KNOWN = ("until", "max_new_tokens", "temperature", "top_p", "top_k", "do_sample")
"""Generation arguments of tasks that have an effect."""

Asked = tuple[list[dict[str, Any]], Mapping[str, Any]]
"""Messages, and generation arguments."""


class AndesChat(lmms):
    """A pipeline that is asked with messages.

    Args:
        pretrained: checkpoint folder, packed file, or owner/name on the Hub.
        plugins: more plugins, with `+` between them. adapter: NAME=FOLDER. think: None leaves it to the model.
        image_size: no picture is larger than a square of this side in pixels. batch_size: items decoded together.

    Raises:
        ConfigError: an argument that does not exist. As `Pipeline.from_pretrained`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        plugins: str = "",
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        adapter: str = "",
        think: bool | None = None,
        image_size: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            fix = "leave it out of --model_args"
            raise ConfigError(f"no argument {', '.join(map(repr, others))}", who="lmms-eval's model andes", fix=fix)
        more = [name for name in plugins.split("+") if name]
        self.pipeline = open_pipeline(pretrained, None, plugins=more, device=device, dtype=dtype, backend=backend)
        self.given: dict[str, Any] = {"think": think, "image_size": image_size}
        self.together = int(max_batch_size or 8) if batch_size == "auto" else int(batch_size)
        if adapter:
            name, _, folder = adapter.partition("=")
            self.pipeline.add_adapter(name, folder)
            self.given["adapter"] = name
        self._told: set[str] = set()

    # ------------------------------------------------------------ what lmms-eval calls

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """One answer per request, in order."""
        asked = [self._asked(request.args) for request in requests]
        made: list[Any] = []
        for start in range(0, len(asked), self.together):
            made += self._answers(asked[start : start + self.together])
        return made

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Per request the answers of all rounds; the task says what is asked next, and when it ends."""
        return [self._rounds(*request.args) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Per request the log-probability of its continuation, and whether greedy decoding gives it."""
        # lmms-eval 0.7.3 turns a bare pair into text, and leaves alone what stands in a result of its own
        return [GenerationResult(text=self._likelihood(*request.args)) for request in requests]

    # ------------------------------------------------------------ how

    def _asked(self, arguments: tuple[Any, ...]) -> Asked:
        _, to_messages, given, number, task, split = arguments
        return ours(to_messages(self.task_dict[task][split][number])), given

    def _rounds(
        self, context: str, to_messages: Any, given: Mapping[str, Any], number: Any, task: str, split: str
    ) -> list[str]:
        doc = self.task_dict[task][split][number]
        messages, answers, told = to_messages(doc), [], None
        while True:
            (answer,) = self._answers([(ours(messages), given)])
            answers.append(answer.text)
            said = to_messages(doc, round_idx=len(answers), previous_output=answers, previous_round_info=told)
            messages, ended, previous, told = said
            if ended:
                return list(previous or answers)

    def _likelihood(
        self, context: str, target: Any, to_visual: Any, number: Any, task: str, split: str
    ) -> tuple[float, bool]:
        doc = self.task_dict[task][split][number]
        continuation = target if isinstance(target, str) else str(target(doc))
        tokens = self.pipeline.tokenizer.encode(continuation)
        if not tokens:
            return 0.0, True
        inputs = self.pipeline.prepare([user_message(context, list(to_visual(doc) or []))], think=False)
        session = self.pipeline.session()
        try:
            session.adapter = self.given.get("adapter")
            rows = [session.prefill(inputs), *(session.extend(tokens[:-1])[0] if len(tokens) > 1 else ())]
        finally:
            session.close()
        scores = [row.double().log_softmax(-1) for row in rows]
        greedy = all(int(row.argmax()) == token for row, token in zip(rows, tokens, strict=True))
        return sum(float(score[token]) for score, token in zip(scores, tokens, strict=True)), greedy

    def _answers(self, asked: Sequence[Asked]) -> list[Any]:
        options = [self._options(given) for _, given in asked]
        answers = self.pipeline.generate_batch([messages for messages, _ in asked], options)
        made = []
        for answer, (_, given) in zip(answers, asked, strict=True):
            text = cut(answer.text, given.get("until") or ())
            counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=len(answer.tokens))
            made.append(GenerationResult(text=text, token_counts=counts))
        return made

    def _options(self, given: Mapping[str, Any]) -> GenerationOptions:
        beams = given.get("num_beams") or 1
        if beams != 1:
            raise ConfigError(f"beam search with {beams} beams", who="generation_kwargs", fix="set num_beams to 1")
        unused = sorted(k for k, v in given.items() if k not in (*KNOWN, "num_beams") and v not in (None, False))
        for name in unused:
            if name not in self._told:
                self._told.add(name)
                logging.getLogger(__name__).warning("generation_kwargs.%s has no effect on a pipeline", name)
        heat = float(given.get("temperature") or 0.0) if given.get("do_sample", True) else 0.0
        options = {"max_tokens": int(given.get("max_new_tokens") or LONGEST), "temperature": heat}
        if heat:
            options |= {"top_p": float(given.get("top_p") or 1.0), "top_k": int(given.get("top_k") or 0)}
        return GenerationOptions(**options, **{k: v for k, v in self.given.items() if v is not None})  # type: ignore[arg-type]


class AndesSimple(AndesChat):
    """A pipeline that is asked with a text and pictures: for tasks that compare log-probabilities."""

    is_simple = True

    def _asked(self, arguments: tuple[Any, ...]) -> Asked:
        context, given, to_visual, number, task, split = arguments
        return [user_message(context, list(to_visual(self.task_dict[task][split][number]) or []))], given

    def _rounds(self, *arguments: Any) -> list[str]:
        context, given, to_visual, to_text, number, task, split = arguments
        doc = self.task_dict[task][split][number]
        answers: list[str] = []
        visuals, told = to_visual(doc), None
        while True:
            asked = [user_message(context, list(visuals or []))]
            (answer,) = self._answers([(asked, given)])
            answers.append(answer.text)
            said = to_text(doc, previous_output=answers, round_idx=len(answers), previous_round_info=told)
            visuals, context, ended, previous, told = said
            if ended:
                return list(previous or answers)


def ours(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of lmms-eval as ours.

    Raises:
        InputError: a part that is neither text nor picture.
    """
    made = []
    for message in messages:
        content = message["content"]
        made.append(
            {"role": message["role"], "content": content if isinstance(content, str) else [*map(_part, content)]}
        )
    return made


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "image":
        return {"type": "image", "image": part["url"]}
    raise InputError(f"a part of type {part['type']!r}", who="lmms-eval's task", fix="choose a task of pictures")


def cut(text: str, until: Sequence[str] | str) -> str:
    """An answer up to the first stop text after its thinking, as a task's `until` means it."""
    marks = [until] if isinstance(until, str) else list(until)
    counts = after_thinking(text)
    ends = [at for mark in marks if mark and (at := counts.find(mark)) >= 0]
    return text[: len(text) - len(counts) + min(ends)] if ends else text
