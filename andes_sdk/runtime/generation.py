"""From a conversation to an answer: prepared, decoded by the engine, stopped, as text."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import Factory, asdict, define, field, frozen

from andes_sdk.errors import ConfigError, InputError, NotFinite
from andes_sdk.runtime.engine import raise_errors
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.sampling import TokenLogprob

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.runtime.engine import Conversation, Engine
    from andes_sdk.types import Inputs, Tokenizer

__all__ = ["Answer", "AnswerText", "GenerationOptions", "Runs", "TokenLogprob", "generate_batch", "stream"]


@frozen(kw_only=True)
class Answer:
    """What came of a request.

    Attributes:
        text: the answer, with a prefilled `<think>`.
        tokens: ids produced, the end token included.
        finish: "stop" (end token or stop string) or "length".
        prompt_tokens: rows of the prompt, image rows included.
        seconds: time per part; `first_token` is from the request to the first token.
        kv_bytes: bytes of KV rows at the end.
        logprobs: one for each token, if they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    prompt_tokens: int
    seconds: Mapping[str, float]
    kv_bytes: int
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def reasoning(self) -> str:
        """What stands between `<think>` and `</think>`, or after `<think>` if the answer was cut there."""
        return self._parts()[0]

    @property
    def content(self) -> str:
        """The text without the reasoning."""
        return self._parts()[1]

    def _parts(self) -> tuple[str, str]:
        before, opened, rest = self.text.partition("<think>")
        if not opened or before.strip():
            return "", self.text
        inside, _, after = rest.partition("</think>")
        return inside.strip(), after.lstrip()

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the request to the first token."""
        return self.seconds["first_token"]

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0.0 for an answer of one token."""
        return (len(self.tokens) - 1) / self.seconds["decode"] if len(self.tokens) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; times in seconds."""
        names = ("text", "reasoning", "content", "finish", "prompt_tokens", "kv_bytes")
        speeds = {k: getattr(self, k) for k in ("time_to_first_token", "tokens_per_second")}
        own: dict[str, Any] = {k: getattr(self, k) for k in names}
        if self.logprobs:
            own["logprobs"] = [asdict(one) for one in self.logprobs]
        return {**own, "tokens": list(self.tokens), "seconds": dict(self.seconds), **speeds}


@define
class AnswerText:
    """Ids to text behind a prefix: never half a character, never part of a stop string, each id decoded about once."""

    tokenizer: Tokenizer
    stop: Sequence[str]
    text: str
    sent: int = 0
    ended: bool = False
    ids: list[int] = field(factory=list)
    done: int = 0
    shown: int = 0
    begin: int = field(init=False, default=Factory(lambda own: len(own.text), takes_self=True))

    def add(self, ids: Sequence[int]) -> None:
        """Take more ids, until a stop string is complete (`ended`)."""
        if self.ended:
            return
        self.ids += ids
        # decoding a window with a few ids of context keeps spaces right without decoding everything again
        before = self.tokenizer.decode(self.ids[self.done : self.shown])
        after = self.tokenizer.decode(self.ids[self.done :])
        if not after.endswith("\ufffd"):
            self._append(after[len(before) :])
            self.done, self.shown = self.shown, len(self.ids)

    def _append(self, new: str) -> None:
        start = max(self.begin, len(self.text) - max(map(len, self.stop), default=0))
        self.text += new
        found = [at for s in self.stop if (at := self.text.find(s, start)) >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], True

    def finish(self) -> None:
        """Let out what was held back, an incomplete character included."""
        before = self.tokenizer.decode(self.ids[self.done : self.shown])
        if not self.ended:
            self._append(self.tokenizer.decode(self.ids[self.done :])[len(before) :])

    def piece(self, *, final: bool = False) -> str:
        """Text that is certain and was not yet sent."""
        most = 0 if self.ended or final else len(self.text) + 1
        held = max(
            (n for s in self.stop for n in range(1, min(len(s), most)) if self.text.endswith(s[:n], self.begin)),
            default=0,
        )
        until = max(self.sent, len(self.text) - held)
        piece, self.sent = self.text[self.sent : until], until
        return piece


@define(eq=False)
class _Request:
    """One conversation being answered: its text, beside the engine's tokens."""

    conversation: Conversation
    text: AnswerText
    start: float
    ends: Collection[int]

    @classmethod
    def open(cls, pipeline: Runs, engine: Engine, prompt: _Prompt) -> _Request:
        """Let a prepared prompt join the engine."""
        text = AnswerText(pipeline.tokenizer, prompt.options.stop, prompt.inputs.prefix)

        def watch(logits: Tensor, token: int) -> bool:
            if token not in engine.ends:
                text.add([token])
            return text.ended

        conversation = engine.join(prompt.inputs, prompt.options, watch=watch)
        return cls(conversation, text, prompt.start, engine.ends)

    def answer(self) -> Answer:
        """The result; frees the session."""
        one = self.conversation
        stats = one.session.stats
        self.text.finish()
        first = one.first - self.start if one.first else 0.0
        seconds = {**stats.seconds, "decode": one.last - one.first, "first_token": first}
        one.session.close()
        return Answer(
            text=self.text.text, tokens=tuple(one.tokens), finish=one.finish, prompt_tokens=len(one.inputs.ids),
            seconds=seconds, kv_bytes=stats.kv_bytes, logprobs=tuple(one.sampler.logprobs),
        )  # fmt: skip


