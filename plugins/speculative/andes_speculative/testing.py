"""For tests of guesses: tiny models whose random weights say lively things, and heads that nobody trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict

from andes_sdk import Pipeline
from andes_sdk.testing.weights import randomised

from .block import Block, BlockShape
from .eagle import Eagle3, shape_for
from .heads import base_of, save_head

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def lively(*plugins: Any, backend: str = "torch", seed: int = 1) -> Pipeline:
    """The tiny model with more plugins; on numba its weights are w8."""
    more = [{"numba": {"format": "w8", "threads": 1}}] if backend == "numba" else []
    pipe = Pipeline.from_plugins([*MODEL, *more, *plugins], seed=seed, backend=backend)
    randomised(pipe.model.language_model)
    return pipe


def new_head(model: VisionLanguageModel, vocabulary: int = 512) -> Eagle3:
    """A head of random weights that knows the first tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        head = Eagle3(shape_for(model.text, vocabulary))
    head.tokens.copy_(torch.arange(len(head.tokens)))
    return randomised(head).eval().requires_grad_(False)  # type: ignore[no-any-return]


def new_block(model: VisionLanguageModel, layers: int = 2) -> Block:
    """A head for blocks of four, of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        shape = {**asdict(shape_for(model.text, 512)), "block": 4, "layers": layers}
        return randomised(Block(BlockShape(**shape))).eval().requires_grad_(False)  # type: ignore[no-any-return]


def guessing(kind: str, model: VisionLanguageModel, folder: Path, **options: Any) -> dict[str, Any]:
    """The plugin with a random head of a kind, which is written into the folder; all that it guesses is verified."""
    path = folder / f"{kind}.safetensors"
    save_head(new_head(model) if kind == "eagle3" else new_block(model), path, base_of(model))
    return {"speculative": {"drafter": kind, "head": str(path), "adapt": False, **options}}
