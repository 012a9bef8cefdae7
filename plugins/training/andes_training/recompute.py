"""Activations computed again in the backward pass instead of being kept (arXiv 1604.06174), for any model's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from andes_training.processes import blocks_of


@contextmanager
def recomputed(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within this, each layer keeps its input only. Gradients are the same; a step costs one more forward pass."""
    blocks = blocks_of(model) if wanted else []
    for block in blocks:
        # on the object, not the class: names, hooks and the state dict stay as they are
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
