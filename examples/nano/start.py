"""Write the model that the first stage starts from: random weights, and positions that can be told apart.

    python examples/nano/start.py           # runs/nano/0-start/model

A random position table is one vector for each of 1,024 places, which small data cannot teach one by one: after 3,000 steps of
reading, nothing in the encoder's rows said where they lie (R² −0.1 of a linear probe). So the table starts as sines and
cosines of row and column (Vaswani et al. 2017, section 3.5), over 0.5 of a patch embedding's size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from andes_training.recipe import load_recipe
from torch import Tensor

from andes_sdk import Pipeline

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "runs" / "nano" / "0-start" / "model"
SIZE, LONGEST = 0.5, 100.0
"""Amplitude, and how many times longer the slowest wave is than the fastest."""


def waves(side: int, width: int) -> Tensor:
    """(side*side, width) sines and cosines of the column, then of the row."""
    count = width // 4
    angles = torch.arange(side)[:, None] * LONGEST ** (-torch.arange(count) / count)
    line = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([line[None].expand(side, side, -1), line[:, None].expand(side, side, -1)], 2).reshape(-1, width)


def main() -> None:
    recipe = load_recipe(HERE / "1-reading.toml")
    given = {key: value for key, value in recipe.pipeline.items() if key != "weights"}
    pipe = Pipeline.from_plugins(**given, seed=recipe.seed)
    table = pipe.model.vision_encoder.preprocessor.pos_embed
    with torch.no_grad():
        table.add_(SIZE * waves(int(table.shape[1] ** 0.5), table.shape[2]))
    pipe.save_pretrained(OUT)


if __name__ == "__main__":
    main()