class Runs(Protocol):
    """What of a pipeline is needed to answer."""

    @property
    def model(self) -> VisionLanguageModel:
        """The modules."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Vocabulary and chat template."""

    def engine(self) -> Engine:
        """An engine without conversations."""

    def prepare(
        self, messages: Any, *, think: bool | None = None, allow_remote: bool = False, image_size: int | None = None
    ) -> Inputs:
        """A conversation as tensors."""


@frozen(eq=False)
class _Prompt:
    inputs: Inputs
    options: GenerationOptions
    start: float

    @classmethod
    def of(cls, pipeline: Runs, messages: Any, options: GenerationOptions, *, allow_remote: bool) -> _Prompt:
        if not isinstance(options, GenerationOptions):
            fix = "write GenerationOptions(max_tokens=…)"
            raise ConfigError(f"expected GenerationOptions, got {options!r}", who="options", fix=fix)
        start = time.perf_counter()
        think, size = options.think, options.image_size
        inputs = pipeline.prepare(messages, think=think, allow_remote=allow_remote, image_size=size)
        return cls(inputs, options, start)


def _raise_errors(pipeline: Runs, requests: Sequence[_Request]) -> None:
    try:
        raise_errors([r.conversation for r in requests])
    except NotFinite as error:
        from andes_sdk.runtime.diagnosis import explained

        inputs = next(r.conversation.inputs for r in requests if r.conversation.error is error)
        raise explained(error, pipeline.model, inputs) from None


def stream(
    pipeline: Runs, messages: Any, options: GenerationOptions, *, allow_remote: bool = False
) -> Generator[str, None, Answer]:
    """Pieces of one answer as they become certain; the generator's return value is the whole `Answer`.

    Closing the generator frees everything it opened.
    """
    engine = pipeline.engine()  # first use builds the model: that is no part of a request's time
    try:
        request = _Request.open(pipeline, engine, _Prompt.of(pipeline, messages, options, allow_remote=allow_remote))
        while engine.active:
            engine.step()
            if piece := request.text.piece():
                yield piece
        _raise_errors(pipeline, [request])
        answer = request.answer()
    finally:
        engine.close()
    if piece := request.text.piece(final=True):
        yield piece
    return answer


def generate_batch(
    pipeline: Runs,
    conversations: Sequence[Any],
    options: GenerationOptions | Sequence[GenerationOptions],
    *,
    allow_remote: bool = False,
) -> list[Answer]:
    """Answer several conversations in shared passes; `options` for all of them, or one for each.

    Raises:
        ConfigError: not as many options as conversations. InputError: no list of conversations. The first error of a
        conversation, after the others ended.
    """
    if isinstance(conversations, str | Mapping) or not isinstance(conversations, Sequence):
        why, fix = f"got {conversations!r}"[:80], "write [conversation]"
        raise InputError("expected a list of conversations", who="generate_batch", why=why, fix=fix)
    each: list[Any] = list(options) if isinstance(options, list | tuple) else [options] * len(conversations)
    if len(each) != len(conversations):
        what = f"{len(each)} options for {len(conversations)} conversations"
        raise ConfigError(what, who="generate_batch", fix="give one, or one for each")
    engine = pipeline.engine()
    prompts = [
        _Prompt.of(pipeline, messages, own, allow_remote=allow_remote)
        for messages, own in zip(conversations, each, strict=True)
    ]
    requests: list[_Request] = []
    try:
        for prompt in prompts:
            requests.append(_Request.open(pipeline, engine, prompt))
        engine.run()
        _raise_errors(pipeline, requests)
        return [request.answer() for request in requests]
    finally:
        engine.close()
        for request in requests:
            request.conversation.session.close()
