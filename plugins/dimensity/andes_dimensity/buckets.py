"""Pictures of any shape in a bundle: graphs for so many tokens, and how LiteRT-LM chooses among them.

LiteRT-LM scales a picture, its shape kept, until it fills the number of patches that the bundle names, or the app's
`visual_token_budget` if that is less. Then it takes the graph of the fewest tokens that holds the picture. So it is the
app that chooses, by message: a budget of 64 takes the graph of 64 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from andes_sdk.errors import InputError

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
