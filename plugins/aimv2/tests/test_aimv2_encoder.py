import math
import subprocess
import sys

import pytest
import torch
from andes_aimv2 import AimV2
from andes_aimv2.native import rotate, rotation
from transformers import Aimv2VisionConfig, Aimv2VisionModel, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from andes_sdk.errors import InputError
from andes_sdk.inputs.patches import block_order, patchify

GRIDS = ((4, 4), (2, 6), (2, 2), (4, 4))
N = 16 + 12 + 4 + 16


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny(*, checkpointing=False, **config):
    return AimV2(preset="tiny", config=config, gradient_checkpointing=checkpointing).andes_vision_encoder()


def meta(**options):
    with torch.device("meta"):
        return AimV2(**options).andes_vision_encoder()


def test_importing_the_package_does_not_import_torch():
    code = "import sys, andes_aimv2; andes_aimv2.AimV2(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_turn_the_first_half_of_the_angles_and_columns_the_second_in_block_order():
    # Head size 8: two frequencies, 1 and 10000 ** -0.5 = 0.01. Blocks of (2, 4): columns 0-1 of both rows, then 2-3.
    cos, sin = rotation([(2, 4)], 8, 2, 10000.0, torch.device("cpu"))
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    angles = torch.tensor([[r, r * 0.01, c, c * 0.01] for r, c in places], dtype=torch.float64)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos[:, 0].double(), angles.cos(), atol=1e-6, rtol=0)  # float32 rounding
    torch.testing.assert_close(sin[:, 0].double(), angles.sin(), atol=1e-6, rtol=0)


def test_feature_i_turns_with_feature_i_plus_half_the_head():
    x = torch.zeros(1, 1, 8)
    x[..., 1] = 1.0
    angle = torch.tensor([0.0, math.pi / 2, 0.0, 0.0])
    turned = rotate(x, angle.cos(), angle.sin())
    expected = torch.zeros(1, 1, 8)
    expected[..., 5] = 1.0
    torch.testing.assert_close(turned, expected, atol=1e-7, rtol=0)  # cos(pi/2) in float32


def test_rotation_equals_the_half_split_rotation_of_transformers():
    q, k = torch.randn(N, 2, 16), torch.randn(N, 2, 16)
    cos, sin = rotation(GRIDS, 16, 2, 10000.0, q.device)
    full = [torch.cat((x, x), dim=-1)[:, 0] for x in (cos, sin)]
    for ours, theirs in zip((rotate(q, cos, sin), rotate(k, cos, sin)), apply_rotary_pos_emb_vision(q, k, *full)):  # noqa: B905
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)  # the same sums, written differently


def test_the_table_is_resized_bicubically_with_a_of_minus_three_quarters_and_put_in_block_order():
    encoder = tiny()
    table = torch.zeros(1, 4, 4, 32)
    table[:, :, 0, 0] = 1.0  # feature 0: an impulse at column 0
    table[:, :, 1, 1] = 1.0  # feature 1: an impulse at column 1
    encoder.preprocessor.pos_embed.data = table.flatten(1, 2)
    resized = encoder.preprocessor.positions(4, 8)
    # Column 3 of 8 samples the table at 3.5/2 - 0.5 = 1.25. The kernel at distance 0.25 with a = -0.75:
    # 1.25 * 0.25**3 - 2.25 * 0.25**2 + 1 = 0.87890625. Column 3 of row 0 is row 5 of the block order.
    assert resized[5, 1].item() == pytest.approx(0.87890625, abs=1e-6)
    # Column 0 samples -0.25; its taps -2, -1, 0 all fall on column 0, the last (distance 1.25) weighs -0.10546875.
    assert resized[0, 0].item() == pytest.approx(1.10546875, abs=1e-6)


def test_a_table_of_the_images_own_size_is_only_reordered():
    encoder = tiny()
    table = encoder.preprocessor.pos_embed.detach()[0].reshape(4, 4, 32)
    torch.testing.assert_close(encoder.preprocessor.positions(4, 4).detach(), block_order(table), atol=1e-7, rtol=0)


def test_one_dim_resizes_the_flat_table_linearly():
    encoder = tiny(interpolate_pe_method="one_dim")
    encoder.preprocessor.pos_embed.data = torch.arange(16.0)[None, :, None].expand(1, 16, 32).clone()
    resized = encoder.preprocessor.positions(4, 8)
    assert resized[5, 0].item() == pytest.approx(1.25)  # (0, 3) is place 3 of 32: 3.5/2 - 0.5
    assert resized[2, 0].item() == pytest.approx(3.75)  # (1, 0) is place 8 of 32: 8.5/2 - 0.5


def copy_by_name(theirs, ours):
    weights = {
        "preprocessor.patchifier.proj.weight": theirs.embeddings.patch_embed.weight,
        "preprocessor.patchifier.proj.bias": theirs.embeddings.patch_embed.bias,
        "preprocessor.patchifier.norm.weight": theirs.embeddings.rms_norm.weight,
        "preprocessor.pos_embed": theirs.embeddings.position_embedding.weight[None],
        "trunk.post_trunk_norm.weight": theirs.rms_norm.weight,
    }
    for i, layer in enumerate(theirs.encoder.layers):
        a = layer.attention
        weights |= {
            f"trunk.blocks.{i}.norm_1.weight": layer.rms_norm1.weight,
            f"trunk.blocks.{i}.norm_2.weight": layer.rms_norm2.weight,
            f"trunk.blocks.{i}.attn.qkv.weight": torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)),
            f"trunk.blocks.{i}.attn.proj.weight": a.out_proj.weight,
            f"trunk.blocks.{i}.mlp.fc1.weight": layer.ffn.gate_proj.weight,
            f"trunk.blocks.{i}.mlp.fc2.weight": layer.ffn.down_proj.weight,
            f"trunk.blocks.{i}.mlp.fc3.weight": layer.ffn.up_proj.weight,
        }
    ours.load_state_dict(weights)


