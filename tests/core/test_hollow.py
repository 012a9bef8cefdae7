"""Modules without memory for weights: nothing is drawn for them, and torch's compiler stays out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from andes_sdk.assembling.hollow import DRAWS, Undrawn

CODE = """
import sys, torch
from andes_sdk.assembling.hollow import Undrawn
from andes_{module} import {name}
with torch.device("meta"), Undrawn():
    encoder = {name}(preset="tiny").andes_vision_encoder()
assert all(p.is_meta for p in encoder.parameters())
sys.exit("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("name", sorted(DRAWS))
def test_nothing_is_drawn_on_the_meta_device_and_everything_elsewhere(name: str) -> None:
    with torch.device("meta"), Undrawn():
        tensor = torch.empty(4, 4)
        before = torch.get_rng_state()
        drawn = getattr(nn.init, name, None) or getattr(torch.Tensor, name)
        assert drawn(tensor) is tensor
        assert tensor.is_meta
        assert torch.equal(torch.get_rng_state(), before)
        real = torch.full((4, 4), 0.5, device="cpu")
        drawn(real)
    assert not torch.equal(real, torch.full((4, 4), 0.5))


@pytest.mark.parametrize("name", ["AimV2", "SigLIP2"])
def test_an_encoder_without_weights_imports_no_compiler(name: str) -> None:
    code = CODE.format(module=name.lower(), name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
