"""Stages `eagle3` and `block`: a draft head learns what the model itself says; the model stays as it is.

The loss of a token that is i tokens ahead weighs 0.8^i (EAGLE-3, arXiv 2503.01840, section 3.2). The target is the
model's distribution at that position, the tokens that the head does not know left out. Data lines are conversations as
any other, best with the model's own answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from andes_training.data.rows import conversations_of
from andes_training.feed import packed
from attrs import asdict, define, field, frozen
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from andes_sdk.runtime.attention import PackedAttention

from .block import Block, BlockShape, blocks, spread_out
from .eagle import Eagle3, shape_for, unrolled
from .heads import Head, base_of, save_head

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model, Position, TextSpec

HEAD = "draft"
"""The head's name in the model during the stage."""
DECAY = 0.8
ANCHORS = 512
"""Most blocks of one text."""
CHUNK_LOGITS = 1 << 25
"""Logits of the model that exist at once: 128 MiB."""
KEPT_BYTES = 2 << 30
"""What rows of texts that come again may take, on a CPU: there the model costs more than the head."""


@define(eq=False, kw_only=True)
class HeadStage(ABC):
    """Trains a draft head.

    Attributes:
        rate: learning rate. vocabulary: most tokens that the head knows. name: its kind.
    """

    rate: float
    vocabulary: int
    name: str
    folder: str = "draft"
    _base: str = field(default="", init=False)
    _known: Known = field(factory=lambda: Known(), init=False)

    @abstractmethod
    def new_head(self, text: TextSpec) -> Head:
        """A head that fits a model."""

    @abstractmethod
    def ahead(self, head: Any, embeds: Tensor, features: Tensor, wanted: Tensor) -> Iterator[Ahead]:
        """What the head says of a text at each distance.

        Args:
            embeds: (n, D). features: (n, taps, D). wanted: (n,) rows whose next token is learnt.
        """

    def put_in(self, model: Model) -> None:
        """Add the head."""
        self._base = base_of(model)  # type: ignore[arg-type]
        self._known = Known()  # of the weights as they are now
        head = self.new_head(model.text)
        for name, weight in head.named_parameters():
            if weight.ndim > 1 or name == "mark":
                nn.init.normal_(weight, std=0.02 if name != "head.weight" else 0.01)
        model.add_module(HEAD, head.to(model.device))

    def rates(self, model: Model) -> Mapping[str, float]:
        """The head alone."""
        return {HEAD: self.rate}

    def save(self, model: Model, folder: Path) -> None:
        """Write the head, named after its kind."""
        save_head(getattr(model, HEAD), folder / f"{self.name}.safetensors", self._base)

    def take_out(self, model: Model) -> None:
        """Remove the head."""
        delattr(model, HEAD)
        self._known = Known()

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs. Before the first one the head is told its tokens: the most frequent of the data."""
        head: Head | None = getattr(run.pipeline.model, HEAD, None)
        if head is not None and run.position.step == 0:  # later they are those that the head has learnt
            head.tokens.copy_(frequent(run, len(head.tokens)))
        return packed(run)

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """-> (nats a supervised token, {"right_1": share of first guesses that are the model's choice, ...})."""
        head: Head = getattr(model, HEAD)
        embeds, features, hidden = target_rows(model, batch, head.shape.taps, self._known)
        wanted = batch.labels != -100
        chances, choices = said(model, hidden, wanted, head.tokens)
        total = embeds.new_zeros((), dtype=torch.float32)
        right: Counter[int] = Counter()
        seen: Counter[int] = Counter()
        for chain in chains(batch.attend.segments):
            index = torch.tensor(chain, device=embeds.device)
            own, held = wanted[index], torch.ones(len(index), dtype=torch.bool, device=embeds.device)
            for step, one in enumerate(self.ahead(head, embeds[index].float(), features[index].float(), own)):
                some = own[one.rows]
                if not bool(some.any()):
                    continue
                place = chances.places[index[one.rows[some]]]
                logits = one.logits[some].float()
                total = total - DECAY**step * (chances.values[place] * logits.log_softmax(-1)).sum()
                guess = head.tokens[logits.detach().argmax(-1)]
                hit = guess == choices[place]
                if one.trust is not None:
                    starts = one.rows[some] - step
                    there = held[starts]  # the text has what would have been guessed before it in the block
                    total = total + binary_cross_entropy_with_logits(
                        one.trust[some][there].float(), hit[there].float(), reduction="sum"
                    )
                    held[starts] = there & (guess == batch.labels[index[one.rows[some]]])
                right[step] += int(hit.sum())
                seen[step] += int(some.sum())
        figures = {f"right_{n + 1}": right[n] / seen[n] for n in (0, 1, 3) if seen[n]}
        return total / batch.tokens, figures


@frozen(eq=False)
class Ahead:
    """What a head says at one distance from where it begins.

    Attributes:
        rows: (n,) of the text: the head says what comes behind them. logits: (n, vocabulary).
        trust: (n,) logits of the first guess being right where those before are; None: the head has no such thing.
    """

    rows: Tensor
    logits: Tensor
    trust: Tensor | None = None


@define(eq=False, kw_only=True)
class Eagle3Stage(HeadStage):
    """The head `eagle3`; `unroll`: tokens that it learns to go ahead, each step with its own rows for features."""

    unroll: int = 7
    name: str = "eagle3"

    def new_head(self, text: TextSpec) -> Eagle3:
        """One decoder layer."""
        return Eagle3(shape_for(text, self.vocabulary))

    def ahead(self, head: Eagle3, embeds: Tensor, features: Tensor, wanted: Tensor) -> Iterator[Ahead]:
        """Row i of step k has gone k tokens ahead of position i."""
        first = max(0, int(wanted.int().argmax()) - self.unroll)  # prompts are only looked at
        for step, logits in enumerate(unrolled(head, embeds, features, self.unroll, first)):
            yield Ahead(torch.arange(1 + step + first, len(embeds), device=embeds.device), logits)


@define(eq=False, kw_only=True)
class BlockStage(HeadStage):
    """The head `block`; `block`: tokens of a pass, `layers`: of the head. It also learns how far to trust itself."""

    block: int = 5
    layers: int = 1
    name: str = "block"

    def new_head(self, text: TextSpec) -> Block:
        """As wide as the model."""
        shape = asdict(shape_for(text, self.vocabulary))
        return Block(BlockShape(**shape, block=self.block, layers=self.layers))

    def ahead(self, head: Block, embeds: Tensor, features: Tensor, wanted: Tensor) -> Iterator[Ahead]:
        """Blocks that begin inside the answers."""
        anchors = torch.tensor(spread_out([n for n in wanted.nonzero().flatten().tolist() if n > 0], ANCHORS))
        if len(anchors):
            anchors = anchors.to(embeds.device)
            logits, trust = blocks(head, embeds, features, anchors)
            for step in range(self.block):
                fits = anchors + step < len(embeds)
                yield Ahead(anchors[fits] + step, logits[fits, step], trust[fits, step])


@define(eq=False)
class Chances:
    """What the model says: (n, vocabulary) chances of the known tokens, and (T,) where a row's stand among them."""

    values: Tensor
    places: Tensor


@define(eq=False)
class Known:
    """What the model made of texts without pictures: text -> (features, rows after the last norm)."""

    texts: dict[bytes, tuple[Tensor, Tensor]] = field(factory=dict)
    nbytes: int = 0

    def keep(self, text: bytes, made: tuple[Tensor, Tensor]) -> None:
        """Remember it, where there is room."""
        size = sum(t.nbytes for t in made)
        if self.nbytes + size <= KEPT_BYTES:
            self.texts[text] = made
            self.nbytes += size


@torch.no_grad()
def target_rows(
    model: VisionLanguageModel, batch: Batch, taps: Sequence[int], known: Known
) -> tuple[Tensor, Tensor, Tensor]:
    """A pack through the model -> inputs (T, D), features (T, taps, D), rows after the last norm (T, D).

    On a CPU each text goes alone: so its rows do not depend on its neighbours, and are the same when it comes again.
    """
    embeds = model.embed(batch.ids, model.encode(batch.media))
    if batch.media or model.device.type != "cpu":
        return embeds, *_passed(model, embeds, batch.positions, batch.attend, taps)
    made, start = [], 0
    for segment in batch.attend.segments:
        some = slice(start, start := start + segment.rows)
        text = batch.ids[some].numpy().tobytes() + repr(segment).encode()
        if (one := known.texts.get(text)) is None:
            one = _passed(model, embeds[some], batch.positions[some], PackedAttention([segment]), taps)
            known.keep(text, one)
        made.append(one)
    return embeds, torch.cat([f for f, _ in made]), torch.cat([h for _, h in made])


def _passed(
    model: VisionLanguageModel, embeds: Tensor, positions: Tensor, attend: PackedAttention, taps: Sequence[int]
) -> tuple[Tensor, Tensor]:
    seen: dict[int, Tensor] = {}

    def tap(layer: int, hidden: Tensor) -> None:
        if layer in taps:
            seen[layer] = hidden.detach()

    hidden = model.hidden_states(embeds, positions, attend, tap)
    return torch.stack([seen[t] for t in taps], dim=1), hidden


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
        parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else ()
        yield from (p["text"] for p in parts if isinstance(p, Mapping) and isinstance(p.get("text"), str))
