"""The graphs of a lowered model as a picture: what follows what, where it runs, how many bytes of codes it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export import Lowered

Box = Mapping[str, Any]
LAYER = (
    ("RMS norm", ()), ("q, k, v", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")), ("rotary", ()),
    ("attention over the cache", ()), ("o, added", ("self_attn.o_proj",)), ("RMS norm", ()),
    ("gate, up", ("mlp.gate_proj", "mlp.up_proj")), ("SiLU, product", ()), ("down, added", ("mlp.down_proj",)),
)  # fmt: skip
BLOCK = (
    ("norm", ()), ("q, k, v", ("qkv",)), ("attention", ()), ("out, added", ("out",)), ("norm", ()),
    ("gate, up", ("gate", "up")), ("activation", ()), ("down, added", ("down",)),
)  # fmt: skip


def columns(lowered: Lowered) -> list[dict[str, Any]]:
    """One column for each part, in the order of the data: `title`, and `boxes` of `name`, `bytes`, `bits`, `times`,
    `where` (NPU or CPU).
    """

    def box(part: str, name: str, wanted: Sequence[str], times: int = 1, where: str = "NPU") -> dict[str, Any]:
        some = [m for n, m in lowered.parts[part].matrices.items() if any(_is(n, w) for w in wanted)]
        size = sum(m.codes.size * m.bits // 8 + 4 * len(m.scales) for m in some)
        bits = "/".join(str(b) for b in sorted({m.bits for m in some}))
        return {"name": name, "bytes": size, "bits": bits, "times": times, "where": where}

    out = []
    if "vision" in lowered.parts:
        count = int(lowered.parts["vision"].plan["layers"])
        out.append({"title": "encoder", "boxes": [
            box("vision", "patches, normalised", ("embed",)),
            *(box("vision", name, wanted, count) for name, wanted in BLOCK), box("vision", "last norm", ()),
        ]})  # fmt: skip
        out.append({"title": "projector", "boxes": [
            box("projector", "pixel shuffle", ()), box("projector", "first", ("first",)),
            box("projector", "activation", ()), box("projector", "second", ("second",)),
        ]})  # fmt: skip
    count = int(lowered.parts["text"].plan["layers"])
    out.append({"title": "language model", "boxes": [
        box("embedder", "embedding lookup", ("model.embed_tokens",), 1, "CPU"),
        *(box("text", name, wanted, count) for name, wanted in LAYER),
        box("text", "last norm", ()), box("text", "head", ("lm_head",)),
    ]})  # fmt: skip
    return out


def _is(name: str, wanted: str) -> bool:
    plain = name.removesuffix(".weight")
    return plain == wanted or plain.endswith(f".{wanted}")


def svg(shown: Sequence[Mapping[str, Any]]) -> str:
    """Columns as SVG: boxes in a frame are repeated as often as the frame says."""
    wide, high, gap = 250, 40, 14
    rows = max(len(column["boxes"]) for column in shown)
    parts, height = [], 60 + rows * (high + gap)
    for number, column in enumerate(shown):
        x = 20 + number * (wide + 90)
        parts.append(f'<text x="{x}" y="24" font-weight="600">{escape(column["title"])}</text>')
        inner = [n for n, one in enumerate(column["boxes"]) if one["times"] > 1]
        if inner:
            top, bottom = 40 + inner[0] * (high + gap) - 8, 40 + inner[-1] * (high + gap) + high + 8
            parts.append(
                f'<rect x="{x - 10}" y="{top}" width="{wide + 20}" height="{bottom - top}" fill="none" '
                f'stroke="#888" stroke-dasharray="4"/><text x="{x + wide + 14}" y="{top + 14}" font-size="12">'
                f"{column['boxes'][inner[0]]['times']} times</text>"
            )
        for n, one in enumerate(column["boxes"]):
            y = 40 + n * (high + gap)
            colour = "#fde8c8" if one["where"] == "CPU" else "#dcecf9" if one["bytes"] else "#f2f2f2"
            size = f"{one['bytes'] / 1e6:,.2f} MB, {one['bits']} bits" if one["bytes"] else "no weights"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{colour}" stroke="#555"/>'
                f'<text x="{x + 8}" y="{y + 17}" font-size="13">{escape(one["name"])}</text>'
                f'<text x="{x + 8}" y="{y + 33}" font-size="11" fill="#444">{one["where"]}: {size}</text>'
            )
            if n:
                parts.append(f'<path d="M{x + wide // 2} {y - gap} v{gap}" stroke="#555"/>')
    body = "".join(parts)
    width = 40 + len(shown) * (wide + 90)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="graphs">{body}</svg>'
