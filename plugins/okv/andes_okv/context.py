"""What a session kept of its context, and why: noted while it runs, shown as one HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.errors import ConfigError

from .policy import OKVKeeper, OKVPolicy

if TYPE_CHECKING:
    from PIL.Image import Image

    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Inputs

COLUMNS = 256
"""Cells of a row of the heat map, at most."""

LARGEST = 768
"""Longer side of a picture on the page, in pixels."""


@define(eq=False)
class Notes:
    """When and why rows went.

    Attributes:
        gone: position -> (heads that dropped it so far, rows seen when the last of them did, its mean score there, the
            mean of the lowest scores that stayed).
        choices: how often the policy chose.
    """

    gone: dict[int, tuple[int, int, float, float]] = field(factory=dict)
    choices: int = 0

    def __call__(self, seen: int, scores: Sequence[Any], positions: Sequence[Any], kept: Sequence[Any]) -> None:
        """As `policy.Watch`."""
        self.choices += 1
        found: dict[int, list[tuple[float, float]]] = {}
        for layer in zip(scores, positions, kept, strict=True):
            for score, places, index in zip(*layer, strict=True):
                stays = torch.zeros(len(score), dtype=torch.bool)
                stays[index] = True
                least = float(score[stays].min()) if bool(stays.any()) else 0.0
                for place, own in zip(places[~stays].tolist(), score[~stays].tolist(), strict=True):
                    found.setdefault(place, []).append((own, least))
        for place, pairs in found.items():
            heads = self.gone[place][0] if place in self.gone else 0
            own, least = (sum(part) / len(pairs) for part in zip(*pairs, strict=True))
            self.gone[place] = heads + len(pairs), seen, own, least


@frozen(eq=False, kw_only=True)
class Context:
    """What stayed.

    Attributes:
        policy: its name. ids: (seen,) tokens. kept: (layers, Hkv, seen) True for rows that are held.
        image: (seen,) True for rows of pictures. grids: rows and columns of each picture, in rows of the model.
    """

    policy: str
    ids: Tensor
    kept: Tensor
    image: Tensor
    grids: Sequence[tuple[int, int]]
    kv_bytes: int
    notes: Notes

    def to_dict(self) -> dict[str, Any]:
        """The figures, as plain data."""
        share = self.kept.float()
        return {
            "policy": self.policy, "rows": len(self.ids), "kept": int(self.kept.sum()),
            "share": round(float(share.mean()), 4), "kv_bytes": self.kv_bytes, "choices": self.notes.choices,
            "share_text": _mean(share[:, :, ~self.image]), "share_image": _mean(share[:, :, self.image]),
            "layers": [[int(n) for n in layer] for layer in self.kept.sum(dim=2).tolist()],
        }  # fmt: skip


def _mean(part: Tensor) -> float | None:
    return round(float(part.mean()), 4) if part.numel() else None


@torch.inference_mode()
def look(pipeline: Pipeline, inputs: Inputs, tokens: int = 0) -> Context:
    """Read a prompt, answer it greedily with so many tokens, and note what is kept.

    Raises:
        ConfigError: the pipeline's policy is another plugin's.
    """
    policy = pipeline.policy
    if not isinstance(policy, OKVPolicy):
        fix = "add --plugin okv, or choose a model that has it"
        raise ConfigError(f"the cache policy is {policy.name!r}", who="context", fix=fix)
    session: Any = pipeline.session()
    keeper, notes, ids = session.keeping.keeper, Notes(), inputs.ids.tolist()
    assert isinstance(keeper, OKVKeeper)
    keeper.watch = notes
    try:
        logits = session.prefill(inputs)
        for _ in range(tokens):
            ids.append(int(logits.argmax()))
            logits = session.extend([ids[-1]])[0][-1]
            session.commit()
        spec = pipeline.model.text
        kept = torch.zeros(spec.layers, spec.kv_heads, len(ids), dtype=torch.bool)
        for layer in range(spec.layers):
            for head, places in enumerate(session.heads(layer)[2]):
                kept[layer, head, places.cpu()] = True
        merge = pipeline.model.vision.merge
        media = inputs.media.get("image")
        grids = [(size[0] // merge, size[1] // merge) for size in media.sizes] if media is not None else []
        return Context(
            policy=policy.name, ids=torch.tensor(ids), kept=kept, image=session.keeping.image.cpu(), grids=grids,
            kv_bytes=session.stats.kv_bytes, notes=notes,
        )  # fmt: skip
    finally:
        session.close()


# ---------------------------------------------------------------- the page

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
figure { position: relative; display: inline-block; margin: 0.5rem 0; } figure img { display: block; max-width: 100%; }
figure svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.map { width: 100%; height: auto; image-rendering: pixelated; border: 1px solid #ccc; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; } .text span { border-radius: 3px; }
td, th { padding: 0.1rem 0.8rem 0.1rem 0; text-align: left; }
"""


