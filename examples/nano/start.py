"""Write the model that the first stage starts from: random weights in which places and numbers can be told apart.

    python examples/nano/start.py           # runs/nano/0-start/model

- A random position table is one vector for each of 1,024 places, which small data cannot teach one by one: after 3,000
  steps of reading, nothing in the encoder's rows said where they lie (R² −0.1 of a linear probe). So the table starts
  as sines and cosines of row and column (Vaswani et al. 2017, section 3.5), half as large as a patch's embedding.
- A number of a box is one token, and there are 1,001 of them. They start as sines and cosines of the number, mixed at
  random, so that what is learnt of one number holds for its neighbours.
- What writes into the rows of the language model starts smaller by the root of its layers (Radford et al. 2019,
  section 2.3).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from andes_training.recipe import load_recipe
from torch import Tensor, nn

from andes_sdk import Pipeline

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "runs" / "nano" / "0-start" / "model"
SIZE, LONGEST = 0.5, 100.0
"""Amplitude, and how many times longer the slowest wave is than the fastest."""
NUMBERS, WAVES = 1001, 32


def waves(side: int, width: int) -> Tensor:
    """(side*side, width) sines and cosines of the column, then of the row."""
    count = width // 4
    angles = torch.arange(side)[:, None] * LONGEST ** (-torch.arange(count) / count)
    line = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([line[None].expand(side, side, -1), line[:, None].expand(side, side, -1)], 2).reshape(-1, width)


def numbers(width: int, generator: torch.Generator) -> Tensor:
    """(NUMBERS, width) rows of root mean square 1, the more alike the closer their numbers are."""
    turns = 0.5 * 2 ** (torch.arange(WAVES) / 4)
    angles = 2 * math.pi * turns * torch.arange(NUMBERS)[:, None] / (NUMBERS - 1)
    size = (1 + turns) ** -0.5
    mixed = torch.cat([angles.sin() * size, angles.cos() * size], 1) @ torch.randn(
        2 * WAVES, width, generator=generator
    )
    mixed = mixed - mixed.mean(0)
    return mixed / mixed.square().mean().sqrt()


@torch.no_grad()
def prepare(pipe: Pipeline, spread: float) -> None:
    """Put places and numbers into a pipeline of random weights, which were drawn with this standard deviation."""
    model = pipe.model
    table = model.vision_encoder.preprocessor.pos_embed
    table.add_(SIZE * waves(int(table.shape[1] ** 0.5), table.shape[2]))
    embeddings = model.language_model.model.embed_tokens.weight
    rows = spread * numbers(embeddings.shape[1], torch.Generator().manual_seed(0))
    for number, row in enumerate(rows[10:], 10):  # digits are bytes, and stand for themselves
        _, token, _ = model.tokenizer.encode(f"({number},")
        embeddings[token] = row
    for name, module in model.language_model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("o_proj", "down_proj")):
            module.weight.mul_((2 * model.text.layers) ** -0.5)


def main() -> None:
    recipe = load_recipe(HERE / "1-reading.toml")
    given = {key: value for key, value in recipe.pipeline.items() if key != "weights"}
    pipe = Pipeline.from_plugins(**given, seed=recipe.seed)
    prepare(pipe, pipe.model.language_model.config.initializer_range)
    pipe.save_pretrained(OUT)


if __name__ == "__main__":
    main()
