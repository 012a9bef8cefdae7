"""Choosing a token. Noise is a function of (seed, absolute position, token), so the order of calls does not matter.

Sampling is arg-max of log-probabilities plus Gumbel noise (Gumbel 1954; Maddison et al. 2014, A* sampling), which draws
from exactly the softmax. The same seed gives the same text whether tokens are produced one by one or verified in bulk.
A vocabulary has some 10**5 tokens, so only those that top-k leaves over become float64 and get noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from attrs import frozen

from andes_sdk.errors import AndesError, NotFinite, SessionError

if TYPE_CHECKING:
    from andes_sdk.runtime.options import GenerationOptions

FEW = 200
"""Tokens up to which noise is drawn one by one: 4 µs each, against 2 ms for a whole vocabulary."""


def gumbel(seed: int, position: int, size: int) -> np.ndarray:
    """(size,) standard Gumbel noise of one position, from a counter-based generator (Philox; Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, position])).gumbel(size=size)


def gumbel_at(seed: int, position: int, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """`gumbel` of these ascending tokens alone, to the bit: the generator jumps to the number of each.

    NumPy draws again where a uniform number is 0, which has a chance of 2**-53: such a draw would shift later tokens.
    """
    stream, block, ahead = np.random.Philox(key=[seed, position]), 0, np.zeros(0, np.uint64)
    noise = np.empty(len(tokens))
    for n, token in enumerate(tokens):
        if not len(ahead) or token // 4 >= block:  # one step of the counter gives four numbers
            stream.advance(token // 4 - block)
            ahead, block = stream.random_raw(4), token // 4 + 1
        uniform = (int(ahead[token % 4]) >> 11) * 2.0**-53
        noise[n] = -math.log(-math.log(1.0 - uniform))
    return noise


@frozen
class TokenLogprob:
    """Natural logarithms of probabilities at one position, before penalties and temperature.

    Attributes:
        top: the most likely tokens, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Seen:
    """Distinct tokens, in the order they came: what penalties are about. Adding one costs the same however many."""

    def __init__(self, tokens: Iterable[int] = (), spared: Collection[int] = ()) -> None:
        self._known: set[int] = set()
        self._spared = frozenset(spared)
        self._list = np.empty(64, np.int64)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """One more."""
        if token in self._known or token in self._spared:
            return
        count = len(self._known)
        if count == len(self._list):
            self._list = np.concatenate([self._list, np.empty(count, np.int64)])
        self._list[count] = token
        self._known.add(token)

    def array(self) -> np.ndarray:
        """(n,) the tokens."""
        return self._list[: len(self._known)]


class TokenSampler:
    """Constraint, then penalties, temperature, top-k, top-p and min-p, then noise.

    Every token it gives is part of the answer. So it keeps what penalties need as it goes. A token costs the same
    behind a long history as behind a short one.

    Args:
        prompt: ids before the answer, for the repetition penalty.
        spared: ids that penalties leave alone, unless the options say otherwise: those that end answers.
    """

    def __init__(self, options: GenerationOptions, prompt: Sequence[int], spared: Collection[int] = ()) -> None:
        self.options = options
        spared = () if options.penalise_ends else spared
        self.answer: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._repeated = Seen(prompt, spared) if options.repetition_penalty != 1.0 else None
        self._present = Seen((), spared) if options.presence_penalty != 0.0 else None

    def next(self, logits: torch.Tensor, position: int) -> int:
        """(V,) logits -> the token for `position`, which joins the answer.

        Raises:
            SessionError: the constraint allows no token. NotFinite: logits that are not.
        """
        raw = logits.detach().float().cpu().numpy()
        if not math.isfinite(raw.max()):
            raise NotFinite("the logits are not finite", fix="check the weights, or use dtype='float32'")
        token = self._pick(raw, position)
        if self.options.logprobs is not None:
            self.logprobs.append(logprob_of(raw, token, self.options.logprobs))
        self.answer.append(token)
        for seen in (self._repeated, self._present):
            if seen is not None:
                seen.add(token)
        return token

    def _pick(self, raw: np.ndarray, position: int) -> int:
        scores = self._allowed(self._penalised(raw))
        if self.options.temperature == 0:
            return int(scores.argmax())
        tokens, scores = survivors(scores, self.options)
        seed = self.options.seed
        if len(tokens) <= FEW:
            noise = gumbel_at(seed, position, tokens.tolist())
        else:
            noise = gumbel(seed, position, int(tokens[-1]) + 1)[tokens]
        return int(tokens[(scores + noise).argmax()])

    def _allowed(self, scores: np.ndarray) -> np.ndarray:
        """The scores, minus infinity where the constraint forbids, or with what it adds."""
        if (constraint := self.options.constraint) is None:
            return scores
        who, fix = f"constraint {type(constraint).__name__}", "return a tensor (V,) of bool or floats, or None"
        try:
            allowed = constraint.allowed(self.answer)
        except AndesError:
            raise
        except Exception as error:
            raise SessionError("failed", who=who, why=f"{type(error).__name__}: {error}", fix="mend it") from error
        if allowed is None:
            return scores
        if not isinstance(allowed, torch.Tensor):
            raise SessionError(f"gives {type(allowed).__name__}", who=who, fix=fix)
        bias = allowed.double() if allowed.is_floating_point() else torch.where(allowed.bool(), 0.0, -torch.inf)
        if bias.shape != scores.shape or not -np.inf < float(bias.max()) < np.inf:
            what = f"allows {int((bias > -torch.inf).sum())} of {bias.numel()} tokens, the model has {len(scores)}"
            raise SessionError(what, who=who, fix="allow at least the end token")
        return np.asarray(scores + bias.cpu().numpy())

    def _penalised(self, scores: np.ndarray) -> np.ndarray:
        """The scores themselves, or a float64 copy with penalties."""
        repeated = None if self._repeated is None else self._repeated.array()
        present = None if self._present is None else self._present.array()
        if (repeated is None or not len(repeated)) and (present is None or not len(present)):
            return scores
        scores = scores.astype(np.float64)
        if repeated is not None:
            old, penalty = scores[repeated], self.options.repetition_penalty
            scores[repeated] = np.where(old > 0, old / penalty, old * penalty)
        if present is not None:
            scores[present] -= self.options.presence_penalty
        return scores


def logprob_of(raw: np.ndarray, token: int, top: int) -> TokenLogprob:
    """(V,) logits -> log-softmax of a token, and of the `top` most likely ones."""
    scores = raw.astype(np.float64)
    best = float(scores.max())
    scores -= best + math.log(float(np.exp(scores - best).sum()))
    count = min(top, len(scores))
    some = np.argpartition(-scores, count - 1)[:count] if count else np.zeros(0, np.int64)
    order = some[np.lexsort((some, -scores[some]))]
    return TokenLogprob(token, float(scores[token]), tuple((int(t), float(scores[t])) for t in order))


def survivors(scores: np.ndarray, options: GenerationOptions) -> tuple[np.ndarray, np.ndarray]:
    """(V,) scores -> what top-k, top-p and min-p leave: tokens (n,) ascending, and their scores / temperature, float64.

    The best token always stays; tokens that tie with the last of the top k stay with it.
    """
    if 0 < options.top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.partition(scores, -options.top_k)[-options.top_k])
    else:
        tokens = np.arange(len(scores))
    tokens = tokens[scores[tokens] > -np.inf]  # what a constraint forbids
    scores = scores[tokens].astype(np.float64) / options.temperature
    if options.top_p < 1.0:
        kept = np.sort(_nucleus(scores, options.top_p))
        tokens, scores = tokens[kept], scores[kept]
    if options.min_p > 0.0:
        likely = scores >= scores.max() + np.log(options.min_p)
        tokens, scores = tokens[likely], scores[likely]
    return tokens, scores


def _nucleus(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the best scores, best first, whose softmax adds up to `top_p`: all before it is reached, and one."""
    chances = np.exp(scores - scores.max())
    wanted, count = top_p * chances.sum(), 256
    best = np.arange(len(scores))
    while count < len(scores):  # sorting a few that hold enough is 50 times faster than sorting a vocabulary
        some = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        if chances[some].sum() > wanted:
            best = some
            break
        count *= 8
    best = best[np.argsort(-scores[best], kind="stable")]
    before = np.cumsum(chances[best]) - chances[best]
    kept: np.ndarray = best[before < wanted]
    return kept
