import subprocess
import sys

import pytest
import torch
from andes_siglip2 import SigLIP2
from transformers import Qwen3Config, Qwen3ForCausalLM, Siglip2VisionConfig, Siglip2VisionModel

from andes_sdk.errors import InputError
from andes_sdk.inputs.patches import block_order, patchify

GRIDS = ((4, 4), (2, 6), (2, 2), (4, 4))
N = 16 + 12 + 4 + 16


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny(*, checkpointing=False, **config):
    return SigLIP2(preset="tiny", config=config, gradient_checkpointing=checkpointing).andes_vision_encoder()


def meta(**options):
    with torch.device("meta"):
        return SigLIP2(**options).andes_vision_encoder()


def test_importing_the_package_does_not_import_torch():
    code = "import sys, andes_siglip2; andes_siglip2.SigLIP2(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_table_is_resized_bicubically_with_a_of_minus_three_quarters_and_put_in_block_order():
    encoder = tiny()
    table = torch.zeros(4, 4, 32)
    table[:, 0, 0] = 1.0  # feature 0: an impulse at column 0
    table[:, 1, 1] = 1.0  # feature 1: an impulse at column 1
    encoder.vision_model.embeddings.pos_embed.weight.data = table.flatten(0, 1)
    resized = encoder.vision_model.embeddings.positions(4, 8)
    # Column 3 of 8 samples the table at 3.5/2 - 0.5 = 1.25. The kernel at distance 0.25 with a = -0.75:
    # 1.25 * 0.25**3 - 2.25 * 0.25**2 + 1 = 0.87890625. Column 3 of row 0 is row 5 of the block order.
    assert resized[5, 1].item() == pytest.approx(0.87890625, abs=1e-6)
    # Column 0 samples -0.25; its taps -2, -1, 0 all fall on column 0, the last (distance 1.25) weighs -0.10546875.
    assert resized[0, 0].item() == pytest.approx(1.10546875, abs=1e-6)


def test_a_table_of_the_images_own_size_is_only_reordered():
    encoder = tiny()
    table = encoder.vision_model.embeddings.pos_embed.weight.detach().reshape(4, 4, 32)
    torch.testing.assert_close(
        encoder.vision_model.embeddings.positions(4, 4).detach(), block_order(table), atol=1e-7, rtol=0
    )


def copy_by_name(theirs, ours):
    # transformers lists a patch as (row, column, channel), AndesVL as (channel, row, column)
    patch_weight = theirs.embeddings.patch_embedding.weight.unflatten(1, (16, 16, 3)).permute(0, 3, 1, 2).flatten(1)
    weights = {
        "vision_model.embeddings.proj.weight": patch_weight,
        "vision_model.embeddings.proj.bias": theirs.embeddings.patch_embedding.bias,
        "vision_model.embeddings.pos_embed.weight": theirs.embeddings.position_embedding.weight,
    }
    same = {name: weight for name, weight in theirs.state_dict().items() if not name.startswith("embeddings.")}
    ours.load_state_dict(weights | {f"vision_model.{name}": weight for name, weight in same.items()})


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_without_rotary_positions_every_layer_equals_the_siglip2_of_transformers(activation):
    config = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, num_patches=16, patch_size=16,
        hidden_act=activation, vision_use_head=False,
    )  # fmt: skip
    theirs = Siglip2VisionModel(config).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # large enough for attention to be far from uniform
    ours = tiny(num_hidden_layers=3, disable_rope=True, hidden_act=activation).eval()
    copy_by_name(theirs, ours)
    mine, reference = [], []
    for layer, other in zip(ours.vision_model.encoder.layers, theirs.encoder.layers, strict=True):
        layer.register_forward_hook(lambda *call: mine.append(call[2]))
        other.register_forward_hook(lambda *call: reference.append(call[2]))
    image = torch.randn(3, 64, 64)
    pixels = image.reshape(3, 4, 16, 4, 16).permute(1, 3, 2, 4, 0).reshape(1, 16, 768)
    shapes = torch.tensor([[4, 4]])
    with torch.no_grad():
        mine.append(ours(patchify(image, 16), [(4, 4)]))
        answer = theirs(pixel_values=pixels, pixel_attention_mask=torch.ones(1, 16), spatial_shapes=shapes)
        reference.append(answer.last_hidden_state)
    assert len(mine) == len(reference) == 4
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, block_order(b[0].reshape(4, 4, 32)), atol=1e-5, rtol=1e-5)  # float32 sums