def test_without_rotary_positions_every_block_equals_the_aimv2_of_transformers():
    config = Aimv2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14,
        use_head=False, is_native=False,
    )  # fmt: skip
    theirs = Aimv2VisionModel(config).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # large enough for attention and gates to be far from uniform
    ours = tiny(num_hidden_layers=3, disable_rope=True).eval()
    copy_by_name(theirs, ours)
    mine, reference = [], []
    for block, layer in zip(ours.trunk.blocks, theirs.encoder.layers, strict=True):
        block.register_forward_hook(lambda *call: mine.append(call[2]))
        layer.register_forward_hook(lambda *call: reference.append(call[2]))
    image = torch.randn(3, 56, 56)
    with torch.no_grad():
        mine.append(ours(patchify(image, 14), [(4, 4)]))
        reference.append(theirs(pixel_values=image[None]).last_hidden_state)
    assert len(mine) == len(reference) == 4
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, block_order(b[0].reshape(4, 4, 32)), atol=1e-5, rtol=1e-5)  # float32 sums


def test_packed_images_give_what_each_gives_alone():
    encoder, patches = tiny(), torch.randn(N, 588)
    alone = [encoder(part, [grid]) for part, grid in zip(patches.split([16, 12, 4, 16]), GRIDS, strict=True)]
    torch.testing.assert_close(encoder(patches, GRIDS), torch.cat(alone), atol=1e-5, rtol=0)  # matmul blocking differs


def test_a_changed_image_leaves_its_neighbours_as_they_were():
    encoder, patches = tiny(), torch.randn(N, 588)
    changed = patches.clone()
    changed[16:28] += 1.0
    difference = (encoder(patches, GRIDS) - encoder(changed, GRIDS)).abs().amax(dim=1)
    assert difference[16:28].min() > 0
    assert difference[:16].max() == difference[28:].max() == 0


def test_checkpointed_gradients_equal_plain_ones():
    plain, checkpointed = tiny(), tiny(checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    patches, saved = torch.randn(N, 588), []
    for encoder in (plain, checkpointed):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
            encoder.train()(patches, GRIDS).square().sum().backward()
        saved.append(-1)
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=0, rtol=0, msg=name)  # the same operations again
    first = saved.index(-1)
    assert sum(saved[first + 1 : -1]) < sum(saved[:first])  # it really keeps less


def test_compiled_as_one_graph_equals_eager():
    encoder, patches = tiny(), torch.randn(N, 588)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(patches, GRIDS), encoder(patches, GRIDS), atol=1e-5, rtol=0)


def test_bfloat16_stays_bfloat16_and_close_to_float32():
    encoder, patches = tiny(), torch.randn(N, 588)
    exact = encoder(patches, GRIDS)
    half = encoder.bfloat16()(patches, GRIDS)
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), exact, dim=-1).min() > 0.999  # 8 bits of mantissa


def test_no_images_give_no_rows():
    assert tiny()(torch.zeros(0, 588), ()).shape == (0, 32)


def test_the_meta_device_gives_shapes():
    assert meta()(torch.empty(N, 588, device="meta"), GRIDS).shape == (N, 1024)


def test_state_dict_names_are_the_published_ones():
    block = ["norm_1.weight", "norm_2.weight", "attn.qkv.weight", "attn.proj.weight"]
    block += ["mlp.fc1.weight", "mlp.fc2.weight", "mlp.fc3.weight"]
    expected = {
        "preprocessor.patchifier.proj.weight": (32, 3, 14, 14),
        "preprocessor.patchifier.proj.bias": (32,),
        "preprocessor.patchifier.norm.weight": (32,),
        "preprocessor.pos_embed": (1, 16, 32),
        "trunk.post_trunk_norm.weight": (32,),
    }
    state = tiny().state_dict()
    assert set(state) == set(expected) | {f"trunk.blocks.{i}.{name}" for i in range(2) for name in block}
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_the_full_encoder_has_the_published_number_of_parameters():
    embedding = 1024 * 588 + 1024 + 1024 + 32 * 32 * 1024
    block = 3 * 1024 * 1024 + 1024 * 1024 + 3 * 1024 * 2816 + 2 * 1024
    assert sum(p.numel() for p in meta().parameters()) == embedding + 24 * block + 1024 == 309_984_256


@pytest.mark.parametrize(
    ("exact", "billions", "layers", "width", "inner", "heads"),
    [
        (927_010_816, 0.927, 28, 1024, 3072, 16),
        (2_055_731_200, 2.055, 28, 2048, 6144, 16),
        (4_359_721_984, 4.360, 36, 2560, 9728, 32),
    ],
)
def test_with_projector_and_qwen3_the_totals_are_those_of_the_report(exact, billions, layers, width, inner, heads):
    config = Qwen3Config(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        text = Qwen3ForCausalLM(config)
    projector = 4096 * 4096 + 4096 + 4096 * width + width
    total = sum(p.numel() for module in (text, meta()) for p in module.parameters()) + projector
    assert total == exact
    assert abs(total / 1e9 - billions) < 0.00075  # the report rounds 4.3597 up and 2.0557 down; the table is 0.00105


def test_patches_that_do_not_fit_the_grids_are_refused():
    with pytest.raises(InputError, match="do not fit the grids"):
        tiny()(torch.zeros(8, 588), [(4, 4)])
    with pytest.raises(InputError, match="do not fit the grids"):
        tiny()(torch.zeros(16, 768), [(4, 4)])
    with pytest.raises(InputError, match="cannot be split into blocks"):
        tiny()(torch.zeros(15, 588), [(3, 5)])
