"""Graphs against the pipeline's own modules on the same dequantised weights: everything but LiteRT itself."""

import numpy as np
import pytest
import torch
from andes_dimensity.codes import Codebook
from andes_dimensity.export import lower
from andes_dimensity.lowering import HEAD, projector_part, text_part, vision_part
from andes_dimensity.options import Options
from andes_dimensity.reference import coded
from torch import nn

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError
from andes_sdk.inputs.patches import block_order, patchify
from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.types import Codes, Range


def floats(part):
    """Weights by name as the worker loads them."""
    out = {n: torch.from_numpy(a.copy()) for n, a in part.floats.items()}
    return out | {n: torch.from_numpy(m.weights) for n, m in part.matrices.items()}


def put_back(module, part, prefix=""):
    """Give a module the dequantised weights of its own matrices."""
    state = module.state_dict()
    for name, one in part.matrices.items():
        if prefix + name in state:
            state[prefix + name].copy_(torch.from_numpy(one.weights).reshape(state[prefix + name].shape))


def masks(graphs, rows, past, count):
    """A mask (1, 1, T, rows + T): `past` rows of the cache are seen, new ones causally."""
    mask = torch.full((count, rows + count), graphs.MASKED)
    mask[:, :past] = 0
    mask[:, rows:] = torch.triu(torch.full((count, count), graphs.MASKED), 1)
    return mask[None, None]


def test_a_prompt_and_a_token_equal_the_model(pipe, graphs):
    options = Options(weights="w4", rows=32, prompt=8)
    part = text_part(pipe.model, Codebook.of(pipe.model), options)
    put_back(pipe.model.language_model, part)
    spec, weights = pipe.model.text, floats(part)
    embeds = pipe.model.llm.embed(torch.arange(9) + 5)
    want = pipe.model.logits(pipe.model.hidden_states(embeds, torch.arange(9), PackedAttention([Segment(9)])))
    body, plan = graphs.Decoder(part.plan, weights).eval(), part.plan
    kv = {f"cache_k_{n}": torch.zeros(1, spec.kv_heads, 32, spec.head_dim) for n in range(spec.layers)}
    kv |= {f"cache_v_{n}": torch.zeros(1, spec.kv_heads, spec.head_dim, 32) for n in range(spec.layers)}

    def tables(start, count):
        return (weights[n][start : start + count][None, None] for n in ("cosines", "sines"))

    first = graphs.Outside(body, False)(embeds[None, :8], *tables(0, 8), masks(graphs, 32, 0, 8), kv)
    for n in range(plan["layers"]):
        kv[f"cache_k_{n}"][:, :, :8] = first[f"kv_slice_k_{n}"]
        kv[f"cache_v_{n}"][..., :8] = first[f"kv_slice_v_{n}"]
    then = graphs.Outside(body, True)(embeds[None, 8:], *tables(8, 1), masks(graphs, 32, 8, 1), kv)
    assert (then["logits"][0, 0] - want[8]).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("encoder", ["aimv2", "siglip2"])
