import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from andes_sdk.errors import ConfigError, InputError
from andes_sdk.inputs.preprocess import Preprocessor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
AIMV2 = Preprocessor(patch_size=14, mean=CLIP_MEAN, std=CLIP_STD)
SIGLIP2 = Preprocessor(patch_size=16)
CHAT = Preprocessor(patch_size=14, mean=CLIP_MEAN, std=CLIP_STD, variant="chat")
PAD = (122, 116, 104)  # int(0.48145466 * 255) = int(122.77), int(116.75), int(104.09)

sides = st.integers(1, 20_000)
variants = st.sampled_from([AIMV2, SIGLIP2, CHAT, Preprocessor(patch_size=16, variant="chat")])


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * 10_000 + height).integers(150, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def painted(canvas: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not padding; pictures above hold no value as low as the padding's."""
    rows, columns = np.nonzero((np.asarray(canvas) != PAD).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(
    ("preprocessor", "size", "target", "tokens"),
    [
        # 1080 / 28 = 38.6 and 2400 / 28 = 85.7, rounded up to 39 and 86 blocks
        (AIMV2, (1080, 2400), (1092, 2408), 39 * 86),
        # 1080 / 32 = 33.75 and 2400 / 32 = 75 exactly: 34 x 75 blocks
        (SIGLIP2, (1080, 2400), (1088, 2400), 34 * 75),
        (AIMV2, (205, 1100), (224, 1120), 8 * 40),
        # 1793 * 1792 > 1792², so both sides shrink by sqrt(1792 / 1793) = 0.99972: 1792.5 x 1791.5 -> 65 x 64 blocks
        (AIMV2, (1793, 1792), (1820, 1792), 4160),
        (AIMV2, (1792, 1792), (1792, 1792), 4096),
        # 2052 * sqrt(1792² / 2052²) is 1792 + 2.3e-13 in floating point and rounds up: a block more, as published
        (AIMV2, (2052, 2052), (1820, 1820), 65 * 65),
        # one pixel grows to 4 tokens of area: 56 x 56, 64 x 64
        (AIMV2, (1, 1), (56, 56), 4),
        (SIGLIP2, (1, 1), (64, 64), 4),
        # 8344 x 100 -> long side 4172, so 4172 x 50 -> 149 x 2 blocks
        (AIMV2, (8344, 100), (4172, 56), 149 * 2),
        # 20000 x 1 -> 4172 x 0.2086 = 870 px² -> times sqrt(3136 / 870.28) = 1.8983 -> 7919.6 x 0.4: beyond the cap
        (AIMV2, (20_000, 1), (7924, 28), 283),
    ],
)
def test_evaluation_sizes_computed_by_hand(preprocessor, size, target, tokens):
    assert preprocessor.target_size(*size) == target
    assert preprocessor.tokens(*size) == tokens


@pytest.mark.parametrize(
    ("size", "target"),
    [
        # between 4 tokens and 733²: each side grows to the next block, a whole number of blocks by one more
        ((560, 560), (588, 588)),
        ((561, 559), (588, 560)),
        # more than 733²: sqrt(537289) = 733 = 26 blocks + 5 px -> 27 blocks
        ((1000, 1000), (756, 756)),
        # 733 * sqrt(0.45) = 491.7 -> 491 -> 504; 733 / sqrt(0.45) = 1092.7 -> 1092 = 39 blocks exactly -> 1120
        ((1080, 2400), (504, 1120)),
        # less than 4 tokens: a 56 x 56 box is a whole number of blocks, so 84 x 84
        ((10, 10), (84, 84)),
        # 4172 = 149 blocks grows beyond the cap: 150 blocks
        ((4172, 100), (4200, 112)),
        # 41720 x 1000 -> 4172 x 100 first, and then as above
        ((41_720, 1000), (4200, 112)),
    ],
)
def test_chat_sizes_computed_by_hand(size, target):
    assert CHAT.target_size(*size) == target


def test_the_variants_have_their_published_areas():
    assert (AIMV2.max_size, CHAT.max_size) == (1792, 733)
    assert Preprocessor(patch_size=14, variant="chat", max_size=1000).max_size == 1000


def test_scale_and_smallest_area_are_applied_in_the_published_order():
    # 100 x 50 halved: 50 x 25 = 1250 px² < 3136 -> times 1.5839: 79.2 x 39.6 -> 3 x 2 blocks
    assert Preprocessor(patch_size=14, image_scale=0.5).target_size(100, 50) == (84, 56)
    # then up to 448²: sqrt(200704 / 3136) = 8 times larger: 633.6 x 316.8 -> 23 x 12 blocks
    assert Preprocessor(patch_size=14, image_scale=0.5, min_size=448).target_size(100, 50) == (644, 336)


def test_a_line_of_padding_can_remain_on_both_sides():
    # scale = min(224 / 205, 1120 / 1100) = 1.01818; 205 -> 208.7, and 1100 -> 1119.99… in floating point, truncated
    canvas = AIMV2.canvas(picture(205, 1100))
    assert canvas.size == (224, 1120)
    assert painted(canvas) == (7, 0, 7 + 208, 1119)
    assert canvas.getpixel((0, 0)) == canvas.getpixel((223, 1119)) == PAD


def test_a_picture_of_the_target_size_is_not_touched():
    image = picture(56, 84)
    assert AIMV2.canvas(image) is image


def test_chat_enlarges_even_a_picture_of_whole_blocks():
    # 84 x 112 -> 112 x 140 canvas, scale min(4/3, 5/4) = 1.25: 105 x 140 pasted at (3, 0)
    canvas = CHAT.canvas(picture(84, 112))
    assert canvas.size == (112, 140)
    assert painted(canvas) == (3, 0, 108, 140)


def test_chat_rounds_the_resize_of_a_picture_that_it_enlarges_to_four_tokens():
    # sqrt(3136 * 30 / 31) = 55.1 and sqrt(3136 * 31 / 30) = 56.9: box 56 x 84, scale 56 / 30, 31 * scale = 57.87 -> 58
    canvas = CHAT.canvas(picture(30, 31))
    assert canvas.size == (56, 84)
    assert painted(canvas) == (0, 13, 56, 13 + 58)


def test_the_resize_is_pillows_bicubic():
    image = picture(100, 100)  # 112 x 112, scale 1.12, nothing left to pad
    expected = image.resize((112, 112), Image.Resampling.BICUBIC)
    assert np.array_equal(AIMV2.canvas(image), expected)


@pytest.mark.parametrize("preprocessor", [AIMV2, CHAT], ids=["evaluation", "chat"])
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (5000, 1), (1, 3), (1, 1)])
def test_a_sliver_keeps_at_least_one_pixel(preprocessor, size):
    canvas = preprocessor.canvas(picture(*size))
    left, top, right, bottom = painted(canvas)
    assert canvas.size == preprocessor.target_size(*size)
    assert right - left >= 1
    assert bottom - top >= 1


@pytest.mark.parametrize("patch_size", [14, 16])
def test_patches_are_in_block_order_and_channels_come_first(patch_size):
    p, rows, columns = patch_size, 4, 6
    values = np.zeros((rows * p, columns * p, 3), dtype=np.uint8)
    for y in range(rows * p):
        for x in range(columns * p):
            values[y, x] = ((y // p) * 16 + x // p, y % p, x % p)
    raw = Preprocessor(patch_size=p, mean=(0, 0, 0), std=(1, 1, 1))
    patches, grid = raw.patches(Image.fromarray(values))
    assert grid == (rows, columns)
    assert patches.dtype == torch.float32
    pixels = (patches * 255).round().int().reshape(-1, 3, p, p)
    order = [
        (2 * block_row + row, 2 * block_column + column)
        for block_row in range(rows // 2)
        for block_column in range(columns // 2)
        for row in range(2)
        for column in range(2)
    ]
    assert [divmod(int(pixel), 16) for pixel in pixels[:, 0, 0, 0]] == order
    assert pixels[0, 1, :, 0].tolist() == list(range(p))
    assert pixels[0, 2, 0, :].tolist() == list(range(p))


def test_normalisation_agrees_with_transformers():
    image = picture(56, 56)
    theirs = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=CLIP_MEAN, image_std=CLIP_STD)
    pixels = torch.tensor(np.asarray(theirs(image, return_tensors="np")["pixel_values"][0]))
    ours, _ = AIMV2.patches(image)
    # the first patch is the top left corner; both compute in float32, in another order: a few ulp of values up to 2.2
    torch.testing.assert_close(ours[0].reshape(3, 14, 14), pixels[:, :14, :14], rtol=0, atol=2e-6)


@given(sides, sides, variants)
def test_any_size_gives_whole_blocks_and_the_tokens_of_its_area(width, height, preprocessor):
    w, h = preprocessor.target_size(width, height)
    block = 2 * preprocessor.patch_size
    assert w % block == h % block == 0
    assert min(w, h) >= block
    assert preprocessor.tokens(width, height) * 4 == (w // preprocessor.patch_size) * (h // preprocessor.patch_size)


@given(sides, sides)
def test_evaluation_never_exceeds_its_area_by_more_than_one_block_a_side(width, height):
    w, h = AIMV2.target_size(width, height)
    assert (w - 28) * (h - 28) < 1792**2 * (1 + 1e-12)  # sizes are floating-point numbers
    assert w * h >= 4 * 28 * 28 * (1 - 1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), variants)
def test_the_canvas_has_the_target_size_and_the_aspect_ratio_is_kept(width, height, preprocessor):
    image = Image.new("RGB", (width, height), (255, 255, 255))
    canvas = preprocessor.canvas(image)
    patches, (rows, columns) = preprocessor.patches(image)
    assert canvas.size == preprocessor.target_size(width, height)
    assert len(patches) == rows * columns == 4 * preprocessor.tokens(width, height)
    rows_painted, columns_painted = np.nonzero((np.asarray(canvas) == 255).all(axis=2))
    w, h = np.ptp(columns_painted) + 1, np.ptp(rows_painted) + 1
    scale = min(canvas.width / width, canvas.height / height)
    # whole pixels: less than one is lost, or gained by a sliver
    assert math.isclose(w, width * scale, abs_tol=1 + 1e-6)
    assert math.isclose(h, height * scale, abs_tol=1 + 1e-6)


@given(sides, sides)
def test_evaluation_treats_width_and_height_alike(width, height):
    w, h = AIMV2.target_size(width, height)
    assert AIMV2.target_size(height, width) == (h, w)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variant": "exact"}, "variant"),
        ({"patch_size": 0}, "patch_size"),
        ({"max_size": -1}, "max_size"),
        ({"image_scale": float("nan")}, "image_scale"),
        ({"min_size": 2000}, "min_size"),
        ({"max_side": 27}, "max_side"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0, 1, 1)}, "std"),
        ({"variant": "chat", "image_scale": 2.0}, "image_scale"),
        ({"variant": "chat", "min_size": 100}, "min_size"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(options, named):
    with pytest.raises(ConfigError, match=named):
        Preprocessor(**{"patch_size": 14, **options})


def test_a_size_without_pixels_and_a_picture_that_is_not_rgb_are_refused():
    with pytest.raises(InputError, match="0x5 has no pixels"):
        AIMV2.target_size(0, 5)
    with pytest.raises(InputError, match="got mode L") as caught:
        AIMV2.canvas(Image.new("L", (28, 28)))
    assert "load_image" in caught.value.fix


def test_importing_preprocess_and_messages_imports_neither_torch_nor_pillow():
    imports = "import sys, andes_sdk.inputs.preprocess, andes_sdk.inputs.messages"
    code = f"{imports}; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
