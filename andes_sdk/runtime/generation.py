"""From a conversation to an answer: prefill, decode, stop, detokenise."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen
from attrs.validators import and_, ge, gt, le

from andes_sdk.runtime.sampling import TokenSampler

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Inputs, Session, Tokenizer


@frozen(kw_only=True)
class GenerationOptions:
    """How an answer is decoded.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 decodes greedily; published Thinking models use 0.6 with top_k 20 and top_p 0.95.
        top_k: 0 for all. top_p, min_p: as in transformers.
        repetition_penalty: over prompt and answer (CTRL). presence_penalty: over the answer (OpenAI).
        stop: strings that end the answer; they are not part of it.
        seed: keys the noise together with the position.
        think: prefill `<think>`; None leaves it to the language model's plugin.
        adapter: name of a LoRA adapter that `pipeline.add_adapter` attached; None: none.
    """

    max_tokens: int = field(default=512, validator=ge(1))
    temperature: float = field(default=0.0, validator=ge(0.0))
    top_k: int = field(default=0, validator=ge(0))
    top_p: float = field(default=1.0, validator=and_(gt(0.0), le(1.0)))
    min_p: float = field(default=0.0, validator=and_(ge(0.0), le(1.0)))
    repetition_penalty: float = field(default=1.0, validator=gt(0.0))
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = field(default=0, validator=ge(0))
    think: bool | None = None
    adapter: str | None = None


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
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    prompt_tokens: int
    seconds: Mapping[str, float]
    kv_bytes: int

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the request to the first token."""
        return self.seconds["first_token"]

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0.0 for an answer of one token."""
        return (len(self.tokens) - 1) / self.seconds["decode"] if len(self.tokens) > 1 else 0.0


@define
class _Text:
    """Ids to text piece by piece: never half a character, never part of a stop string, each id decoded about once."""

    tokenizer: Tokenizer
    stop: Sequence[str]
    text: str
    sent: int = 0
    ended: bool = False
    ids: list[int] = field(factory=list)
    done: int = 0
    shown: int = 0

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
        start = max(0, len(self.text) - max(map(len, self.stop), default=0))
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
        held = 0
        if not (self.ended or final):
            held = max((n for s in self.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        until = max(self.sent, len(self.text) - held)
        piece, self.sent = self.text[self.sent : until], until
        return piece


@define
class _Request:
    """One conversation being answered."""

    pipeline: Pipeline
    inputs: Inputs
    options: GenerationOptions
    session: Session
    text: _Text
    start: float
    tokens: list[int] = field(factory=list)
    finish: str = ""
    first_token: float = 0.0
    decode: float = 0.0

    def take(self, tokens: Sequence[int]) -> None:
        """Accept decoded tokens up to an end, the limit or a stop string."""
        now = time.perf_counter()
        ends = {self.pipeline.tokenizer.eos, self.pipeline.tokenizer.pad}
        self.first_token = self.first_token or now - self.start
        self.decode = now - self.start - self.first_token
        for token in tokens:
            self.tokens.append(token)
            if token in ends:
                self.finish = "stop"
                return
            self.text.add([token])
            if self.text.ended:
                self.finish = "stop"
                return
            if len(self.tokens) >= self.options.max_tokens:
                self.finish = "length"
                return

    def answer(self) -> Answer:
        """The result; frees the session."""
        stats = self.session.stats
        self.text.finish()
        seconds = {**stats.seconds, "decode": self.decode, "first_token": self.first_token}
        self.session.close()
        return Answer(
            text=self.text.text,
            tokens=tuple(self.tokens),
            finish=self.finish,
            prompt_tokens=len(self.inputs.ids),
            seconds=seconds,
            kv_bytes=stats.kv_bytes,
        )


def _begin(pipeline: Pipeline, messages: Any, options: GenerationOptions, *, allow_remote: bool) -> _Request:
    session = pipeline.session()  # first use builds the model: that is no part of a request's time
    session.adapter = options.adapter
    start = time.perf_counter()
    inputs = pipeline.prepare(messages, think=options.think, allow_remote=allow_remote)
    text = _Text(pipeline.tokenizer, options.stop, inputs.prefix)
    return _Request(pipeline, inputs, options, session, text, start)


def _decode(request: _Request) -> Iterator[None]:
    """Run the pipeline's decoder on one request, a step at a time."""
    logits = request.session.prefill(request.inputs)
    history = request.inputs.ids.tolist()
    sampler = TokenSampler(request.options, len(history))
    for tokens in request.pipeline.decoder.decode(request.session, logits, sampler, history):
        request.take(tokens)
        yield
        if request.finish:
            return


def stream(
    pipeline: Pipeline, messages: Any, options: GenerationOptions, *, allow_remote: bool = False
) -> Generator[str, None, Answer]:
    """Pieces of one answer as they become certain; the generator's return value is the whole `Answer`."""
    request = _begin(pipeline, messages, options, allow_remote=allow_remote)
    for _ in _decode(request):
        if piece := request.text.piece():
            yield piece
    answer = request.answer()
    if piece := request.text.piece(final=True):
        yield piece
    return answer


def generate_batch(
    pipeline: Pipeline, conversations: Sequence[Any], options: GenerationOptions, *, allow_remote: bool = False
) -> list[Answer]:
    """Answer several conversations; the default decoder takes its steps together, others run one by one."""
    requests = [_begin(pipeline, c, options, allow_remote=allow_remote) for c in conversations]
    if len(requests) > 1 and pipeline.decoder.name == "autoregressive":
        _decode_together(pipeline, requests)
    else:
        for request in requests:
            for _ in _decode(request):
                pass
    return [request.answer() for request in requests]


def _decode_together(pipeline: Pipeline, requests: Sequence[_Request]) -> None:
    """Lock-step decoding: each step reads the weights once for all unfinished conversations."""
    logits = [r.session.prefill(r.inputs) for r in requests]
    histories = [r.inputs.ids.tolist() for r in requests]
    samplers = [TokenSampler(r.options, len(h)) for r, h in zip(requests, histories, strict=True)]
    active = list(range(len(requests)))
    while active:
        for i in active:
            token = samplers[i].pick(logits[i], requests[i].session.length, histories[i])
            histories[i].append(token)
            requests[i].take([token])
        active = [i for i in active if not requests[i].finish]
        if not active:
            return
        sessions = [requests[i].session for i in active]
        steps = pipeline.compiled.extend_many(sessions, [histories[i][-1:] for i in active])
        for i, (rows, _) in zip(active, steps, strict=True):
            logits[i] = rows[-1]
            requests[i].session.commit()