def test_the_positions_equal_the_published_way_of_sampling_them():
    # The published evaluation code samples the table at pixel centres; grid_sample is that, and no interpolate call.
    encoder = tiny()
    table = encoder.vision_model.embeddings.pos_embed.weight.detach().T.reshape(1, 32, 4, 4)
    rows, columns = (torch.arange(6.0) + 0.5) / 6 * 2 - 1, (torch.arange(10.0) + 0.5) / 10 * 2 - 1
    places = torch.stack((columns.expand(6, 10), rows[:, None].expand(6, 10)), dim=-1)[None]
    sampled = torch.nn.functional.grid_sample(table, places, mode="bicubic", padding_mode="border", align_corners=False)
    ours = encoder.vision_model.embeddings.positions(6, 10).detach()
    torch.testing.assert_close(ours, block_order(sampled[0].permute(1, 2, 0)), atol=1e-6, rtol=0)  # float32 places


def test_packed_images_give_what_each_gives_alone():
    encoder, patches = tiny(), torch.randn(N, 768)
    alone = [encoder(part, [grid]) for part, grid in zip(patches.split([16, 12, 4, 16]), GRIDS, strict=True)]
    torch.testing.assert_close(encoder(patches, GRIDS), torch.cat(alone), atol=1e-5, rtol=0)  # matmul blocking differs


def test_a_changed_image_leaves_its_neighbours_as_they_were():
    encoder, patches = tiny(), torch.randn(N, 768)
    changed = patches.clone()
    changed[16:28] += 1.0
    difference = (encoder(patches, GRIDS) - encoder(changed, GRIDS)).abs().amax(dim=1)
    assert difference[16:28].min() > 0
    assert difference[:16].max() == difference[28:].max() == 0


def test_checkpointed_gradients_equal_plain_ones():
    plain, checkpointed = tiny(), tiny(checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    patches, saved = torch.randn(N, 768), []
    for encoder in (plain, checkpointed):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
            encoder.train()(patches, GRIDS).square().sum().backward()
        saved.append(-1)
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=0, rtol=0, msg=name)  # the same operations again
    first = saved.index(-1)
    assert sum(saved[first + 1 : -1]) < sum(saved[:first])  # it really keeps less


def test_compiled_as_one_graph_equals_eager():
    encoder, patches = tiny(), torch.randn(N, 768)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(patches, GRIDS), encoder(patches, GRIDS), atol=1e-5, rtol=0)


def test_bfloat16_stays_bfloat16_and_close_to_float32():
    encoder, patches = tiny(), torch.randn(N, 768)
    exact = encoder(patches, GRIDS)
    half = encoder.bfloat16()(patches, GRIDS)
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), exact, dim=-1).min() > 0.999  # 8 bits of mantissa


def test_no_images_give_no_rows():
    assert tiny()(torch.zeros(0, 768), ()).shape == (0, 32)


def test_the_meta_device_gives_shapes():
    assert meta()(torch.empty(N, 768, device="meta"), GRIDS).shape == (N, 768)


def test_state_dict_names_are_the_published_ones():
    layer = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    layer += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]
    expected = {
        "vision_model.embeddings.proj.weight": (32, 768),
        "vision_model.embeddings.proj.bias": (32,),
        "vision_model.embeddings.pos_embed.weight": (16, 32),
        "vision_model.post_layernorm.weight": (32,),
        "vision_model.post_layernorm.bias": (32,),
    }
    state = tiny().state_dict()
    layers = {
        f"vision_model.encoder.layers.{i}.{name}.{kind}"
        for i in range(2)
        for name in layer
        for kind in ("weight", "bias")
    }
    assert set(state) == set(expected) | layers
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_the_full_encoder_has_the_published_number_of_parameters():
    embedding = 768 * 768 + 768 + 1024 * 768
    layer = 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 4 * 768
    assert sum(p.numel() for p in meta().parameters()) == embedding + 12 * layer + 2 * 768 == 86_433_024


def test_with_projector_and_qwen3_the_total_is_that_of_the_report():
    config = Qwen3Config(
        num_hidden_layers=28, hidden_size=1024, intermediate_size=3072, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        text = Qwen3ForCausalLM(config)
    projector = 3072 * 3072 + 3072 + 3072 * 1024 + 1024
    total = sum(p.numel() for module in (text, meta()) for p in module.parameters()) + projector
    assert total == 695_069_952
    assert round(total / 1e9, 3) == 0.695


def test_patches_that_do_not_fit_the_grids_are_refused():
    with pytest.raises(InputError, match="do not fit the grids"):
        tiny()(torch.zeros(8, 768), [(4, 4)])
    with pytest.raises(InputError, match="do not fit the grids"):
        tiny()(torch.zeros(16, 588), [(4, 4)])
    with pytest.raises(InputError, match="cannot be split into blocks"):
        tiny()(torch.zeros(15, 768), [(3, 5)])
