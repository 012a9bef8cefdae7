"""A request on its way through the engine, and what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from andes_sdk.runtime.generation import AnswerText
from andes_serve.texts import Splitter

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.runtime.engine import Conversation, Engine
    from andes_sdk.runtime.options import GenerationOptions
    from andes_sdk.runtime.sampling import TokenLogprob
    from andes_sdk.types import Inputs, Tokenizer


@frozen(kw_only=True)
class Piece:
    """More of one answer.

    Attributes:
        index: which of the answers. tokens: how many are new. finish: "stop" or "length" with the last piece.
    """

    index: int
    reasoning: str = ""
    content: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str = ""


@frozen(kw_only=True)
class Usage:
    """What a request took, in tokens, and in seconds where it says so.

    Attributes:
        cached: of the prompt, rows that were there already. image: of the prompt, rows of pictures.
        accepted: tokens of answers that the decoder guessed.
        kv_bytes: of KV rows at the end, all answers together. kv_kept: share of the rows that the cache policy left.
        first: seconds from the request to the first token. decode: seconds from there to the last one.
    """

    prompt: int
    cached: int
    image: int
    answer: int
    reasoning: int
    accepted: int
    first: float
    decode: float
    kv_bytes: int
    kv_kept: float


@frozen
class Done:
    """The last event of a request that was answered."""

    usage: Usage


@frozen
class Failed:
    """The last event of a request that was not."""

    error: BaseException


Event = Piece | Done | Failed


@define(eq=False)
class Choice:
    """One of the answers to a request."""

    index: int
    options: GenerationOptions
    text: AnswerText
    splitter: Splitter
    ends: Collection[int]
    conversation: Conversation | None = None
    tokens: int = 0
    reasoning: int = 0
    accepted: int = 0
    logprobs: int = 0
    closed: bool = False

    def watch(self, engine: Engine) -> Callable[[Tensor, int], bool]:
        """What the engine calls with each token."""

        def seen(logits: Tensor, token: int) -> bool:
            if token not in engine.ends:
                self.text.add([token])
            return self.text.ended

        return seen

    def event(self, *, final: bool = False) -> Piece | None:
        """What is new since the last call, or None."""
        one = self.conversation
        if one is None:
            return None
        new = len(one.tokens) - self.tokens
        if not new and not final:
            return None
        inside = self.splitter.reasoning
        if final:
            self.text.finish()
        reasoning, content = self.splitter.feed(self.text.piece(final=final), final=final)
        self.tokens += new
        if inside:
            self.reasoning += new
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.options.logprobs is not None and (content or final):
            fresh = one.sampler.logprobs[self.logprobs :]
            self.logprobs += len(fresh)
            logprobs = tuple(each for each in fresh if each.token not in self.ends)
        finish = one.finish if final else ""
        if not (reasoning or content or finish):
            return None
        return Piece(
            index=self.index, reasoning=reasoning, content=content, tokens=new, logprobs=logprobs, finish=finish
        )


@define(eq=False)
class Job:
    """A request: a prompt, and how each of its answers is decoded.

    Attributes:
        deliver: takes events, on the engine's thread. start: when it came, by `time.perf_counter`.
        timeout: seconds from then until it is given up. memory: bytes that it may need.
    """

    inputs: Inputs
    options: Sequence[GenerationOptions]
    deliver: Callable[[Sequence[Event]], None]
    timeout: float
    start: float = field(factory=time.perf_counter)
    memory: int = 0
    choices: list[Choice] = field(factory=list)
    cancelled: bool = False
    cached: int = 0
    kv_bytes: int = 0
    kv_rows: int = 0
    kv_read: int = 0

    def open(self, tokenizer: Tokenizer) -> list[Choice]:
        """Its answers, before the first token."""
        prefix, ends = self.inputs.prefix, (tokenizer.eos, tokenizer.pad)
        for index, options in enumerate(self.options):
            text = AnswerText(tokenizer, options.stop, prefix, sent=len(prefix))
            splitter = Splitter()
            if prefix:
                splitter.feed(prefix)
            self.choices.append(Choice(index, options, text, splitter, ends))
        return self.choices

    @property
    def image_rows(self) -> int:
        """Rows of pictures in the prompt."""
        media = self.inputs.media.get("image")
        return sum(media.rows) if media else 0

    def usage(self) -> Usage:
        """What it took so far."""
        found = [c.conversation for c in self.choices if c.conversation is not None and c.conversation.first]
        first = min((c.first for c in found), default=self.start)
        last = max((c.last for c in found), default=first)
        return Usage(
            prompt=len(self.inputs.ids), cached=self.cached, image=self.image_rows,
            answer=sum(c.tokens for c in self.choices), reasoning=sum(c.reasoning for c in self.choices),
            accepted=sum(c.accepted for c in self.choices), first=first - self.start, decode=last - first,
            kv_bytes=self.kv_bytes, kv_kept=self.kv_rows / self.kv_read if self.kv_read else 1.0,
        )  # fmt: skip


def facts_of(usage: Usage) -> dict[str, Any]:
    """`usage` as OpenAI's chat completions say it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "image_tokens": usage.image},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "accepted_prediction_tokens": usage.accepted,
        },
        "kv_cache": kv_of(usage),
    }


def kv_of(usage: Usage) -> dict[str, Any]:
    """What the cache policy did; OpenAI has no word for it."""
    return {"bytes": usage.kv_bytes, "kept": round(usage.kv_kept, 4)}


def responses_facts_of(usage: Usage) -> dict[str, Any]:
    """`usage` as responses say it."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "image_tokens": usage.image},
        "output_tokens": usage.answer,
        "output_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "accepted_prediction_tokens": usage.accepted,
        },
        "total_tokens": usage.prompt + usage.answer,
        "kv_cache": kv_of(usage),
    }
