"""Pictures of several shapes: to compare the graphs with the reference, and LiteRT-LM with our runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from andes_sdk.inputs.patches import patchify

from .buckets import settled

if TYPE_CHECKING:
    from andes_sdk.types import Grid

    from .export import Lowered
    from .reference import CompiledDimensity


def grids(tokens: int, merge: int) -> list[Grid]:
    """Rows and columns of patches to try a graph with: the squarest that fits, a strip, and one that leaves room."""
    side = math.isqrt(tokens)
    blocks = [(side, tokens // side), (1, tokens), (max(side // 2, 1), max(side - 1, 1))]
    return [(rows * merge, columns * merge) for rows, columns in dict.fromkeys(blocks)]


def picture_calls(compiled: CompiledDimensity, lowered: Lowered, call: Any, wanted: Any) -> None:
    """Random pictures of several shapes for each graph, and what the reference makes of them."""
    model, spec = compiled.model, compiled.model.vision
    mean, std = (torch.tensor(t)[:, None, None] for t in (spec.mean, spec.std))
    for tokens in lowered.buckets:
        room = tokens * spec.merge**2
        for number, (rows, columns) in enumerate(grids(tokens, spec.merge)):
            draw = torch.Generator().manual_seed(number)
            pixels = torch.rand(3, rows * spec.patch_size, columns * spec.patch_size, generator=draw)
            normal = patchify((pixels - mean) / std, spec.patch_size, spec.merge)
            features = model.vision_encoder(normal, [(rows, columns)])
            p, count = spec.patch_size, rows * columns
            flat = pixels.permute(1, 2, 0).reshape(rows, p, columns, p * 3).transpose(1, 2).reshape(count, -1)
            images, xy = torch.zeros(1, room, flat.shape[1]), torch.full((1, room, 2), -1, dtype=torch.int32)
            images[0, :count] = flat
            xy[0, :count, 0] = torch.arange(columns).repeat(rows)
            xy[0, :count, 1] = torch.arange(rows).repeat_interleave(columns)
            out = call("vision", f"vision_{tokens}", {"images": images.numpy(), "positions_xy": xy.numpy()})
            wanted.append((f"vision_{tokens}", f"{out}:features", features.reshape(count // spec.merge**2, -1).numpy()))
            soft = torch.zeros(1, tokens, spec.merge**2 * features.shape[1])
            soft[0, : count // spec.merge**2] = features.reshape(count // spec.merge**2, -1)
            out = call("projector", f"vision_{tokens}", {"soft_tokens": soft.numpy()})
            wanted.append((f"projector_{tokens}", f"{out}:mm_embedding", model.projector(features).numpy()))


def resized(conversations: Sequence[Any], tokens: int, block: int, place: Path) -> list[Any]:
    """Conversations whose pictures have a size that LiteRT-LM leaves alone at this budget, so that both sides see the
    same pixels. Pictures are written to `place`.
    """
    made: dict[str, str] = {}

    def part(one: Mapping[str, Any]) -> Mapping[str, Any]:
        if one["type"] != "image":
            return one
        if one["path"] not in made:
            with Image.open(one["path"]) as picture:
                plain = picture.convert("RGB")
            path = place / f"picture-{tokens}-{len(made)}.png"
            plain.resize(settled(*plain.size, tokens, block), Image.Resampling.BICUBIC).save(path)
            made[one["path"]] = str(path)
        return {**one, "path": made[one["path"]]}

    return [[{**m, "content": [part(p) for p in m["content"]]} for m in talk] for talk in conversations]