def page(context: Context, pipeline: Pipeline, pictures: Sequence[Image]) -> str:
    """One self-contained HTML page: facts, a heat map of layers and heads, pictures with what stayed of them, text."""
    shares = context.kept.float().mean(dim=(0, 1)).tolist()
    facts = {k: v for k, v in context.to_dict().items() if k != "layers" and v is not None}
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    places = iter(context.image.nonzero()[:, 0].tolist())
    drawn = [_picture(one, grid, places, shares) for one, grid in zip(pictures, context.grids, strict=False)]
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>What the context kept</title>'
        f"<style>{_STYLE}</style>\n<h1>What the context kept</h1>\n<table>{rows}</table>\n"
        f"<h2>Layers and heads</h2>\n<p>A line for each KV head, layer by layer from the top; a column for each row of "
        f"the context, from left to right. The darker, the more rows of the cell are held.</p>\n{_map(context)}\n"
        f"<h2>Pictures</h2>\n{''.join(drawn) or '<p>none</p>'}\n"
        f"<h2>Text</h2>\n<p>The darker, the more heads hold the row. Point at a token to see when it went, and what it "
        f'scored.</p>\n<p class="text">{_text(context, pipeline, shares)}</p>\n</html>\n'
    )


def _map(context: Context) -> str:
    """The heat map as SVG: a rectangle per cell that is not empty."""
    layers, heads, seen = context.kept.shape
    columns = min(seen, COLUMNS)
    bounds = [seen * i // columns for i in range(columns + 1)]
    cells, line = [], 0
    for layer in range(layers):
        for head in range(heads):
            held = context.kept[layer, head].float()
            for column, (start, stop) in enumerate(pairwise(bounds)):
                share = float(held[start:stop].mean())
                if share:
                    told = f"<title>layer {layer}, head {head}, rows {start} to {stop - 1}: {share:.0%} held</title>"
                    cells.append(
                        f'<rect x="{column}" y="{line}" width="1" height="1" fill-opacity="{share:.2f}">{told}</rect>'
                    )
            line += 1
    box = f'viewBox="0 0 {columns} {line}" preserveAspectRatio="none" fill="#00695c"'
    return f'<svg class="map" {box}>{"".join(cells)}</svg>'


def _picture(picture: Image, grid: tuple[int, int], places: Any, shares: Sequence[float]) -> str:
    """A picture under a grid of its rows; what nobody holds is dark."""
    small = picture.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    rows, columns = grid
    cells = []
    for row in range(rows):
        for column in range(columns):
            place = next(places)
            told = f"<title>row {place}: {shares[place]:.0%} of heads hold it</title>"
            box = f'x="{column}" y="{row}" width="1" height="1" fill-opacity="{0.8 * (1 - shares[place]):.2f}"'
            cells.append(f"<rect {box}>{told}</rect>")
    source = base64.b64encode(stream.getvalue()).decode()
    grid_of = f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none">{"".join(cells)}</svg>'
    return f'<figure><img alt="" src="data:image/png;base64,{source}">{grid_of}</figure>\n'


def _text(context: Context, pipeline: Pipeline, shares: Sequence[float]) -> str:
    """Tokens one by one; rows of pictures as one mark each run."""
    parts, before = [], False
    for place, token in enumerate(context.ids.tolist()):
        picture = bool(context.image[place])
        if picture:
            parts += [] if before else ["<b>[picture]</b>"]
        else:
            word = escape(pipeline.tokenizer.decode([token]) or "·")
            parts.append(
                f'<span title="{escape(_why(context, place, shares[place]))}" '
                f'style="background: rgb(0 105 92 / {0.6 * shares[place]:.2f})">{word}</span>'
            )
        before = picture
    return "".join(parts)


def _why(context: Context, place: int, share: float) -> str:
    """What happened to a row."""
    told = f"row {place}: {share:.0%} of heads hold it"
    if place in context.notes.gone:
        heads, seen, own, least = context.notes.gone[place]
        told += (
            f"; {heads} dropped it, the last after {seen} rows: it scored {own:.3g}, the least that stayed {least:.3g}"
        )
    return told
