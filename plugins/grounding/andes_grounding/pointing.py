"""Stage `pointing`: fine-tuning in which one attention head learns to look at what a conversation is about.

The usual loss on answers says where to look only through the digits of a box, which a model from random weights does
not find for long. Boxes in conversations say it at once: the rows that write a box, and where a conversation names one
box only all rows of its answers, should attend to the picture's rows under it. Where a data line has `glyphs`, the
rows that spell what stands on the picture should attend to one character after another. Where no box in the words
says it, a line's `looks` may: a box in thousandths, or null, for each of its conversations. The added loss of a row is
the negative logarithm of the share of the head's attention, among all that the row sees, that lies under the box, each
row of the picture weighted by how much of it the box covers.

What the head finds must also come out as a box. So a linear head names the four sides of the box from the rows that
leave the supervised layer, as one of `BINS` places each. It exists for the length of the stage.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cache
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any

import torch
from andes_training.data.boxes import END, SCALE, START, Box, find_boxes
from andes_training.feed import packed
from andes_training.loss import token_scores
from andes_training.packing import branch_slices
from attrs import evolve, field, frozen
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm

from andes_sdk.errors import TrainingError
from andes_sdk.runtime.attention import PackedAttention

from .reading import BINS

if TYPE_CHECKING:
    from pathlib import Path

    from andes_training.data.samples import Sample
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Grid, Model, Position


POINTER = "pointer"
"""Name in the model, during the stage, of the head that names the sides of boxes."""


@frozen(kw_only=True)
class PointingStage:
    """Supervised fine-tuning with one attention head supervised where conversations name boxes.

    Attributes:
        module_rates: module prefix -> learning rate; 0 freezes.
        weight: of the attention's loss beside that of answers.
        layer: whose first query head is supervised; below 0 from the end.
        box_weight: of the loss of the boxes' sides beside that of answers; 0: no head for them.
    """

    module_rates: Mapping[str, float]
    weight: float
    layer: int
    box_weight: float = 0.0
    name: str = "pointing"
    folder: str = "pointing"

    def put_in(self, model: Model) -> None:
        """Add the head that names sides."""
        if self.box_weight:
            head = nn.Linear(model.text.width, 4 * BINS)
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            model.add_module(POINTER, head.to(model.device))

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate."""
        rates = {prefix: rate for prefix, rate in self.module_rates.items() if rate > 0}
        return rates | ({POINTER: max(rates.values())} if self.box_weight and rates else {})

    def save(self, model: Model, folder: Path) -> None:
        """Nothing: what was learnt lies in the model."""

    def take_out(self, model: Model) -> None:
        """Remove the head."""
        if self.box_weight:
            delattr(model, POINTER)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs, with the rows that have to look somewhere (`looks_of`).

        Raises:
            TrainingError: activations are computed again in the backward pass, or the layer does not exist.
        """
        layers = run.pipeline.model.text.layers
        if not -layers <= self.layer < layers:
            raise TrainingError(
                f"layer {self.layer} does not exist", who="grounding.look_layer", why=f"there are {layers}"
            )
        if run.recipe.recompute and (self.weight or self.box_weight):
            fix = "leave out recompute, or set look_weight=0 and box_weight=0"
            raise TrainingError("attention that is computed again cannot be supervised", who="recompute", fix=fix)
        model = run.pipeline.model
        piece = pieces_of(model)
        for position, batch in packed(run):
            samples = [run.samples[i] for i in batch.extras["sample"].tolist()]
            glyphs, told = [s.entry.get("glyphs") for s in samples], [told_of(s) for s in samples]
            yield position, evolve(batch, extras={**batch.extras, **looks_of(batch, model, piece, glyphs, told)})

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """-> (cross-entropy in nats plus the weighted losses of looking and of sides, figures).

        Figures: "accuracy"; "look", the mean attention under boxes; "sides", the share of sides that are at most one
        of `BINS` places away.
        """
        rows, boxes = batch.extras["look_rows"], batch.extras["look_boxes"].view(-1, 4)
        layer = self.layer % model.text.layers
        watch = Watch(batch.attend, layer, pictures_of(batch, model), rows, boxes)
        embeds = model.embed(batch.ids, model.encode(batch.media))
        wanted = batch.labels != -100
        found: list[Tensor] = []

        def tap(layer: int, hidden: Tensor) -> None:
            if layer == watch.layer + 1:
                found.append(hidden[rows])

        tapped = tap if self.box_weight else None
        hidden = model.hidden_states(embeds, batch.positions, watch, tapped)[wanted]
        logps, right = token_scores(model, hidden, batch.labels[wanted])
        figures = {"accuracy": float(right.float().mean())}
        loss = -logps.mean()
        if len(rows) and self.weight:
            looks = torch.cat(watch.shares)
            figures["look"] = float(looks.detach().exp().mean())
            loss = loss - self.weight * looks.mean()
        if len(rows) and self.box_weight:
            scores = getattr(model, POINTER)(rms_norm(found[0], found[0].shape[-1:])).float().view(-1, BINS)
            sides = (boxes * BINS // SCALE).clamp(0, BINS - 1).reshape(-1).to(scores.device)
            figures["sides"] = float(((scores.detach().argmax(1) - sides).abs() <= 1).float().mean())
            loss = loss + self.box_weight * cross_entropy(scores, sides)
        return loss, figures


@frozen(eq=False)
class Watch:
    """`Attend` that notes, at one layer, how much of the first head's attention falls under boxes.

    Attributes:
        attend: what computes the attention.
        pictures: per sample its image rows (first of the pack, count) and grid of merged rows; None where it has none
            or several pictures.
        rows, boxes: (n,) rows of the pack, ascending, and (n, 4) boxes in thousandths.
        shares: (n,) in parts: logarithms of shares.
    """

    attend: PackedAttention
    layer: int
    pictures: Sequence[tuple[int, int, Grid] | None]
    rows: Tensor
    boxes: Tensor
    shares: list[Tensor] = field(factory=list, init=False)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """As `attend`."""
        if layer == self.layer and len(self.rows):
            edges = torch.tensor([0, *(s.rows for s in self.attend.segments)]).cumsum(0).tolist()
            parts = zip(self.pictures, self.attend.segments, edges, edges[1:], strict=False)
            for picture, segment, first, last in parts:
                here = (self.rows >= first) & (self.rows < last)
                if picture is not None and bool(here.any()):
                    start, count, grid = picture
                    rows = self.rows[here]
                    scores = scale * q[0, 0, rows].float() @ k[0, 0, first:last].float().T
                    seen = segment.mask(q.device)
                    if seen is None:
                        seen = torch.ones(last - first, last - first, dtype=torch.bool, device=q.device).tril()
                    scores = scores.masked_fill(~seen[rows - first], -torch.inf)
                    covered = coverage(self.boxes[here], grid)
                    weighted = scores[:, start - first :][:, :count] + covered.clamp_min(1e-9).log()
                    inside = torch.logsumexp(weighted.masked_fill(covered == 0, -torch.inf), 1)
                    self.shares.append(inside - torch.logsumexp(scores, 1))
        return self.attend(layer, q, k, v, scale)


def coverage(boxes: Tensor, grid: Grid) -> Tensor:
    """(n, 4) boxes in thousandths and a grid of (h, w) cells -> (n, h*w) how much of each cell lies under the box.

    The largest of each row is 1: a small box lies within one cell, and that cell is where to look.
    """
    h, w = grid
    unit = boxes.float() / SCALE

    def overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells, device=boxes.device) / cells
        part = torch.minimum(high[:, None], edges + 1 / cells) - torch.maximum(low[:, None], edges)
        return part.clamp_min(0) * cells

    # a point, or a box without area, still lies somewhere
    low, high = unit[:, :2].clamp(0, 1 - 1e-4), torch.maximum(unit[:, 2:], unit[:, :2] + 1e-4).clamp(max=1)
    across, down = overlap(low[:, 0], high[:, 0], w), overlap(low[:, 1], high[:, 1], h)
    covered = (down[:, :, None] * across[:, None, :]).flatten(1)
    return covered / covered.amax(1, keepdim=True).clamp_min(1e-12)


def pictures_of(batch: Batch, model: Model) -> list[tuple[int, int, Grid] | None]:
    """Per sample its picture's rows in the pack (first, count) and merged grid; None without exactly one picture."""
    image, merge = model.tokenizer.placeholder("image"), model.vision.merge
    media = batch.media.get("image")
    waiting = list(media.rows) if media else []
    sizes = list(media.sizes) if media else []
    found: list[tuple[int, int, Grid] | None] = []
    start = 0
    for segment in batch.attend.segments:
        where = (batch.ids[start : start + segment.rows] == image).nonzero()[:, 0]
        count, pictures = len(where), []
        while count > 0:
            pictures.append(sizes.pop(0))
            count -= waiting.pop(0)
        one = len(pictures) == 1
        grid = (pictures[0][0] // merge, pictures[0][1] // merge) if one else (0, 0)
        found.append((start + int(where[0]), len(where), grid) if one else None)
        start += segment.rows
    return found


def told_of(sample: Sample) -> Sequence[Box | None]:
    """The `looks` of a data line: a box for each conversation whose answer can be seen there, None for each other.

    Raises:
        TrainingError: they are no boxes, not as many as conversations, or the recipe's `questions` leaves some out.
    """
    looks = sample.entry.get("looks")
    if looks is None:
        return ()
    count = len(sample.entry.get("conversations", "1"))
    if 0 < sample.source.questions < count:
        fix = "leave out questions"
        raise TrainingError("conversations are left out, so looks name others", who=sample.where, fix=fix)
    try:
        told = [None if box is None else (int(box[0]), int(box[1]), int(box[2]), int(box[3])) for box in looks]
        bad = len(told) != count or any(b and not 0 <= min(b) <= max(b) <= SCALE for b in told)
    except (TypeError, ValueError, IndexError, KeyError):
        bad = True
    if bad:
        why, fix = f"it has {count} conversations", f"write [x1, y1, x2, y2] from 0 to {SCALE}, or null, for each"
        raise TrainingError("looks name no boxes of conversations", who=sample.where, why=why, fix=fix)
    return told


def looks_of(
    batch: Batch,
    model: Model,
    piece: Callable[[int], str] | None = None,
    glyphs: Sequence[Any] = (),
    told: Sequence[Sequence[Box | None]] = (),
) -> dict[str, Tensor]:
    """Which rows of a pack have to look where: `look_rows` (n,), ascending, and `look_boxes` (4n,) in thousandths.

    Samples with exactly one picture count.

    Args:
        piece: the text of an id, if it is kept between packs.
        glyphs: per sample [character, x, y] of its picture in reading order, shares of width and height; or nothing.
        told: per sample a box, or None, for each branch; or nothing.
    """
    piece = piece or pieces_of(model)
    looks: dict[int, Box] = {}
    samples = zip_longest(pictures_of(batch, model), branch_slices(batch), glyphs, told)
    for picture, branches, written, seen in samples:
        for branch, there in zip_longest(branches, seen or ()) if picture is not None else ():
            pieces = [piece(i) for i in batch.ids[branch].tolist()]
            spans = _spans(pieces)
            boxes = {box for _, _, box in spans}
            # a row writes the token that follows it
            rows = (batch.labels[branch] != -100).nonzero()[:, 0].tolist()
            said = [pieces[row + 1] for row in rows]
            # boxes in answers are looked at, not read
            asked = {box for _, last, box in spans if rows and last <= rows[0]}
            spelt = _spelt(said, written, asked) if written and boxes == asked and len(asked) <= 1 else None
            for n, row in enumerate(rows):
                one = spans[0][2] if len(boxes) == 1 else there if not boxes else None
                box = one or next((b for first, last, b in spans if first <= row < last), None)
                if spelt or box:
                    looks[branch.start + row] = spelt[n] if spelt else box  # type: ignore[assignment]
    found = torch.tensor(list(looks.values()), dtype=torch.long).reshape(-1)
    return {"look_rows": torch.tensor(list(looks), dtype=torch.long), "look_boxes": found}


def _spelt(said: Sequence[str], glyphs: Sequence[Any], asked: Set[Box]) -> list[Box] | None:
    """Where each token of an answer looks that spells the glyphs of a picture, or of the box that it is asked about.

    The token after the last character looks at that one. None: it spells something else.
    """
    inside = [
        (c, (round(SCALE * x), round(SCALE * y)) * 2)
        for c, x, y in glyphs
        if all(b[0] <= SCALE * x <= b[2] and b[1] <= SCALE * y <= b[3] for b in asked)
    ]
    # special tokens end an answer, and are no part of its text
    words = ["" if text.startswith("<|") else "".join(text.split()) for text in said]
    if not inside or "".join(words) != "".join(c for c, _ in inside):
        return None
    return [inside[min(n, len(inside) - 1)][1] for n in accumulate(map(len, words[:-1]), initial=0)]


def pieces_of(model: Model) -> Callable[[int], str]:
    """The text of each id of a model's vocabulary."""
    tokenizer = model.tokenizer
    return cache(lambda number: tokenizer.decode([number]))


def _spans(pieces: Sequence[str]) -> list[tuple[int, int, Box]]:
    """Each box of a text in pieces: its first and last piece, and the box."""
    ends = list(accumulate(map(len, pieces)))
    text, spans, start = "".join(pieces), [], 0
    while (start := text.find(START, start)) >= 0 and (end := text.find(END, start)) >= 0:
        end += len(END)
        spans.append((bisect_right(ends, start), bisect_left(ends, end), find_boxes(text[start:end])[0]))
        start = end
    return spans
