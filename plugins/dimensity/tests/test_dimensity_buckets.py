"""Pictures of any shape: graphs against the pipeline's encoders, LiteRT-LM's rule of sizes, which graph takes what."""

import importlib
import sys

import numpy as np
import pytest
import torch
from andes_dimensity.buckets import examples, fitted, graph_of, ranges, settled
from andes_dimensity.bundle import behind
from andes_dimensity.codes import Codebook
from andes_dimensity.environment import HERE
from andes_dimensity.lint import lint
from andes_dimensity.linting import costs
from andes_dimensity.lowering import projector_part, vision_part
from andes_dimensity.options import Options
from andes_dimensity.page import page
from andes_dimensity.reference import coded
from andes_dimensity.shapes import grids, resized
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError, InputError
from andes_sdk.inputs.patches import patchify

TOKENS = 12


@pytest.fixture
def native(monkeypatch):
    """The worker's graphs for pictures of any shape, which need nothing but torch."""
    monkeypatch.syspath_prepend(str(HERE / "worker"))
    for name in ("graphs", "native"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("native")
    for name in ("graphs", "native"):
        sys.modules.pop(name, None)


def floats(part):
    out = {n: torch.from_numpy(a.copy()) for n, a in part.floats.items()}
    return out | {n: torch.from_numpy(m.weights) for n, m in part.matrices.items()}


def fed(pixels, spec, room):
    """Pixels (3, H, W) as LiteRT-LM hands them over: patches in reading order, columns and rows, -1 beyond."""
    p = spec.patch_size
    rows, columns = pixels.shape[1] // p, pixels.shape[2] // p
    images, xy = torch.zeros(1, room, 3 * p * p), torch.full((1, room, 2), -1, dtype=torch.int32)
    for row in range(rows):
        for column in range(columns):
            patch = pixels[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            images[0, row * columns + column] = patch.permute(1, 2, 0).reshape(-1)
            xy[0, row * columns + column] = torch.tensor([column, row])
    return images, xy


def model_of(encoder, **options):
    plugins = [{encoder: {"preset": "tiny", **options}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    return Pipeline.from_plugins(plugins, seed=4).model


@pytest.mark.parametrize("encoder", ["aimv2", "siglip2"])
@pytest.mark.parametrize("grid", [(6, 8), (2, 24), (24, 2), (4, 6), (2, 2)])
def test_a_picture_of_any_shape_equals_the_model(encoder, grid, native):
    model, options = model_of(encoder), Options(buckets=f"4,{TOKENS}")
    made, book, spec = coded(model, options), Codebook.of(model), model.vision
    vision = vision_part(model, book, options, (), options.tokens)
    projector = projector_part(model, book, options)
    pixels = torch.rand(3, *(n * spec.patch_size for n in grid), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(t)[:, None, None] for t in (spec.mean, spec.std))
    with torch.inference_mode():
        want = made.vision_encoder(patchify((pixels - mean) / std, spec.patch_size, spec.merge), [grid])
        graph = native.NativeEncoder(vision.plan, floats(vision), TOKENS).eval()
        got = graph(*fed(pixels, spec, TOKENS * spec.merge**2))["features"]
        count = grid[0] * grid[1] // spec.merge**2
        assert got.shape == (1, TOKENS, spec.merge**2 * spec.width)
        assert (got[0, :count].reshape(want.shape) - want).abs().max() <= 1e-5 * want.abs().max()
        rows = native.NativeProjector(projector.plan, floats(projector)).eval()(got)["mm_embedding"][0, :count]
        right = made.projector(want)
    assert (rows - right).abs().max() <= 1e-5 * right.abs().max()


def test_what_lies_beyond_the_picture_changes_nothing(native):
    model, options = model_of("aimv2"), Options(buckets=str(TOKENS))
    vision, spec = vision_part(model, Codebook.of(model), options, (), options.tokens), model.vision
    graph = native.NativeEncoder(vision.plan, floats(vision), TOKENS).eval()
    images, xy = fed(torch.rand(3, 4 * spec.patch_size, 4 * spec.patch_size), spec, TOKENS * spec.merge**2)
    with torch.inference_mode():
        first = graph(images, xy)["features"][0, :4]
        images[0, 16:] = 7.0
        assert torch.equal(graph(images, xy)["features"][0, :4], first)


@pytest.mark.parametrize("size", [(32, 7), (9, 32), (32, 32), (5, 64)])
def test_weights_of_the_position_table_are_those_of_torch(native, size):
    side, (rows, columns) = 32, size
    table = torch.randn(side, side, 3, generator=torch.Generator().manual_seed(1))
    want = torch.nn.functional.interpolate(table.permute(2, 0, 1)[None], size, mode="bicubic", align_corners=False)
    wide = torch.nn.functional.pad(table.permute(2, 0, 1)[None], (2, 2, 2, 2), mode="replicate")[0].permute(1, 2, 0)
    down, across = (
        native.bicubic((torch.arange(n)[None, :, None] + 0.5) * (side / n) - 0.5, side)[0] for n in (rows, columns)
    )
    got = torch.einsum("rs,ct,std->drc", down, across, wide)
    assert (got - want[0]).abs().max() < 2e-5


def test_positions_that_are_resized_in_another_way_are_refused():
    model, options = model_of("aimv2", config={"interpolate_pe_method": "one_dim"}), Options(buckets="16")
    with pytest.raises(ConfigError, match="cannot be lowered") as caught:
        vision_part(model, Codebook.of(model), options, (), options.tokens)
    assert "bicubically" in caught.value.why


# widths and heights that LiteRT-LM's own tests expect of 16-pixel patches pooled 3 by 3
@pytest.mark.parametrize(
    ("size", "tokens", "want"),
    [
        ((528, 528), 140, (528, 528)), ((640, 480), 140, (624, 480)), ((300, 900), 140, (288, 960)),
        ((528, 528), 70, (384, 384)), ((640, 480), 70, (432, 336)), ((300, 900), 70, (192, 672)),
        ((4000, 30), 140, (6528, 48)), ((8000, 10), 140, (6720, 48)), ((10, 8000), 140, (48, 6720)),
    ],
)  # fmt: skip
def test_sizes_are_those_of_litert_lm(size, tokens, want):
    assert fitted(*size, tokens, 48) == want


def test_a_settled_size_stays_and_fits():
    for size in [(1, 1), (9, 4000), (640, 480), (333, 77), (28, 252)]:
        for tokens in (4, 16, 250):
            wide, high = settled(*size, tokens, 28)
            assert fitted(wide, high, tokens, 28) == (wide, high)
            assert (wide // 28) * (high // 28) <= tokens
    with pytest.raises(InputError, match="no pixels"):
        fitted(0, 5, 16, 28)


def test_the_least_graph_that_holds_a_picture_takes_it():
    assert [graph_of(n, (16, 64, 256)) for n in (1, 16, 17, 64, 200)] == [16, 16, 64, 64, 256]
    with pytest.raises(InputError, match="a picture of 257 tokens") as caught:
        graph_of(257, (16, 64, 256))
    assert "16, 64, 256" in caught.value.why
    assert ranges((16, 64)).startswith("1 to 16 tokens: graph vision_16; 17 to 64 tokens: graph vision_64; more")
    for one in examples((16, 64), 28):
        assert one["tokens"] <= one["budget"]
        assert one["graph"] == graph_of(one["tokens"], (16, 64))


def test_shapes_to_try_fill_a_graph_and_leave_room():
    for tokens in (4, 12, 64):
        counts = [rows * columns // 4 for rows, columns in grids(tokens, 2)]
        assert max(counts) == tokens
        assert min(counts) < tokens
        assert all(rows % 2 == columns % 2 == 0 for rows, columns in grids(tokens, 2))


@pytest.mark.parametrize("buckets", ["a", "64;256", "3", "64,64", "5000", "4,5,6,7,8,9,10,11,12", "-4", "64,"])
def test_buckets_that_cannot_be_are_refused(buckets):
    with pytest.raises(ConfigError) as caught:
        Options(buckets=buckets)
    assert caught.value.who == "dimensity.buckets"


def test_a_picture_that_fills_the_cache_and_two_kinds_of_graphs_are_refused():
    with pytest.raises(ConfigError, match="a picture of 512 tokens"):
        Options(buckets="64,512", rows=512)
    with pytest.raises(ConfigError, match="picture and buckets"):
        Options(buckets="64", picture="448x448")
    assert Options(buckets="256, 64").tokens == (64, 256)


def test_the_reference_refuses_a_picture_that_no_graph_holds():
    plugins = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    pipe = Pipeline.from_plugins(
        [*plugins, {"dimensity": {"buckets": "4,16", "rows": 128}}], seed=4, backend="dimensity"
    )
    block = pipe.processor.preprocessor.block

    def ask(tall, wide):
        picture = Image.new("RGB", (wide * block, tall * block), (9, 99, 199))
        return pipe.chat("What?", [picture], max_tokens=2)

    ask(4, 4)
    with pytest.raises(InputError, match="a picture of 20 tokens"):
        ask(4, 5)
    rows = {row.part: row.value for row in pipe.explain().rows if row.owner == "dimensity"}
    assert "graph vision_16" in rows["pictures"]


def test_the_token_behind_a_picture_is_the_template_s():
    texts, any_shape = ["<img>", "</img>", "<|vision_pad|>"], Options(buckets="4")
    template = "{{- '<img><|vision_pad|></img>' -}}"
    assert behind(template, "<|vision_pad|>", texts, "t", any_shape) == "</img>"
    assert behind(template, "<|vision_pad|>", texts, "t", Options()) == ""
    for wrong in ("{{- '<|vision_pad|>' -}}", template + "<|vision_pad|>"):
        with pytest.raises(ConfigError, match="another template"):
            behind(wrong, "<|vision_pad|>", texts, "t", any_shape)


def test_both_sides_see_the_same_pixels(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 300, 3), np.uint8)).save(path)
    talk = [[{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": "x"}]}]]
    made = resized(talk, 16, 28, tmp_path)
    first = made[0][0]["content"][0]["path"]
    with Image.open(first) as picture:
        assert picture.size == settled(300, 90, 16, 28)
    assert made[0][0]["content"][1] == {"type": "text", "text": "x"}
    assert talk[0][0]["content"][0]["path"] == str(path)


def test_costs_and_notes_tell_of_every_graph(pipe):
    options = Options(rows=128, prompt=16, buckets="4,16,64")
    found = lint(pipe, options)
    assert found.fine
    assert any("graph vision_64" in one.what for one in found.findings)
    facts = costs(found.lowered, options)
    assert [one["graph"] for one in facts["pictures"]] == ["vision_4", "vision_16", "vision_64"]
    assert facts["pictures"][0]["bytes"] < facts["pictures"][2]["bytes"]
    assert facts["pictures"][0]["millijoules"] < facts["pictures"][2]["millijoules"]
    shown = page({"model": "m", "findings": [], **facts})
    assert "vision_16" in shown
    assert "phone&#x27;s screen" in shown
