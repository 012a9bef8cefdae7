"""What the contract asks of an encoder, on a small random one."""

import pytest
import torch
from andes_dinov2 import DinoV2

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError, InputError
from andes_sdk.inputs.patches import block_order, patchify

GRIDS = [(4, 4), (2, 6), (2, 2), (4, 4)]
N = 48


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny():
    return DinoV2(preset="tiny", weights="").andes_vision_encoder().requires_grad_(False)


def test_the_spec_says_what_preprocessing_needs():
    spec = tiny().spec
    assert (spec.width, spec.patch_size, spec.merge) == (32, 14, 2)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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


def test_small_random_sizes_equal_transformers_dinov2_too():
    transformers = pytest.importorskip("transformers", reason="transformers is absent")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, use_mask_token=False
    )
    theirs, ours = transformers.Dinov2Model(config).eval(), tiny()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # large enough for attention to be far from uniform
    ours.load_state_dict(dict(zip(ours.state_dict(), in_our_order(theirs, ours), strict=True)))
    image = torch.randn(3, 56, 84)
    with torch.no_grad():
        expected = theirs(pixel_values=image[None]).last_hidden_state[0, 1:].reshape(4, 6, 32)
    torch.testing.assert_close(ours(patchify(image, 14), [(4, 6)]), block_order(expected), atol=1e-5, rtol=1e-5)


def in_our_order(theirs, ours):
    """Their weights by our names, whichever of its two namings transformers uses."""
    names = theirs.state_dict()
    for name in ours.state_dict():
        short = name.replace("attention.attention.", "attention.").replace("output.dense", "o_proj")
        for word in ("query", "key", "value"):
            short = short.replace(f"attention.{word}.", f"attention.{word[0]}_proj.")
        yield names[name] if name in names else names[short]


def test_a_table_of_the_images_own_size_is_only_reordered():
    embeddings = tiny().embeddings
    table = embeddings.position_embeddings[0, 1:].reshape(4, 4, 32)
    torch.testing.assert_close(embeddings.positions(4, 4), block_order(table), atol=1e-7, rtol=0)


def test_gradients_reach_every_parameter():
    encoder = tiny().requires_grad_(True)
    encoder(torch.randn(N, 588), GRIDS).square().sum().backward()
    still = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}
    # softmax ignores what a key's bias adds to all logits of a row; rounding may or may not leave a trace there
    assert {name for name in still if not name.endswith("key.bias")} == set()


def test_bfloat16_stays_bfloat16_and_close_to_float32():
    encoder, patches = tiny(), torch.randn(N, 588)
    exact = encoder(patches, GRIDS)
    half = encoder.bfloat16()(patches, GRIDS)
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), exact, dim=-1).min() > 0.999  # 8 bits of mantissa


def test_no_images_give_no_rows():
    assert tiny()(torch.zeros(0, 588), ()).shape == (0, 32)


def test_patches_that_do_not_fit_the_grids_are_refused():
    for patches, grids in ((8, [(4, 4)]), (15, [(3, 5)]), (0, [(0, 2)])):
        with pytest.raises(InputError, match=r"do not fit the grids|cannot be split into blocks"):
            tiny()(torch.zeros(patches, 588), grids)


def test_options_that_do_not_fit_are_refused_on_construction():
    with pytest.raises(ConfigError, match="no preset 'huge'"):
        DinoV2(preset="huge", weights="")
    with pytest.raises(ConfigError, match="weights for the preset 'small'"):
        DinoV2(preset="tiny")


def test_a_pipeline_holds_it_under_its_entry_point_name():
    plugins = [{"dinov2": {"preset": "tiny", "weights": ""}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    pipe = Pipeline.from_plugins(plugins)
    assert pipe.plan.owner("andes_vision_encoder") == "dinov2"
    rows = pipe.model.mlp(pipe.model.vision_encoder(torch.randn(N, 588), GRIDS))
    assert rows.shape == (N // 4, pipe.model.text.width)
