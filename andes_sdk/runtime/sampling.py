"""Choosing a token. Noise is a function of (seed, absolute position, token), so the order of calls does not matter.

Sampling is arg-max of log-probabilities plus Gumbel noise (Gumbel 1954; Maddison et al. 2014, A* sampling), which draws
from exactly the softmax. The same seed gives the same text whether tokens are produced one by one or verified in bulk.
A vocabulary has some 10**5 tokens, so only those that top-k leaves over become float64 and get noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from attrs import frozen

if TYPE_CHECKING:
    from andes_sdk.runtime.generation import GenerationOptions

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


@frozen(eq=False)
class TokenSampler:
    """Penalties, then temperature, then top-k, top-p and min-p, then noise.

    Attributes:
        options: the request's sampling options.
        prompt: length of the prompt in the history; the presence penalty looks only at what follows.
    """

    options: GenerationOptions
    prompt: int

    def pick(self, logits: torch.Tensor, position: int, history: Sequence[int]) -> int:
        """(V,) logits -> the token for `position`."""
        scores = self._penalised(logits.detach().float().cpu().numpy(), history)
        if self.options.temperature == 0:
            return int(scores.argmax())
        tokens, scores = survivors(scores, self.options)
        seed = self.options.seed
        if len(tokens) <= FEW:
            noise = gumbel_at(seed, position, tokens.tolist())
        else:
            noise = gumbel(seed, position, int(tokens[-1]) + 1)[tokens]
        return int(tokens[(scores + noise).argmax()])

    def _penalised(self, scores: np.ndarray, history: Sequence[int]) -> np.ndarray:
        """The scores themselves, or a float64 copy with penalties."""
        o = self.options
        repeated = o.repetition_penalty != 1.0 and len(history) > 0
        present = o.presence_penalty != 0.0 and len(history) > self.prompt
        if not repeated and not present:
            return scores
        scores = scores.astype(np.float64)
        if repeated:
            seen = np.unique(np.asarray(history))
            old = scores[seen]
            scores[seen] = np.where(old > 0, old / o.repetition_penalty, old * o.repetition_penalty)
        if present:
            scores[np.unique(np.asarray(history[self.prompt :]))] -= o.presence_penalty
        return scores


def survivors(scores: np.ndarray, options: GenerationOptions) -> tuple[np.ndarray, np.ndarray]:
    """(V,) scores -> what top-k, top-p and min-p leave: tokens (n,) ascending, and their scores / temperature, float64.

    The best token always stays; tokens that tie with the last of the top k stay with it.
    """
    if 0 < options.top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.partition(scores, -options.top_k)[-options.top_k])
    else:
        tokens = np.arange(len(scores))
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
