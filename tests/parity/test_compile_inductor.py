"""torch.compile with Inductor: minutes of compilation, so it runs in `nox -s thorough` only."""

from __future__ import annotations

import pytest
import torch

from andes_sdk import Pipeline


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["aimv2", "siglip2"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_slow_compiled_encoder_equals_the_eager_one(encoder: str) -> None:
    pipeline = Pipeline.from_plugins([{encoder: {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    model = pipeline.model.vision_encoder
    side = pipeline.model.vision.patch_size
    grids = ((4, 6), (2, 2))
    patches = torch.randn(28, 3 * side * side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(patches, grids)
        compiled = torch.compile(model, fullgraph=True)(patches, grids)
    assert torch.allclose(compiled, expected, atol=1e-5)  # float32, fused kernels add in another order
