"""Answers from the model itself: an engine on the weights that learn, with the pipeline's decoder and cache policy.

The prompt of a group is read once, and its session forked for each answer. Noise is keyed by (seed, position), so an
answer depends on the weights, the prompt and its seed alone (up to rounding, not on what is decoded beside it):
`pipe.generate` with the same seed and temperature gives the same text. Left out: top-k and top-p, because the loss
takes the whole softmax for what was sampled from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from andes_training.evaluating import evaluation_mode
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.runtime.engine import Engine, raise_errors
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.torch_backend import CompiledTorch

from .policy import log_policy, placeholders
from .prompts import Completion, Prompt

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.engine import Conversation


@frozen(eq=False)
class Banned:
    """A constraint: every token but some, in every place."""

    mask: Tensor

    @classmethod
    def of(cls, tokens: Sequence[int], vocab_size: int) -> Banned:
        """All of a vocabulary but these tokens."""
        return cls(~torch.isin(torch.arange(vocab_size), torch.tensor(tokens)))

    def allowed(self, answer: Sequence[int]) -> Tensor:
        """(V,) bool."""
        return self.mask


@define(eq=False)
class _Answer:
    """One answer in the making: log-probabilities of its tokens, beside the engine's conversation."""

    banned: Sequence[int]
    temperature: float
    logps: list[float] = field(factory=list)

    def watch(self, logits: Tensor, token: int) -> None:
        """Note how likely the policy made a token."""
        scores = log_policy(logits[None], banned=self.banned, temperature=self.temperature)
        self.logps.append(float(scores[0, token]))


@frozen(eq=False)
class SessionSampler:
    """Samples from a pipeline's model as it is now, with its decoder and under its cache policy.

    Attributes:
        max_answer: longest answer in tokens. temperature: of the policy. concurrency: answers decoded together.
    """

    pipeline: Pipeline
    max_answer: int
    temperature: float = 1.0
    concurrency: int = 64

    def answers(self, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """Per prompt one answer for each of its seeds."""
        with torch.inference_mode(), evaluation_mode(self.pipeline.model):
            return self._decoded(prompts, self._engine())

    def _engine(self) -> Engine:
        pipe = self.pipeline
        compiled = CompiledTorch(pipe.model, taps=tuple(sorted({*pipe.policy.taps, *pipe.decoder.taps})))
        ends = frozenset((pipe.tokenizer.eos, pipe.tokenizer.pad))
        return Engine(compiled, pipe.policy, pipe.decoder, ends, pipe.model.text.max_positions)

    def _decoded(self, prompts: Sequence[Prompt], engine: Engine) -> list[list[Completion]]:
        waiting = list(self._groups(prompts))
        done: list[dict[int, Completion]] = [{} for _ in prompts]
        going: list[tuple[int, int, Conversation, _Answer]] = []
        try:
            while waiting or going:
                while waiting and len(going) + len(waiting[0][1]) <= self.concurrency:
                    going += self._joined(engine, prompts, *waiting.pop(0))
                engine.step()
                for index, place, conversation, answer in [one for one in going if one[2].finish]:
                    raise_errors([conversation])
                    done[index][place] = self._finished(conversation, answer)
                going = [one for one in going if not one[2].finish]
        finally:
            engine.close()
        return [[answers[place] for place in sorted(answers)] for answers in done]

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, range]]:
        """A prompt and places of its seeds, as many as may be decoded together."""
        for index, prompt in enumerate(prompts):
            places = range(len(prompt.seeds))
            for start in range(0, len(places), self.concurrency):
                yield index, places[start : start + self.concurrency]

    def _joined(
        self, engine: Engine, prompts: Sequence[Prompt], index: int, places: range
    ) -> list[tuple[int, int, Conversation, _Answer]]:
        """Answers to one prompt, which is read once for all of them."""
        prompt, tokens = prompts[index], placeholders(self.pipeline.model)
        banned = Banned.of(tokens, self.pipeline.model.text.vocab_size)
        options = [
            GenerationOptions(
                max_tokens=self.max_answer, temperature=self.temperature, seed=prompt.seeds[place], constraint=banned
            )
            for place in places
        ]
        answers = [_Answer(tokens, self.temperature) for _ in places]
        joined = engine.join_many(prompt.inputs, options, [a.watch for a in answers])
        return [(index, *one) for one in zip(places, joined, answers, strict=True)]

    def _finished(self, conversation: Conversation, answer: _Answer) -> Completion:
        conversation.session.close()
        tokens, ended = conversation.tokens, conversation.finish == "stop"
        text = self.pipeline.tokenizer.decode(tokens[:-1] if ended else tokens)
        return Completion(tuple(tokens), tuple(answer.logps), conversation.inputs.prefix + text, ended)
