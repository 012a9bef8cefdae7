"""From a picture to patches: the two preprocessing variants that were published with AndesVL.

`evaluation` is the published evaluation code: float sizes, one resize truncated to whole pixels. `chat` is what the
checkpoint's own `chat()` does: whole-pixel sizes, a smaller area, and a side that is a whole number of blocks
grows by one more. Both keep the aspect ratio and centre the picture on a canvas of the mean colour.
Where a sliver would shrink to nothing, both published versions fail; here it keeps one pixel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import Attribute, Factory, field, frozen

from andes_sdk.errors import ConfigError, InputError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from andes_sdk.types import Grid

Size = tuple[int, int]
"""Width and height in pixels."""

MIN_TOKENS = 4
"""Both variants enlarge a picture to at least this area."""

_MAX_SIZE = {"evaluation": 1792, "chat": 733}


def _positive(self: Preprocessor, attribute: Attribute[Any], value: float) -> None:
    if not (0 < value < math.inf):
        raise ConfigError(f"expected a positive number, got {value!r}", who=attribute.name)


def _known(self: Preprocessor, attribute: Attribute[Any], value: str) -> None:
    if value not in _MAX_SIZE:
        raise ConfigError(f"expected one of {', '.join(_MAX_SIZE)}, got {value!r}", who=attribute.name)


def _colours(self: Preprocessor, attribute: Attribute[Any], value: tuple[float, ...]) -> None:
    lowest_std = 0 if attribute.name == "mean" else 1e-6
    if len(value) != 3 or not all(lowest_std <= part <= 1 for part in value):
        raise ConfigError(f"expected three numbers up to 1, got {value!r}", who=attribute.name)


@frozen(kw_only=True)
class Preprocessor:
    """Sizes a picture, puts it on its canvas, and cuts it into normalised patches.

    Attributes:
        patch_size: side of a patch in pixels.
        merge: side of the block of patches that becomes one token; sides are rounded to whole blocks.
        mean, std: per-channel normalisation of pixels scaled to [0, 1]; the canvas is int(mean * 255).
        variant: `evaluation` or `chat`.
        image_scale: factor on both sides before anything else (`evaluation` only).
        max_side: pixels; a longer picture is scaled down to it first. Later steps may exceed it, as published.
        min_size, max_size: pixels; the area is kept between their squares (`min_size`: `evaluation` only). Rounding
            up to whole blocks may exceed them, as published.
    """

    patch_size: int = field(validator=_positive)
    merge: int = field(default=2, validator=_positive)
    mean: tuple[float, float, float] = field(default=(0.5, 0.5, 0.5), converter=tuple, validator=_colours)
    std: tuple[float, float, float] = field(default=(0.5, 0.5, 0.5), converter=tuple, validator=_colours)
    variant: str = field(default="evaluation", validator=_known)
    image_scale: float = field(default=1.0, validator=_positive)
    max_side: int = field(default=4172, validator=_positive)
    min_size: int = 0
    max_size: int = field(
        default=Factory(lambda self: _MAX_SIZE.get(self.variant, 1), takes_self=True), validator=_positive
    )

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.min_size <= self.max_size:
            why = f"max_size is {self.max_size}"
            raise ConfigError(f"min_size {self.min_size} is out of range", who="min_size", why=why, fix="lower it")
        if self.variant == "chat" and (self.image_scale != 1 or self.min_size):
            why = "the checkpoint's chat() has no such step"
            fix = "use variant='evaluation', or leave out image_scale and min_size"
            raise ConfigError("image_scale and min_size do nothing in the variant 'chat'", why=why, fix=fix)
        if self.max_side < self.block:
            raise ConfigError(f"max_side {self.max_side} is less than one block ({self.block})", who="max_side")

    @property
    def block(self) -> int:
        """Side of one token in pixels: merge * patch_size."""
        return self.merge * self.patch_size

    def target_size(self, width: int, height: int) -> Size:
        """Width and height of the canvas for a picture of this size: whole blocks.

        Raises:
            InputError: a side is less than one pixel.
        """
        return self._plan(width, height)[0]

    def tokens(self, width: int, height: int) -> int:
        """Rows that a picture of this size takes in the language model."""
        w, h = self.target_size(width, height)
        return (w // self.block) * (h // self.block)

    def canvas(self, image: Image.Image) -> Image.Image:
        """The RGB picture at its target size, resized (bicubic) and centred on the mean colour.

        The evaluation variant returns the picture itself if it has the target size.

        Raises:
            InputError: not an RGB image.
        """
        from PIL import Image

        if image.mode != "RGB":
            fix = "load it with andes_sdk.inputs.images.load_image"
            raise InputError(f"expected an RGB picture, got mode {image.mode}", fix=fix)
        target, resizes, corner = self._plan(image.width, image.height)
        if target == image.size and not resizes:
            return image
        for size in resizes:
            image = image.resize(size)  # Pillow's default, bicubic; nothing happens if the size is already this
        red, green, blue = (int(part * 255) for part in self.mean)
        canvas = Image.new("RGB", target, (red, green, blue))
        canvas.paste(image, corner)
        return canvas

    def patches(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """RGB picture -> ((N, 3*p*p) float32 normalised patches in block order, (H/p, W/p))."""
        import numpy as np
        import torch

        from andes_sdk.inputs.patches import patchify

        canvas = self.canvas(image)
        pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float().div(255)  # (3, H, W)
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        grid = (canvas.height // self.patch_size, canvas.width // self.patch_size)
        return patchify((pixels - mean) / std, self.patch_size, self.merge), grid

    def _plan(self, width: int, height: int) -> tuple[Size, list[Size], Size]:
        """Canvas size, the resizes in order, and the corner where the result is pasted."""
        if width < 1 or height < 1:
            raise InputError(f"a picture of {width}x{height} has no pixels", fix="check how it was made")
        return self._plan_chat(width, height) if self.variant == "chat" else self._plan_evaluation(width, height)

    # The order of the floating-point operations below is the published one; another order moves a pixel here and there.

    def _plan_evaluation(self, width: int, height: int) -> tuple[Size, list[Size], Size]:
        w, h = float(width) * self.image_scale, float(height) * self.image_scale
        if max(w, h) > self.max_side:
            scale = self.max_side / max(w, h)
            w, h = w * scale, h * scale
        for smallest in (MIN_TOKENS * self.block**2, self.min_size**2):
            if w * h < smallest:
                scale = math.sqrt(smallest / (w * h))
                w, h = w * scale, h * scale
        if w * h > self.max_size**2:
            scale = math.sqrt(self.max_size**2 / (w * h))
            w, h = w * scale, h * scale
        target = (math.ceil(w / self.block) * self.block, math.ceil(h / self.block) * self.block)
        if target == (width, height):
            return target, [], (0, 0)
        scale = min(target[0] / width, target[1] / height)
        w, h = width * scale, height * scale
        return target, [_whole(w, h)], (int((target[0] - w) / 2), int((target[1] - h) / 2))

    def _plan_chat(self, width: int, height: int) -> tuple[Size, list[Size], Size]:
        w, h, resizes = width, height, []
        if max(w, h) > self.max_side:
            scale = self.max_side / max(w, h)
            w, h = _whole(w * scale, h * scale)
            resizes = [(w, h)]
        smallest = MIN_TOKENS * self.block**2
        area = self.max_size**2 if w * h > self.max_size**2 else smallest if w * h < smallest else None
        target = (self._grown(w), self._grown(h)) if area is None else self._chat_box(w / h, area)
        scale = min(target[0] / w, target[1] / h)
        if area is None:
            w, h = _whole(w * scale, h * scale)
        else:  # published: truncated above, rounded here
            w, h = _whole(round(w * scale), round(h * scale))
        return target, [*resizes, (w, h)], ((target[0] - w) // 2, (target[1] - h) // 2)

    def _chat_box(self, ratio: float, area: int) -> Size:
        """The canvas of this aspect ratio around an area, no side longer than the whole blocks in `max_side`."""
        longest = self.max_side - self.max_side % self.block
        sides = (math.floor(math.sqrt(area * ratio)), math.floor(math.sqrt(area / ratio)))
        w, h = (min(self._grown(max(min(side, self.max_side), self.block)), longest) for side in sides)
        return w, h

    def _grown(self, side: int) -> int:
        return side + self.block - side % self.block


def _whole(width: float, height: float) -> Size:
    return max(1, int(width)), max(1, int(height))
