"""Exponential moving average of weights, kept in float32 beside the model (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def start_average(model: nn.Module, decay: float) -> dict[str, Tensor]:
    """Copies of everything that trains, by parameter name; empty without a decay."""
    if not decay:
        return {}
    return {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Move each copy towards its weights after optimizer step `step`, counted from 1.

    The first steps decay faster, min(decay, (1 + step) / (10 + step)), or the random start would stay for long.
    """
    if not average:
        return
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, parameter in model.named_parameters():
        if name in average:
            average[name].lerp_(parameter.detach().float(), weight)


@torch.no_grad()
def swap_average(average: Mapping[str, Tensor], model: nn.Module) -> None:
    """Exchange weights and their averages; a second call undoes it."""
    for name, parameter in model.named_parameters():
        if name in average:
            weights = parameter.detach().float().clone()
            parameter.copy_(average[name])
            average[name].copy_(weights)
