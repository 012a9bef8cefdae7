"""Stage `pointing`: fine-tuning in which one attention head learns to look at what a conversation is about.

The usual loss on answers says where to look only through the digits of a box, which a model from random weights does
not find for long. Boxes in conversations say it at once: the rows that write a box, and where a conversation names one
box only all rows of its answers, should attend to the picture's rows under it. The added loss of a row is the negative
logarithm of the share of the head's attention, among all rows of the picture, that lies under the box, each row of
the picture weighted by how much of it the box covers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from andes_training.data.boxes import END, SCALE, START, Box, find_boxes
from andes_training.feed import packed
from andes_training.loss import token_scores
from andes_training.packing import branch_slices
from attrs import evolve, field, frozen
from torch import Tensor

from andes_sdk.errors import TrainingError
from andes_sdk.runtime.attention import PackedAttention

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Grid, Model, Position


@frozen(kw_only=True)
class PointingStage:
    """Supervised fine-tuning with one attention head supervised where conversations name boxes.

    Attributes:
        module_rates: module prefix -> learning rate; 0 freezes.
        weight: of the attention's loss beside that of answers.
        layer: whose first query head is supervised; below 0 from the end.
    """

    module_rates: Mapping[str, float]
    weight: float
    layer: int
    name: str = "pointing"

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate."""
        return {prefix: rate for prefix, rate in self.module_rates.items() if rate > 0}

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
        if run.recipe.recompute and self.weight:
            fix = "leave out recompute, or set look_weight=0"
            raise TrainingError("attention that is computed again cannot be supervised", who="recompute", fix=fix)
        model = run.pipeline.model
        piece = pieces_of(model)
        for position, batch in packed(run):
            yield position, evolve(batch, extras={**batch.extras, **looks_of(batch, model, piece)})

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """-> (cross-entropy in nats plus the weighted loss of looking, {"accuracy", "look": attention under boxes})."""
        rows, boxes = batch.extras["look_rows"], batch.extras["look_boxes"].view(-1, 4)
        layer = self.layer % model.text.layers
        watch = Watch(batch.attend, layer, pictures_of(batch, model), rows, boxes)
        embeds = model.embed(batch.ids, model.encode(batch.media))
        wanted = batch.labels != -100
        hidden = model.hidden_states(embeds, batch.positions, watch)[wanted]
        logps, right = token_scores(model, hidden, batch.labels[wanted])
        figures = {"accuracy": float(right.float().mean())}
        loss = -logps.mean()
        if len(rows) and self.weight:
            looks = torch.cat(watch.shares)
            figures["look"] = float(looks.detach().exp().mean())
            loss = loss - self.weight * looks.mean()
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
            for picture, first, last in zip(self.pictures, edges, edges[1:], strict=False):
                here = (self.rows >= first) & (self.rows < last)
                if picture is not None and bool(here.any()):
                    start, count, grid = picture
                    scores = scale * q[0, 0, self.rows[here]].float() @ k[0, 0, start : start + count].float().T
                    covered = coverage(self.boxes[here], grid)
                    weights = covered.clamp_min(1e-9).log()
                    inside = torch.logsumexp((scores + weights).masked_fill(covered == 0, -torch.inf), 1)
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


def looks_of(batch: Batch, model: Model, piece: Callable[[int], str] | None = None) -> dict[str, Tensor]:
    """Which rows of a pack have to look where: `look_rows` (n,), ascending, and `look_boxes` (4n,) in thousandths.

    Samples with exactly one picture count.

    Args:
        piece: the text of an id, if it is kept between packs.
    """
    piece = piece or pieces_of(model)
    rows: list[int] = []
    boxes: list[int] = []
    for picture, branches in zip(pictures_of(batch, model), branch_slices(batch), strict=True):
        for branch in branches if picture is not None else ():
            spans = _spans([piece(i) for i in batch.ids[branch].tolist()])
            one = len({box for _, _, box in spans}) == 1
            for row in (batch.labels[branch] != -100).nonzero()[:, 0].tolist():
                # a row writes the token that follows it
                box = spans[0][2] if one else next((b for first, last, b in spans if first <= row < last), None)
                if box is not None:
                    rows.append(branch.start + row)
                    boxes.extend(box)
    return {"look_rows": torch.tensor(rows, dtype=torch.long), "look_boxes": torch.tensor(boxes, dtype=torch.long)}


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
