"""Decoders: whatever they propose, the text is the default decoder's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from torch import Tensor

from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.testing.reference import ReferencePolicy
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import NotApplicable, require, require_close, require_finite
from andes_sdk.types import Decoder, Inputs

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.testing.subject import Subject

KIND = "decoder"
TOKENS = 16


@frozen
class Noisy:
    """A sampler of the kit's own: noise of one position depends on the position alone; `heat` 0 is greedy."""

    heat: float = 0.0

    def pick(self, logits: Tensor, position: int, history: Sequence[int]) -> int:
        """(V,) logits -> a token."""
        scores = logits.double().cpu().numpy()
        return int((scores + self.heat * np.random.default_rng(position).gumbel(size=len(scores))).argmax())


def _decoder(subject: Subject) -> Any:
    return subject.assembly.slot("decoder", model=subject.pipe.model)


def _same_text(subject: Subject, options: Sequence[GenerationOptions]) -> None:
    pipe, plain = subject.pipe, subject.baseline()
    for number, option in enumerate(options):
        got, wanted = (p.generate(conversation(number), option).tokens for p in (pipe, plain))
        require(
            got == wanted,
            f"temperature {option.temperature}, seed {option.seed}: decodes {got}, the default decoder {wanted}",
        )


def _run(pipe: Pipeline, decoder: Any, heat: float = 0.0) -> tuple[Any, list[int], list[int]]:
    """Decode until TOKENS tokens -> session, prompt and the history the decoder kept."""
    inputs = plain_inputs(pipe, 20)
    session = pipe.compiled.session(KeepAll())
    logits = session.prefill(inputs)
    prompt = inputs.ids.tolist()
    history, yielded = list(prompt), 0
    steps = decoder.decode(session, logits, Noisy(heat), history)
    for tokens in steps:
        listed = isinstance(tokens, list) and tokens and all(type(t) is int for t in tokens)
        require(listed, f"yields {tokens!r}, not a non-empty list of ids")
        yielded += len(tokens)
        require(len(history) == len(prompt) + yielded, f"after {yielded} tokens history grew by {len(history) - 20}")
        require(history[-len(tokens) :] == tokens, f"yields {tokens}, history ends with {history[-len(tokens) :]}")
        if yielded >= TOKENS:
            break
    require(yielded >= TOKENS, f"stops by itself after {yielded} tokens")
    steps.close()
    return session, prompt, history


@check(KIND, "has a name")
def _named(subject: Subject) -> None:
    decoder = _decoder(subject)
    require(isinstance(decoder, Decoder), f"{type(decoder).__name__} is no Decoder: name, decode")
    require(isinstance(decoder.name, str) and decoder.name, f"its name is {decoder.name!r}")
    # the core takes steps of several conversations together only for its own decoder
    require(decoder.name != "autoregressive", "its name is the default decoder's")


@check(KIND, "greedy text is the default decoder's")
def _greedy(subject: Subject) -> None:
    penalised = GenerationOptions(max_tokens=TOKENS, repetition_penalty=1.3, presence_penalty=0.2)
    _same_text(subject, [GenerationOptions(max_tokens=TOKENS), penalised])


@check(KIND, "sampled text is the default decoder's")
def _sampled(subject: Subject) -> None:
    # two candidates per token: guesses come true often, and a wrong verification takes the other one half the time
    heats = ((0.3, 0, 1), (1.5, 0, 2), (1.0, 2, 3), (2.0, 2, 4), (1.0, 3, 5))
    many = 3 * TOKENS
    _same_text(subject, [GenerationOptions(max_tokens=many, temperature=t, top_k=k, seed=s) for t, k, s in heats])


@check(KIND, "yields non-empty lists of ids and keeps the history")
def _lists(subject: Subject) -> None:
    for heat in (0.0, 1.0):
        _run(subject.pipe, _decoder(subject), heat)[0].close()


@check(KIND, "stopped, it leaves no uncommitted rows behind")
def _tidy(subject: Subject) -> None:
    pipe = subject.pipe
    session, prompt, history = _run(pipe, _decoder(subject), heat=1.0)
    require(len(prompt) <= session.length <= len(history), f"{session.length} rows committed of {len(history)} tokens")
    clean = pipe.compiled.session(KeepAll())
    clean.prefill(Inputs(ids=plain_inputs(pipe, 20).ids))
    if session.length > len(prompt):
        clean.extend(history[len(prompt) : session.length])
        clean.commit()
    # a row left behind would push the next one to another place and into its sight
    got, wanted = session.extend([1])[0], clean.extend([1])[0]
    session.close()
    clean.close()
    require_close(got, wanted, 1e-4, "the next row after the decoder was stopped, against a clean session")


@check(KIND, "the session counts what it proposed and what was accepted")
def _counted(subject: Subject) -> None:
    session, prompt, _ = _run(subject.pipe, _decoder(subject))
    stats = session.stats
    session.close()
    accepted = stats.committed - len(prompt)
    require(stats.accepted == accepted, f"{stats.accepted} counted as accepted, {accepted} rows were committed")
    require(stats.proposed >= stats.accepted > 0, f"{stats.proposed} proposed, {stats.accepted} accepted")


@check(KIND, "decodes under a policy that evicts")
def _evicting(subject: Subject) -> None:
    if "andes_cache_policy" in subject.hooks:
        raise NotApplicable("the plugin brings its own cache policy")
    pipe = subject.pipe
    session = pipe.compiled.session(ReferencePolicy(rows=16).andes_cache_policy(model=pipe.model))
    inputs = plain_inputs(pipe, 60)
    logits = session.prefill(inputs)
    count = 0
    for tokens in _decoder(subject).decode(session, logits, Noisy(), inputs.ids.tolist()):
        count += len(tokens)
        if count >= TOKENS:
            break
    require_finite(session.extend([1])[0], "logits after decoding under eviction")
    session.close()
