"""Time to first token for a phone's screen, part by part: the numba backend beside torch in bfloat16.

    python benchmarks/vision.py --json                      # 0.6B and 1B shapes, a quarter of the layers of each
    python benchmarks/vision.py --part 1 --models andesvl-0.6b --rounds 1    # every layer
    python benchmarks/vision.py --quick                     # a small picture and an eighth of the layers

Weights and the picture are random. Of n blocks of the encoder, and of the language model's layers, n / `--part` are
built and timed; "vision" and "prefill" are then multiplied by `--part`, which counts embedding, last norm and head too
often, but they are small. Engines take turns within each round; figures are medians. Operations are those of matrix
products and attention, an addition and a multiplication counted apart.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from andes_andesvl.catalogue import plugins_of
from PIL import Image
from rich.console import Console
from rich.table import Table

from andes_sdk import Pipeline
from andes_sdk.inputs.messages import user_message

PARTS = ("preprocess", "vision", "projector", "prefill")
SCALED = ("vision", "prefill")
Spent = dict[str, float]


def shapes(name: str, part: int) -> tuple[list[Any], int]:
    """Plugins of a member with a share of the layers, and how many of them the encoder has left."""
    from andes_aimv2.config import AimV2Config
    from andes_siglip2.config import SigLIP2Config

    plugins = [dict([*item.items()]) if isinstance(item, dict) else item for item in plugins_of(name)]
    layers = 0
    for item in plugins:
        for owner, options in item.items() if isinstance(item, dict) else ():
            if owner in ("aimv2", "siglip2"):
                config = {"aimv2": AimV2Config, "siglip2": SigLIP2Config}[owner].resolved(options["preset"], {})
                layers = max(1, config.num_hidden_layers // part)
                options["config"] = {"num_hidden_layers": layers}
            if owner == "qwen3":
                options["config"] = {"num_hidden_layers": max(1, 28 // part)}
    return plugins, layers


def operations(pipe: Pipeline, patches: int, part: int) -> dict[str, float]:
    """Billions, of the whole model: linear layers of the encoder, its attention, and the projector."""
    encoder, projector = pipe.model.vision_encoder, pipe.model.mlp
    width = pipe.model.vision.width
    blocks = list(
        getattr(encoder, "trunk", None).blocks if hasattr(encoder, "trunk") else encoder.vision_model.encoder.layers
    )
    weights = part * sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)
    rows = patches // pipe.model.vision.merge**2
    return {
        "vision_linear": 2 * patches * weights / 1e9,
        "vision_attention": part * len(blocks) * 4 * patches**2 * width / 1e9,
        "projector": 2 * rows * sum(p.numel() for p in projector.parameters() if p.ndim > 1) / 1e9,
    }


def engine(plugins: list[Any], kind: str, threads: int) -> Pipeline:
    """A pipeline with random weights: "torch" in bfloat16, or numba with the vision numbers named."""
    if kind == "torch bf16":
        return Pipeline.from_plugins(plugins, dtype="bfloat16")
    options = {"format": "w4_g32", "vision": kind.removeprefix("numba "), "threads": threads}
    return Pipeline.from_plugins([*plugins, {"numba": options}], backend="numba")


def once(pipe: Pipeline, message: list[Any], part: int) -> Spent:
    """Seconds of each part, up to the logits of the first token."""
    session = pipe.session()
    session.prefill(pipe.prepare(message))
    spent = session.stats.seconds
    session.close()
    return {p: spent[p] * (part if p in SCALED else 1) for p in PARTS}


def measure(name: str, engines: list[str], size: tuple[int, int], **given: int) -> dict[str, Any]:
    """Median seconds of each part for every engine, and what there is to compute."""
    part, rounds, threads = given["part"], given["rounds"], given["threads"]
    torch.set_num_threads(threads)
    plugins, layers = shapes(name, part)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    small = [user_message("What is this?", [Image.fromarray(noise[:200, :200])])]
    message = [user_message("What is this?", [Image.fromarray(noise)])]
    pipes = {kind: engine(plugins, kind, threads) for kind in engines}
    for pipe in pipes.values():
        once(pipe, small, part)  # pack, compile, start threads
    found: dict[str, list[Spent]] = {kind: [] for kind in engines}
    for _ in range(rounds):
        for kind, pipe in pipes.items():
            found[kind].append(once(pipe, message, part))
    first = next(iter(pipes.values()))
    ((rows, columns),) = first.prepare(message).media["image"].sizes
    medians = {k: {p: round(statistics.median(s[p] for s in runs), 3) for p in PARTS} for k, runs in found.items()}
    totals = {k: round(statistics.median(sum(s.values()) for s in runs), 3) for k, runs in found.items()}
    return {
        "model": name, "size": list(size), "grid": [rows, columns], "patches": rows * columns,
        "image_tokens": rows * columns // 4, "layers_timed": layers, "part": part,
        "operations": {k: round(v, 1) for k, v in operations(first, rows * columns, part).items()},
        "seconds": {k: {**medians[k], "first token": totals[k]} for k in engines},
    }  # fmt: skip


def table(result: dict[str, Any]) -> Table:
    """For people."""
    shown = Table(title=f"{result['model']}, {result['size'][0]}x{result['size'][1]}: {result['patches']} patches")
    for head in ("engine", *PARTS, "first token", "vision GOP/s"):
        shown.add_column(head, justify="left" if head == "engine" else "right")
    work = result["operations"]["vision_linear"] + result["operations"]["vision_attention"]
    for kind, spent in result["seconds"].items():
        cells = [f"{spent[p]:.2f}" for p in (*PARTS, "first token")]
        shown.add_row(kind, *cells, f"{work / spent['vision']:.0f}")
    return shown


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of seconds, part on part."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 3), squeeze=False)
    for ax, result in zip(axes[0], results, strict=True):
        kinds = list(result["seconds"])
        left = np.zeros(len(kinds))
        for part in PARTS:
            width = np.array([result["seconds"][k][part] for k in kinds])
            ax.barh(kinds, width, left=left, label=part)
            left += width
        ax.set_title(f"{result['model']}, {result['patches']} patches", fontsize=10)
        ax.set_xlabel("seconds to the first token")
        ax.invert_yaxis()
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="andesvl-0.6b,andesvl-1b")
    parser.add_argument("--engines", default="numba w8,numba bf16,torch bf16")
    parser.add_argument("--size", default="1080x2400", help="of the picture, in pixels")
    parser.add_argument("--part", type=int, default=4, help="build one layer in so many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a small picture, an eighth of the layers, one round")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--plot", type=Path, help="write bars to this file")
    given = parser.parse_args()
    if given.quick:
        given.size, given.part, given.rounds = "540x1200", 8, 1
    logging.disable(logging.WARNING)
    width, height = map(int, given.size.split("x"))
    run = {"part": given.part, "rounds": given.rounds, "threads": given.threads}
    results = [measure(m, given.engines.split(","), (width, height), **run) for m in given.models.split(",")]
    if given.plot:
        plot(results, given.plot)
    if given.json:
        print(json.dumps({"threads": given.threads, "rounds": given.rounds, "results": results}, indent=1))
    else:
        for result in results:
            Console().print(table(result))


if __name__ == "__main__":
    main()
