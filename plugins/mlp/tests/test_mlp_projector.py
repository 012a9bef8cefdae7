import math
import subprocess
import sys

import pytest
import torch
from andes_mlp import MLP

from andes_sdk.errors import InputError
from andes_sdk.types import TextSpec, VisionSpec


def build(vision, text, merge=2):
    torch.set_num_threads(1)
    sizes = {"vocab_size": 8, "layers": 1, "query_heads": 1, "kv_heads": 1, "head_dim": 8, "max_positions": 8}
    return MLP().andes_projector(VisionSpec(width=vision, patch_size=14, merge=merge), TextSpec(width=text, **sizes))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, andes_mlp; andes_mlp.MLP(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_four_consecutive_rows_become_one_token_as_computed_by_hand():
    projector = build(1, 1)
    with torch.no_grad():
        projector[0].weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 0.0, -1.0])))
        projector[0].bias.copy_(torch.tensor([0.0, 0.0, 3.0, 0.0]))
        projector[2].weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        projector[2].bias.fill_(0.5)
    rows = torch.tensor([[1.0], [1.0], [7.0], [2.0], [0.0], [0.5], [-9.0], [0.0]])

    def gelu(x):  # exact: x times the normal distribution
        return x * (1 + math.erf(x / math.sqrt(2))) / 2

    first = gelu(1) + 10 * gelu(2) + 100 * gelu(3) + 1000 * gelu(-2) + 0.5
    second = gelu(0) + 10 * gelu(1) + 100 * gelu(3) + 1000 * gelu(0) + 0.5
    expected = torch.tensor([[first], [second]])
    torch.testing.assert_close(projector(rows).detach(), expected, atol=0, rtol=1e-6)  # tanh GELU is 0.3 away


def test_names_and_shapes_are_the_published_ones():
    state = {name: tuple(weight.shape) for name, weight in build(8, 5).state_dict().items()}
    assert state == {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (5, 32), "2.bias": (5,)}


@pytest.mark.parametrize(("vision", "text", "count"), [(768, 1024, 12_587_008), (1024, 2560, 27_269_632)])
def test_the_full_projector_has_the_published_number_of_parameters(vision, text, count):
    # 0.6B: 3072*3072 + 3072 + 3072*1024 + 1024; 4B: 4096*4096 + 4096 + 4096*2560 + 2560
    with torch.device("meta"):
        projector = build(vision, text)
    assert sum(p.numel() for p in projector.parameters()) == count
    assert projector(torch.empty(12, vision, device="meta")).shape == (3, text)


def test_another_merge_changes_the_block():
    assert build(2, 3, merge=3)(torch.randn(18, 2)).shape == (2, 3)


def test_no_rows_give_no_rows():
    assert build(8, 5)(torch.zeros(0, 8)).shape == (0, 5)


def test_rows_that_fill_no_block_are_refused():
    with pytest.raises(InputError, match="6 patches cannot be merged 4 by 4"):
        build(8, 5)(torch.zeros(6, 8))


def test_compiled_as_one_graph_equals_eager():
    projector, features = build(8, 5), torch.randn(8, 8)
    compiled = torch.compile(projector, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), projector(features), atol=1e-6, rtol=0)


def test_it_trains_to_a_linear_target():
    torch.manual_seed(0)
    projector, features = build(4, 3), torch.randn(64, 4)
    target = features.reshape(16, 16)[:, :3]
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (projector(features) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
