"""Pictures from wherever they are, as plain 8-bit RGB, or one clear error.

Nothing of Pillow's comes through: not its exceptions, not its warnings (remarks about metadata are dropped), and its
global settings are neither changed nor needed. Bytes are judged by their content, never by a name or media type.
"""

from __future__ import annotations

import threading
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from andes_sdk.errors import InputError
from andes_sdk.inputs.sources import ImageLimits, describe, read_source

if TYPE_CHECKING:
    from andes_sdk.inputs.sources import ImageSource

_DEFAULT_LIMITS = ImageLimits()
_EXTERNAL = frozenset({"EPS", "WMF"})
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what turns the stored picture upright; 1 is upright already."""


def load_image(
    source: ImageSource, *, allow_remote: bool = False, limits: ImageLimits = _DEFAULT_LIMITS
) -> Image.Image:
    """Load a picture as a new RGB image, upright, without metadata.

    - EXIF orientation is applied; EXIF that cannot be read counts as absent.
    - Alpha, transparent colours and transparent palette entries are composited on white.
    - `I;16` is divided by 257 and rounded (0..65535 -> 0..255). In `I` and `F` white is the smallest of 1 (`F` only),
      255 and 65535 that holds the largest value; negative, larger or non-finite values are an error.
    - CMYK and other colour spaces: Pillow's conversion, colour profiles are not applied.
    - Animations: the first frame of a file, the current frame of a PIL image.
    - A PIL image is not modified.

    Args:
        source: a path, `file://` URL, data URL (base64 or percent-encoded), bytes, PIL image, or http(s) URL.
        allow_remote: fetch http(s) URLs. Off by default: a message may come from anyone and name any address.
        limits: pixels, bytes and seconds that may be spent.

    Raises:
        InputError: whatever is wrong with the source or the picture.
    """
    name = describe(source)
    if isinstance(source, Image.Image):
        with _quiet:
            return _rgb(source, name, limits)
    data = read_source(source, name, allow_remote, limits)
    with _quiet, _open(data, name, limits) as image:
        return _rgb(image, name, limits)


class _Quiet:
    """Drops warnings that Pillow's modules raise while any thread is inside.

    `warnings.catch_warnings` alone leaves the wrong filters behind when threads overlap; here the first thread in
    sets them and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._saved = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._saved.__exit__(None, None, None)


_quiet = _Quiet()


def _open(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """Read the header only."""
    try:
        image = Image.open(BytesIO(data))
    except Image.DecompressionBombError as error:
        fix = "make it smaller; PIL.Image.MAX_IMAGE_PIXELS is this application's ceiling"
        raise InputError("the picture has too many pixels", who=name, why=str(error), fix=fix) from None
    except Exception as error:  # on broken bytes Pillow's readers raise far more than they document
        why = f"no reader of Pillow's recognises it; it starts with {data[:12]!r}"
        if not isinstance(error, UnidentifiedImageError):
            why = f"{type(error).__name__}: {error}"
        raise InputError("this is not a picture", who=name, why=why, fix="pass a PNG, JPEG or WebP file") from None
    if image.format in _EXTERNAL:  # decoding would start Ghostscript, or draw with the operating system
        why = f"{image.format} is a drawing that another program would have to run"
        raise InputError("this kind of picture is not read", who=name, why=why, fix="convert it to PNG first")
    return image


def _rgb(image: Image.Image, name: str, limits: ImageLimits) -> Image.Image:
    """Check the size in the header, then decode, flatten to RGB and turn upright."""
    pixels = image.width * image.height
    if pixels > limits.max_pixels:
        why = f"{image.width}x{image.height} is {pixels} pixels, the limit is {limits.max_pixels}"
        fix = "make it smaller, or raise ImageLimits(max_pixels=…)"
        raise InputError("the picture has too many pixels", who=name, why=why, fix=fix)
    if not pixels:
        why = f"its size is {image.width}x{image.height}"
        raise InputError("the picture has no pixels", who=name, why=why, fix="check how it was made")
    try:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))  # after load(): some readers turn the picture themselves
        rgb = _flatten(image, name)
        rgb = rgb.copy() if turn is None else rgb.transpose(turn)
    except InputError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        fix = "it is damaged or incomplete: write, export or download it again"
        raise InputError("the picture cannot be decoded", who=name, why=why, fix=fix) from None
    rgb.info = {}  # EXIF left here would turn the picture again the next time it is loaded
    return rgb


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF: no viewer refuses the picture for it
        return None


def _flatten(image: Image.Image, name: str) -> Image.Image:
    """Any mode -> RGB on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image, name)
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 or 32 bits -> `L`, or `LA` if one grey value is declared transparent."""
    import numpy as np

    values = np.asarray(image)
    top, bottom = float(values.max()), float(values.min())
    whites = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    white = next((white for white in whites if bottom >= 0 and top <= white), None)  # None with a NaN as well
    if white is None:
        why = f"mode {image.mode} holds values from {bottom:g} to {top:g}; 0..{whites[-1]} can be shown"
        raise InputError("the range of the picture is unknown", who=name, why=why, fix="scale it to 0..255 first")
    scaled = np.rint(values * (255 / white)).astype(np.uint8)
    grey = Image.fromarray(scaled)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


__all__ = ["ImageLimits", "load_image"]