def test_a_picture_equals_the_model(encoder, graphs):
    pipe = Pipeline.from_plugins([{encoder: {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=4)
    model, book, grid = pipe.model, Codebook.of(pipe.model), (4, 6)
    spec, options = model.vision, Options()
    vision = vision_part(model, book, options, [grid])
    projector = projector_part(model, book, options)
    height, width = (n * spec.patch_size for n in grid)
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(t)[:, None, None] for t in (spec.mean, spec.std))
    patches = patchify((pixels - mean) / std, spec.patch_size, spec.merge)
    got = graphs.Encoder(vision.plan, floats(vision), *grid).eval()(pixels.permute(1, 2, 0)[None])["features"][0]
    # 8-bit codes: near the float model, and in its order of patches
    features = model.vision_encoder(patches, [grid])
    ordered = block_order(got.reshape(*grid, -1), spec.merge)
    assert (ordered - features).norm() < 0.05 * features.norm()
    rows = graphs.Projector(projector.plan, floats(projector), *grid).eval()(got[None])["mm_embedding"][0]
    want = model.projector(ordered)
    assert rows.shape == want.shape
    assert (rows - want).norm() < 0.05 * want.norm()


def test_pixels_of_a_patch_come_in_the_order_of_the_graph(pipe):
    part = vision_part(pipe.model, Codebook.of(pipe.model), Options(), [(2, 2)])
    p, one = pipe.model.vision.patch_size, part.matrices["embed.weight"]
    own = pipe.model.vision_encoder.blueprint()["embed"][0].detach().numpy().reshape(-1, 3, p, p)
    assert np.abs(one.weights.reshape(-1, p, p, 3).transpose(0, 3, 1, 2) - own).max() <= one.scales.max() * 2


def test_a_tied_embedding_has_the_codes_of_the_head(pipe):
    lowered = lower(pipe, Options(head="w4", rows=32), pictures=False)
    tied = pipe.model.language_model.config.tie_word_embeddings
    assert tied
    assert lowered.parts["embedder"].matrices["model.embed_tokens.weight"] is lowered.parts["text"].matrices[HEAD]
    assert set(lowered.parts) == {"text", "embedder"}


def test_every_matrix_of_the_model_is_in_a_graph(pipe):
    lowered = lower(pipe, Options(rows=32))
    told = sum(one.codes.size for one in lowered.matrices.values())
    table = lowered.parts["embedder"].matrices["model.embed_tokens.weight"].codes.size
    positions = {"vision_encoder.preprocessor.pos_embed"}
    own = sum(p.numel() for n, p in pipe.model.named_parameters() if p.dim() > 1 and n not in positions)
    assert told - table == own  # the tied table stands in two files


def test_modules_that_do_not_describe_themselves_are_named(pipe):
    pipe.model.language_model.__dict__["blueprint"] = dict
    with pytest.raises(ConfigError, match="cannot be lowered") as caught:
        lower(pipe, Options(rows=32))
    assert "no blueprint() of a decoder" in caught.value.why


class GroupWise(nn.Linear):
    """A layer that training left with a scale for every 2 columns."""

    def codes(self) -> Codes:
        rows, columns = self.weight.shape
        scales = np.linspace(0.5, 1, rows * columns // 2).reshape(rows, -1).astype(np.float16)
        return Codes(np.ones((rows, columns), np.int8), scales, 2)

    def input_range(self) -> None:
        return None


@pytest.mark.parametrize("do", [lower, lambda pipe, options: coded(pipe.model, options)], ids=["export", "reference"])
def test_a_group_wise_layer_of_a_model_is_named(do, pipe):
    name = "language_model.model.layers.1.mlp.down_proj"
    old = pipe.model.get_submodule(name)
    pipe.model.set_submodule(name, GroupWise(old.in_features, old.out_features, bias=False))
    with pytest.raises(ConfigError, match="a scale for every 2 columns") as caught:
        do(pipe, Options(rows=32))
    assert caught.value.who == f"{name}.weight"
    assert "one scale per row" in caught.value.fix


def test_a_model_with_ranges_that_cannot_be_is_refused(pipe):
    layer = pipe.model.get_submodule("language_model.model.layers.0.mlp.down_proj")
    wrong = GroupWise(layer.in_features, layer.out_features, bias=False)
    wrong.input_range = lambda: Range(bits=16, scale=float("nan"))
    pipe.model.set_submodule("language_model.model.layers.0.mlp.down_proj", wrong)
    with pytest.raises(ConfigError) as caught:
        coded(pipe.model, Options(activations="a16"))
    assert "layers.0.mlp.down_proj" in str(caught.value)


def test_a_cache_longer_than_the_model_is_refused(pipe):
    with pytest.raises(ConfigError, match=r"a cache of 100000 rows"):
        lower(pipe, Options(rows=100_000))


@pytest.mark.parametrize("picture", ["30x28", "0x28", "28", "-28x28", "x", "28x5600"])
def test_sizes_of_pictures_that_do_not_fit_are_refused(picture):
    with pytest.raises(ConfigError, match=r"do not fit|cannot read"):
        Options(picture=picture).side(28, 28)
