"""Choosing a token. Noise is a function of (seed, absolute position, token), so the order of calls does not matter.

Sampling is arg-max of log-probabilities plus Gumbel noise (Gumbel 1954; Maddison et al. 2014, A* sampling), which draws
from exactly the softmax. The same seed gives the same text whether tokens are produced one by one or verified in bulk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from attrs import frozen

if TYPE_CHECKING:
    from andes_sdk.runtime.generation import GenerationOptions


def gumbel(seed: int, position: int, size: int) -> np.ndarray:
    """(size,) standard Gumbel noise of one position, from a counter-based generator (Philox; Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, position])).gumbel(size=size)


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
        scores = self._penalised(logits.detach().float().cpu().numpy().astype(np.float64), history)
        if self.options.temperature == 0:
            return int(scores.argmax())
        scores = filtered(scores / self.options.temperature, self.options)
        return int((scores + gumbel(self.options.seed, position, len(scores))).argmax())

    def _penalised(self, scores: np.ndarray, history: Sequence[int]) -> np.ndarray:
        o = self.options
        if o.repetition_penalty != 1.0 and len(history):
            seen = np.unique(np.asarray(history))
            scores[seen] = np.where(
                scores[seen] > 0, scores[seen] / o.repetition_penalty, scores[seen] * o.repetition_penalty
            )
        if o.presence_penalty and len(history) > self.prompt:
            scores[np.unique(np.asarray(history[self.prompt :]))] -= o.presence_penalty
        return scores


def filtered(scores: np.ndarray, options: GenerationOptions) -> np.ndarray:
    """(V,) scores with what top-k, top-p and min-p leave out at -inf; the best token always stays."""
    if 0 < options.top_k < len(scores):
        scores = np.where(scores < np.partition(scores, -options.top_k)[-options.top_k], -np.inf, scores)
    if options.top_p < 1.0:
        order = np.argsort(-scores, kind="stable")
        chances = np.exp(scores[order] - scores[order[0]])
        before = np.cumsum(chances) - chances
        scores[order[before >= options.top_p * chances.sum()]] = -np.inf
    if options.min_p > 0.0:
        scores = np.where(scores < scores.max() + np.log(options.min_p), -np.inf, scores)
    return scores
