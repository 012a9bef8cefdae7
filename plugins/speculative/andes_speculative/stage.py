"""Stage `eagle3`: a draft head learns what the model itself says; the model stays as it is.

The head goes `unroll` tokens ahead of every position, its own rows in place of features, and the loss of step i weighs
0.8^i (EAGLE-3, arXiv 2503.01840, section 3.2). The target is the model's distribution at that position, the tokens that
the head does not know left out. Data lines are conversations as any other, best with the model's own answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from andes_training.data.rows import conversations_of
from andes_training.feed import packed
from attrs import define, field
from torch import Tensor, nn

from .eagle import Eagle3, shape_for, unrolled
from .heads import base_of, save_head

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model, Position

HEAD = "draft"
"""The head's name in the model during the stage."""
DECAY = 0.8
CHUNK_LOGITS = 1 << 25
"""Logits of the model that exist at once: 128 MiB."""


@define(eq=False, kw_only=True)
class Eagle3Stage:
    """Trains a draft head.

    Attributes:
        rate: learning rate. vocabulary: most tokens that the head knows. unroll: tokens that it goes ahead.
    """

    rate: float
    vocabulary: int
    unroll: int = 7
    name: str = "eagle3"
    folder: str = "draft"
    _base: str = field(default="", init=False)

    def put_in(self, model: Model) -> None:
        """Add the head."""
        self._base = base_of(model)  # type: ignore[arg-type]
        head = Eagle3(shape_for(model.text, self.vocabulary))
        for name, weight in head.named_parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02 if name != "head.weight" else 0.01)
        model.add_module(HEAD, head.to(model.device))

    def rates(self, model: Model) -> Mapping[str, float]:
        """The head alone."""
        return {HEAD: self.rate}

    def save(self, model: Model, folder: Path) -> None:
        """Write `eagle3.safetensors`."""
        save_head(getattr(model, HEAD), folder / f"{self.name}.safetensors", self._base)

    def take_out(self, model: Model) -> None:
        """Remove the head."""
        delattr(model, HEAD)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs. Before the first one the head is told its tokens: the most frequent of the data."""
        head: Eagle3 | None = getattr(run.pipeline.model, HEAD, None)
        if head is not None and run.position.step == 0:  # later they are those that the head has learnt
            head.tokens.copy_(frequent(run, len(head.tokens)))
        return packed(run)

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """-> (nats a supervised token, {"right_1": share of first guesses that are the model's choice, ...})."""
        head: Eagle3 = getattr(model, HEAD)
        embeds, features, hidden = target_rows(model, batch, head.shape.taps)
        wanted = batch.labels != -100
        chances, choices = said(model, hidden, wanted, head.tokens)
        total = embeds.new_zeros((), dtype=torch.float32)
        right, seen = [0.0] * self.unroll, [0] * self.unroll
        for chain in chains(batch.attend.segments):
            index = torch.tensor(chain, device=embeds.device)
            steps = unrolled(head, embeds[index].float(), features[index].float(), self.unroll)
            for step, logits in enumerate(steps):
                rows = index[1 + step :]  # row i of this step guesses what the model says at row i + 1 + step
                some = wanted[rows]
                if not bool(some.any()):
                    continue
                logps = logits[some].float().log_softmax(-1)
                place = chances.places[rows[some]]
                total = total - DECAY**step * (chances.values[place] * logps).sum()
                best = head.tokens[logps.detach().argmax(-1)]
                right[step] += float((best == choices[place]).sum())
                seen[step] += int(some.sum())
        figures = {f"right_{n + 1}": right[n] / seen[n] for n in (0, 1, 3) if n < self.unroll and seen[n]}
        return total / batch.tokens, figures


@define(eq=False)
class Chances:
    """What the model says: (n, vocabulary) chances of the known tokens, and (T,) where a row's stand among them."""

    values: Tensor
    places: Tensor


@torch.no_grad()
def target_rows(model: VisionLanguageModel, batch: Batch, taps: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """A pack through the model -> inputs (T, D), features (T, taps, D), rows after the last norm (T, D)."""
    seen: dict[int, Tensor] = {}

    def tap(layer: int, hidden: Tensor) -> None:
        if layer in taps:
            seen[layer] = hidden.detach()

    embeds = model.embed(batch.ids, model.encode(batch.media))
    hidden = model.hidden_states(embeds, batch.positions, batch.attend, tap)
    return embeds, torch.stack([seen[t] for t in taps], dim=1), hidden


@torch.no_grad()
def said(model: VisionLanguageModel, hidden: Tensor, wanted: Tensor, tokens: Tensor) -> tuple[Chances, Tensor]:
    """Of the supervised rows the chances of the known tokens, and (n,) the likeliest of all tokens."""
    size = max(1, CHUNK_LOGITS // model.text.vocab_size)
    values, choices = [], []
    for rows in hidden[wanted].split(size):
        logits = model.logits(rows).float()
        values.append(logits.softmax(-1)[:, tokens])
        choices.append(logits.argmax(-1))
    places = torch.cumsum(wanted, 0) - 1
    return Chances(torch.cat(values), places), torch.cat(choices)


def chains(segments: Sequence[Any]) -> Iterator[list[int]]:
    """Rows of a pack as texts: a sample without branches is one, each branch is one with the prefix before it."""
    start = 0
    for segment in segments:
        prefix = list(range(start, start + segment.prefix))
        start += segment.prefix
        if not segment.branches:
            yield prefix
        for length in segment.branches:
            yield [*prefix, *range(start, start + length)]
            start += length


def frequent(run: StageRun, count: int) -> Tensor:
    """(count,) the tokens that the data's answers hold most often, ascending; filled up with the first ids."""
    tokenizer = run.pipeline.model.tokenizer
    seen: Counter[int] = Counter([tokenizer.eos, tokenizer.pad])
    for text in (t for sample in run.samples for t in answers(sample.entry)):
        seen.update(tokenizer.encode(text))
    best = [token for token, _ in sorted(seen.items(), key=lambda kv: (-kv[1], kv[0]))][:count]
    known = set(best)
    rest = (token for token in range(run.pipeline.model.text.vocab_size) if token not in known)
    return torch.tensor(sorted([*best, *(next(rest) for _ in range(count - len(best)))]))


def answers(entry: Mapping[str, Any]) -> Iterator[str]:
    """Texts of the assistant in a data line."""
    for message in (m for conversation in conversations_of(entry) for m in conversation):
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            continue
        content = message.get("content")
        parts = [{"text": content}] if isinstance(content, str) else content or ()
        yield from (p["text"] for p in parts if isinstance(p, Mapping) and isinstance(p.get("text"), str))
