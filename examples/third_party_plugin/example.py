"""Point at a thing in a photograph and find the rest of it: what the encoder's features know that pixels do not.

    python example.py

The encoder sees a photograph of a flower without its colours. For a patch of the flower all patches are ranked by the
similarity of their features to it. The colours, which no encoder saw, then say which patches are flower (red exceeds
green): the score is the share of pairs (flower patch, other patch) that are ranked the right way round, averaged over
all flower patches one can point at. 50 % is chance.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import Tensor

from andes_sdk import Pipeline
from andes_sdk.inputs.patches import block_order, patch_positions

RED_OVER_GREEN = 20
SHADES = " .:-=+*#%@"


def flower_patches(photo: Image.Image, rows: int, columns: int) -> Tensor:
    """The truth, from the colours: (N,) bool in block order."""
    small = torch.from_numpy(np.array(photo.resize((columns, rows), Image.Resampling.BOX))).float()  # (rows, cols, 3)
    return block_order(small[..., 0] - small[..., 1] > RED_OVER_GREEN)


def similarity(features: Tensor) -> Tensor:
    """(N, D) -> (N, N) cosines."""
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def score(features: Tensor, flower: Tensor) -> float:
    """Mean area under the ROC curve over every flower patch pointed at, by the ranks of the flower's patches."""
    ranks = similarity(features)[flower].argsort(dim=1).argsort(dim=1)  # (pointed at, N)
    n, others = int(flower.sum()), int((~flower).sum())
    right = ranks[:, flower].sum(dim=1) - n * (n - 1) / 2
    return (right / (n * others)).mean().item()


def picture(values: Tensor, rows: int, columns: int) -> str:
    """(N,) values in block order -> lines of characters; every second row, as characters are twice as high as wide."""
    places = patch_positions([(rows, columns)])
    table = torch.empty(rows, columns)
    table[places[:, 0], places[:, 1]] = (values - values.min()) / (values.max() - values.min())
    return "\n".join("".join(SHADES[min(int(v * 10), 9)] for v in row) for row in table[::2])


@torch.no_grad()
def main() -> dict[str, float]:
    """Print what is found; return the scores."""
    pipe = Pipeline.from_plugins(["dinov2", "mlp", {"qwen3": {"preset": "tiny"}}])
    print(pipe.explain(), "\n")
    untrained = Pipeline.from_plugins([{"dinov2": {"weights": ""}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    photo = Image.fromarray(load_sample_image("flower.jpg")).crop((0, 0, 616, 420))  # whole blocks of 28 pixels
    media = pipe.processor.pictures.pack([ImageOps.grayscale(photo).convert("RGB")])
    patches, grids = media.data, media.sizes  # (N, 3*14*14)
    features = pipe.model.vision_encoder(patches, grids)  # (N, 384)
    rows = pipe.model.mlp(features)  # (N / 4, D): what the language model reads
    print(f"{grids[0]} patches -> features {tuple(features.shape)} -> rows {tuple(rows.shape)}\n")
    flower = flower_patches(photo, *grids[0])
    middle = patch_positions(grids)[flower].float().median(dim=0).values
    pointed = int((patch_positions(grids) - middle).abs().sum(dim=1).argmin())
    print("similarity to the patch in the middle of the flower:")
    print(picture(similarity(features)[pointed], *grids[0]), "\n")
    ways = {"pretrained": features, "untrained": untrained.model.vision_encoder(patches, grids), "raw pixels": patches}
    scores = {name: score(x, flower) for name, x in ways.items()}
    print("flower and background told apart, over all flower patches:")
    for name, value in scores.items():
        print(f"  {name:10} {value:6.1%}")
    return scores


if __name__ == "__main__":
    main()
