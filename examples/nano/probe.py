"""How much of places and colours a linear probe finds in an encoder's rows: what is not there, nothing can point with.

    python examples/nano/probe.py runs/nano/1-reading/model

A ridge regression goes from merged rows of test pages (`prepare.py elements shapes`) to their places, as shares of
width and height, and to their mean colours. Printed is R² on other pages; 0 is what the mean reaches.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from andes_sdk import Pipeline

TEST = Path(__file__).resolve().parent / "data" / "test"
PAGES, HELD_OUT, RIDGE = 80, 20, 10.0


def rows_of(pipe: Pipeline, path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """(M, 4Dv) rows of the encoder, four of a merged row side by side, (M, 2) places and (M, 3) colours."""
    content = [{"type": "image", "image": path}, {"type": "text", "text": "?"}]
    media = pipe.prepare([{"role": "user", "content": content}]).media["image"]
    with torch.no_grad():
        rows = pipe.model.vision_encoder(media.data, media.sizes)
    ((h, w),) = media.sizes
    down, across = ((torch.arange(n // 2) + 0.5) / (n // 2) for n in (h, w))
    y, x = torch.meshgrid(down, across, indexing="ij")
    merged = rows.reshape(h * w // 4, -1)
    colours = media.data.reshape(len(merged), -1, 3).mean(1)
    return merged.float(), torch.stack([x.reshape(-1), y.reshape(-1)], 1), colours


def explained(fitted: Tensor, wanted: Tensor, seen: Tensor, truth: Tensor) -> list[float]:
    """R² of each column of `truth`, from rows `seen`, by a regression of `wanted` on `fitted`."""
    mean, level = fitted.mean(0), wanted.mean(0)
    x = fitted - mean
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ (wanted - level))
    errors = ((seen - mean) @ weights + level - truth).square().mean(0)
    return [round(float(r), 3) for r in 1 - errors / truth.var(0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder")
    pipe = Pipeline.from_pretrained(parser.parse_args().model)
    pages = [sorted((TEST / part).glob("*.png"))[:PAGES] for part in ("elements", "shapes")]
    if any(len(some) < PAGES for some in pages):
        parser.error(f"{TEST} lacks pages: python examples/nano/prepare.py elements shapes")
    parts = [
        [torch.cat(some) for some in zip(*(rows_of(pipe, p) for paths in pages for p in paths[cut]), strict=True)]
        for cut in (slice(0, -HELD_OUT), slice(-HELD_OUT, None))
    ]
    (fitted, places, colours), (seen, true_places, true_colours) = parts
    print("places, x and y:", explained(fitted, places, seen, true_places))
    print("colours:", explained(fitted, colours, seen, true_colours))


if __name__ == "__main__":
    main()
