"""Pictures of any shape in a bundle: graphs for so many tokens, and how LiteRT-LM chooses among them.

LiteRT-LM scales a picture, its shape kept, until it fills the number of patches that the bundle names, or the app's
`visual_token_budget` if that is less. Then it takes the graph of the fewest tokens that holds the picture. So it is the
app that chooses, by message: a budget of 64 takes the graph of 64 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import InputError

if TYPE_CHECKING:
    from andes_sdk.types import Grid

    from .export import Lowered
    from .reference import CompiledDimensity

Size = tuple[int, int]
"""Width and height in pixels."""

TYPICAL: Mapping[str, Size] = {
    "square": (1024, 1024), "photo": (4032, 3024), "phone's screen": (1080, 2400), "line of text": (1200, 60),
}  # fmt: skip
"""Pictures of which is said what becomes of them."""


def fitted(width: int, height: int, tokens: int, block: int) -> Size:
    """What LiteRT-LM makes of a picture's size: whole blocks, as many as fit, the shape kept as far as they allow.

    Its rule (`GetAspectRatioPreservingSize`): both sides times the root of the budget's area over the picture's, each
    rounded down to whole blocks. A side of less than a block becomes one, and the other grows to fit, up to the budget.

    Args:
        block: side of a token in pixels.

    Raises:
        InputError: a picture without pixels.
    """
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width}x{height} has no pixels", fix="check how it was made")
    factor = math.sqrt(tokens * block**2 / (width * height))
    across, down = (math.floor(factor * side / block) for side in (width, height))
    if not down:
        across, down = min(max(width // height, 1), tokens), 1
    elif not across:
        across, down = 1, min(max(height // width, 1), tokens)
    return across * block, down * block


def settled(width: int, height: int, tokens: int, block: int) -> Size:
    """A size that `fitted` leaves as it is, near the picture's: rounding down may leave room for one more block."""
    size = fitted(width, height, tokens, block)
    while (again := fitted(*size, tokens, block)) != size:
        size = again
    return size


def graph_of(tokens: int, buckets: Sequence[int]) -> int:
    """Tokens of the graph that takes a picture of so many.

    Raises:
        InputError: no graph is large enough.
    """
    found = min((one for one in buckets if one >= tokens), default=None)
    if found is None:
        fix = "scale the picture down (image_size), as LiteRT-LM does, or add a larger graph to `buckets`"
        raise InputError(f"a picture of {tokens} tokens", who="dimensity", why=f"graphs take {told(buckets)}", fix=fix)
    return found


def told(buckets: Sequence[int]) -> str:
    """Tokens of all graphs in words."""
    return ", ".join(str(one) for one in buckets)


def ranges(buckets: Sequence[int]) -> str:
    """Which picture goes to which graph, in words."""
    parts, least = [], 1
    for one in buckets:
        parts.append(f"{least} to {one} tokens: graph vision_{one}")
        least = one + 1
    return "; ".join([*parts, f"more: scaled down to {buckets[-1]}, its shape kept"])


def examples(buckets: Sequence[int], block: int) -> list[dict[str, Any]]:
    """For typical pictures and each budget: pixels that the encoder sees, tokens, and the graph."""
    out = []
    for name, size in TYPICAL.items():
        for budget in buckets:
            wide, high = fitted(*size, budget, block)
            count = (wide // block) * (high // block)
            graph = graph_of(count, buckets)
            out.append({"picture": name, "size": list(size), "budget": budget, "seen": [wide, high], "tokens": count,
                        "graph": graph})  # fmt: skip
    return out


# ---------------------------------------------------------------- checking


def grids(tokens: int, merge: int) -> list[Grid]:
    """Rows and columns of patches to try a graph with: the squarest that fits, a strip, and one that leaves room."""
    side = math.isqrt(tokens)
    blocks = [(side, tokens // side), (1, tokens), (max(side // 2, 1), max(side - 1, 1))]
    return [(rows * merge, columns * merge) for rows, columns in dict.fromkeys(blocks)]


def picture_calls(compiled: CompiledDimensity, lowered: Lowered, call: Any, wanted: Any) -> None:
    """Random pictures of several shapes for each graph, and what the reference makes of them."""
    import torch

    from andes_sdk.inputs.patches import patchify

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
    from PIL import Image

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
