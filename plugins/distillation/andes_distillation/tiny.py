"""The tiny teacher that comes with this plugin: for the conformance kit and for tests, its weights are noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

PLUGINS: tuple[object, ...] = (
    {"aimv2": {"preset": "tiny", "config": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
    }}},
    "mlp",
    {"qwen3": {"preset": "tiny", "config": {
        "hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }}},
)  # fmt: skip
"""Its parts. It is narrower than the tiny presets, and has fewer layers."""


@torch.no_grad()
def write_tiny(folder: Path) -> Path:
    """Write the teacher -> its folder. The same weights on any machine."""
    from andes_sdk.pipeline import Pipeline

    pipeline = Pipeline.from_plugins([*PLUGINS])
    noise = np.random.default_rng(0)
    for _, weight in sorted(pipeline.model.named_parameters()):
        if weight.ndim > 1:
            weight.copy_(torch.from_numpy(0.2 * noise.standard_normal(weight.shape, np.float32)))
        else:
            weight.fill_(1.0)
    return pipeline.save_pretrained(folder, dtype="bfloat16")
