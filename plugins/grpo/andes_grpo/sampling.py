"""Answers from the model itself: sessions on the weights that learn, decoded in lock-step.

The prompt of a group is read once, and its session copied for each answer. Noise is keyed by (seed, position), so an
answer depends on the weights, the prompt and its seed alone (up to rounding, not on what is decoded beside it):
`pipe.generate` with the same seed and temperature gives the same text. Left out: top-k and top-p, because the loss
takes the whole softmax for what was sampled from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.runtime.sampling import TokenSampler
from andes_sdk.runtime.torch_backend import CompiledTorch

from .policy import log_policy
from .prompts import Completion, Prompt

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.session import TorchSession


@define(eq=False)
class _Answer:
    """One answer in the making."""

    session: TorchSession
    sampler: TokenSampler
    history: list[int]
    logits: Tensor
    prefix: str
    tokens: list[int] = field(factory=list)
    logps: list[float] = field(factory=list)
    done: bool = False


@frozen(eq=False)
class SessionSampler:
    """Samples from a pipeline's model as it is now, under its cache policy.

    Attributes:
        max_answer: longest answer in tokens. temperature: of the policy. concurrency: answers decoded together.
    """

    pipeline: Pipeline
    max_answer: int
    temperature: float = 1.0
    concurrency: int = 64

    def answers(self, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """Per prompt one answer for each of its seeds."""
        with torch.inference_mode(), _evaluating(self.pipeline.model):
            return list(self._in_parts(prompts))

    def _in_parts(self, prompts: Sequence[Prompt]) -> Iterator[list[Completion]]:
        waiting = [(i, seed) for i, p in enumerate(prompts) for seed in p.seeds]
        done: list[list[Completion]] = [[] for _ in prompts]
        for start in range(0, len(waiting), self.concurrency):
            part = waiting[start : start + self.concurrency]
            for (index, _), answer in zip(part, self._decode(prompts, part), strict=True):
                done[index].append(answer)
        yield from done

    def _decode(self, prompts: Sequence[Prompt], part: Sequence[tuple[int, int]]) -> list[Completion]:
        compiled = CompiledTorch(self.pipeline.model)
        answers = self._begin(compiled, prompts, part)
        ends = {self.pipeline.tokenizer.eos, self.pipeline.tokenizer.pad}
        active = answers
        while True:
            self._pick(active, ends)
            active = [a for a in active if not a.done and len(a.tokens) < self.max_answer]
            if not active:
                break
            steps = compiled.extend_many([a.session for a in active], [a.tokens[-1:] for a in active])
            for answer, (logits, _) in zip(active, steps, strict=True):
                answer.logits = logits[-1]
                answer.session.commit()
        return [self._finished(a) for a in answers]

    def _begin(
        self, compiled: CompiledTorch, prompts: Sequence[Prompt], part: Sequence[tuple[int, int]]
    ) -> list[_Answer]:
        read: dict[int, tuple[TorchSession, Tensor]] = {}
        answers = []
        for index, seed in part:
            inputs = prompts[index].inputs
            if index not in read:
                session = compiled.session(self.pipeline.policy)
                read[index] = session, session.prefill(inputs)
            session, logits = read[index]
            options = GenerationOptions(max_tokens=self.max_answer, temperature=self.temperature, seed=seed)
            history = inputs.ids.tolist()
            sampler = TokenSampler(options, len(history))
            answers.append(_Answer(_copied(session, compiled), sampler, history, logits, inputs.prefix))
        return answers

    def _pick(self, active: Sequence[_Answer], ends: set[int]) -> None:
        """One token for each answer, with its log-probability."""
        image_token = self.pipeline.tokenizer.image_token
        logits = torch.stack([a.logits for a in active]).float()  # (B, V)
        logits[:, image_token] = -torch.inf
        scores = log_policy(logits, image_token=image_token, temperature=self.temperature)
        picked = [a.sampler.pick(row, a.session.length, a.history) for a, row in zip(active, logits, strict=True)]
        chosen = scores.gather(1, torch.tensor(picked, device=scores.device)[:, None])[:, 0].tolist()
        for answer, token, logp in zip(active, picked, chosen, strict=True):
            answer.history.append(token)
            answer.tokens.append(token)
            answer.logps.append(logp)
            answer.done = token in ends

    def _finished(self, answer: _Answer) -> Completion:
        answer.session.close()
        text = self.pipeline.tokenizer.decode(answer.tokens[:-1] if answer.done else answer.tokens)
        return Completion(tuple(answer.tokens), tuple(answer.logps), answer.prefix + text, answer.done)


def _copied(session: TorchSession, compiled: CompiledTorch) -> TorchSession:
    """A session of its own with the rows read so far; what sessions were made with stays shared."""
    shared = (compiled.model, compiled.adapters, session.policy)
    return copy.deepcopy(session, {id(x): x for x in shared})


@contextmanager
def _evaluating(model: VisionLanguageModel) -> Iterator[None]:
    """Evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
