import base64
import os
import threading
import warnings
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from andes_sdk.errors import InputError
from andes_sdk.inputs.images import ImageLimits, load_image

CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [128, 128, 128], [255, 255, 0]]], np.uint8)
RED = (255, 0, 0)
WHITE = (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def corners() -> Image.Image:
    """Six different colours: no two of the eight orientations look alike."""
    return Image.fromarray(CORNERS)


def refused(source: object, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        load_image(source, **options)
    error = caught.value
    assert error.what
    assert error.fix
    assert len(str(error)) < 600
    assert error.__suppress_context__ or error.__context__ is None  # Pillow's exception is not shown
    return error


# ---------------------------------------------------------------- sources


class PathOfBytes(os.PathLike):
    """What os.scandir gives for a folder named in bytes."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return self.path


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    data = encode(corners())
    path = tmp_path / "a picture é.png"
    path.write_bytes(data)
    plain = base64.b64encode(data).decode()
    sources = [
        path,
        str(path),
        PathOfBytes(os.fsencode(path)),
        path.as_uri(),
        path.as_uri().replace("file://", "FILE://localhost"),
        data,
        bytearray(data),
        memoryview(data),
        corners(),
        f"data:image/png;base64,{plain}",
        f"DATA:image/png;charset=utf-8;BASE64,{quote(plain)}",
        f"data:;base64,{plain.rstrip('=')}",
        f"data:image/jpeg;base64,{base64.urlsafe_b64encode(data).decode()}",
        "data:image/png;base64," + "\n".join(plain[i : i + 20] for i in range(0, len(plain), 20)),
        "data:image/png," + quote(data),
    ]
    for source in sources:
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(image, CORNERS), source


def test_the_name_of_a_file_does_not_matter(tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(encode(corners(), "BMP"))
    assert np.array_equal(load_image(path), CORNERS)


def test_what_is_not_there_or_not_a_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "none.png").why
    assert "looked for from" in refused("none.png").why
    assert "folder" in refused(tmp_path).what
    assert "path of the picture is empty" in refused("").what
    assert "regular file" in refused("/dev/null").what
    assert refused("a\0b").why
    assert "base64" in refused("iVBORw0KGgo" * 1000).fix
    (tmp_path / "empty.png").touch()
    assert "empty" in refused(tmp_path / "empty.png").what
    assert "empty" in refused(b"").what


@pytest.mark.parametrize("source", [None, 7, ["a.png"], {"url": "a.png"}, BytesIO(b"")])
def test_what_is_no_source_is_refused_by_its_type(source):
    assert refused(source).who == type(source).__name__


def test_an_array_is_refused_with_the_way_to_make_it_a_picture():
    assert "fromarray" in refused(CORNERS).fix


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "0 bytes"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/svg+xml,%3Csvg/%3E", "not a picture"),
        ("file://server/share/a.png", "'server'"),
        ("file://[a.png", "not a URL"),
        ("ftp://example.org/a.png", "ftp://"),
        ("s3://bucket/a.png", "s3://"),
        ("https://example.org/a.png", "allow_remote=True"),
        ("HTTP://example.org/a.png", "allow_remote=True"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url, says):
    assert says in str(refused(url))


def test_a_long_data_url_is_shortened_in_the_message():
    error = refused("data:image/png;base64," + "A" * 100_000)
    assert "(100022 characters)" in error.who
    assert len(error.who) < 100


def test_the_size_of_the_encoded_picture_is_limited_everywhere(tmp_path):
    data = encode(corners())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    tight = ImageLimits(max_bytes=len(data) - 1)
    for source in (data, path, "data:;base64," + base64.b64encode(data).decode(), "data:," + "A" * 10_000):
        assert "max_bytes" in refused(source, limits=tight).fix
    assert load_image(path, limits=ImageLimits(max_bytes=len(data))).size == (3, 2)


# ---------------------------------------------------------------- remote


class Server(BaseHTTPRequestHandler):
    data = encode(Image.fromarray(CORNERS))

    def do_GET(self) -> None:
        moved = {"/moved": "/a.png", "/to-file": "file:///etc/passwd", "/to-ftp": "ftp://localhost/a.png"}
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
        elif self.path in ("/a.png", "/cut"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.data) + (self.path == "/cut")))
        elif self.path == "/slow":
            self.send_response(200)
        else:
            self.send_response(404)
        self.end_headers()
        if self.path in ("/a.png", "/cut"):
            self.wfile.write(self.data)
        for _ in range(40 * (self.path == "/slow")):
            try:
                self.wfile.write(b"x")
            except OSError:
                return
            threading.Event().wait(0.05)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def direct(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


HERE = ImageLimits(allow_private=True)


@pytest.mark.usefixtures("direct")
def test_a_remote_picture_is_fetched_when_that_is_allowed(server):
    assert np.array_equal(load_image(f"{server}/a.png", allow_remote=True, limits=HERE), CORNERS)
    assert np.array_equal(load_image(f"{server}/moved", allow_remote=True, limits=HERE), CORNERS)


@pytest.mark.usefixtures("direct")
def test_a_remote_picture_that_fails_says_why(server):
    assert "404" in refused(f"{server}/none", allow_remote=True, limits=HERE).why
    assert "early" in refused(f"{server}/cut", allow_remote=True, limits=HERE).why
    assert refused(f"{server}/to-file", allow_remote=True, limits=HERE).why
    assert refused(f"{server}/to-ftp", allow_remote=True, limits=HERE).why
    assert "max_bytes" in refused(f"{server}/a.png", allow_remote=True, limits=evolve(HERE, max_bytes=10)).fix
    assert refused("http://127.0.0.1:1/a.png", allow_remote=True, limits=HERE).why
    assert refused("http://", allow_remote=True, limits=HERE).why
    assert refused("http://127.0.0.1:port/", allow_remote=True, limits=HERE).why


@pytest.mark.usefixtures("direct")
def test_a_server_that_drips_bytes_runs_into_the_deadline(server):
    error = refused(f"{server}/slow", allow_remote=True, limits=evolve(HERE, timeout=0.3))
    assert "0.3 s" in error.why


# ---------------------------------------------------------------- orientation

# EXIF 2.32, tag 0x0112: which edges of the stored picture hold the 0th row and 0th column of the upright one.
STORED = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: CORNERS.transpose(1, 0, 2)[::-1],
    7: CORNERS.transpose(1, 0, 2)[::-1, ::-1],
    8: CORNERS.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(stored, kind, exif=exif, **options)
    assert np.array_equal(load_image(data), CORNERS)
    with Image.open(BytesIO(data)) as image:
        assert np.array_equal(load_image(image), CORNERS)


def test_a_loaded_picture_is_not_turned_again():
    exif = Image.Exif()
    exif[0x0112] = 6
    once = load_image(encode(Image.fromarray(np.ascontiguousarray(STORED[6])), exif=exif))
    assert np.array_equal(load_image(once), CORNERS)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_image(encode(corners(), exif=exif)), CORNERS)


def test_damaged_exif_does_not_cost_the_picture():
    assert np.array_equal(load_image(encode(corners(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), CORNERS)
    assert np.array_equal(load_image(encode(corners(), exif=b"garbage")), CORNERS)


# ---------------------------------------------------------------- modes


def test_alpha_is_composited_on_white():
    rgba = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8))
    # black at 128 / 255 over white: 255 * (1 - 128 / 255) = 127
    expected = [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    assert load_image(encode(rgba)).size == (3, 1)
    assert np.array_equal(load_image(encode(rgba)), expected)
    assert np.array_equal(load_image(rgba), expected)
    assert load_image(rgba.convert("RGBa")).getpixel((1, 0)) == WHITE
    grey = Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    assert np.array_equal(load_image(encode(grey)), [[[10] * 3, [255] * 3]])
    assert np.array_equal(load_image(grey.convert("La")), [[[10] * 3, [255] * 3]])


def test_transparent_colours_and_palette_entries_are_white():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert np.array_equal(load_image(encode(palette)), [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    expected = [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    assert np.array_equal(load_image(encode(palette, transparency=1)), expected)
    assert np.array_equal(load_image(encode(palette, transparency=b"\xff\x00\xff")), expected)
    assert np.array_equal(load_image(encode(palette, "GIF", transparency=1)), expected)
    assert load_image(encode(corners(), transparency=(0, 255, 0))).getpixel((1, 0)) == WHITE
    assert load_image(encode(Image.new("L", (1, 1), 7), transparency=7)).getpixel((0, 0)) == WHITE
    deep = Image.fromarray(np.array([[7, 257]], np.uint16))
    assert np.array_equal(load_image(encode(deep, transparency=7)), [[[255] * 3, [1] * 3]])


def test_one_bit_grey_and_cmyk_are_converted():
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    assert np.array_equal(load_image(encode(bits)), [[[255] * 3, [0] * 3]])
    assert np.array_equal(load_image(encode(Image.new("L", (2, 1), 77))), [[[77] * 3] * 2])
    # Pillow: R = 255 - C - K·(255 - C)/255; a red without black is exact
    assert load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")).getpixel((4, 4)) == RED
    r, g, b = load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert r > 250  # JPEG is lossy
    assert g < 5
    assert b < 5


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX", "PA"])
def test_other_colour_spaces_are_converted(mode):
    image = corners().convert("P").convert("PA") if mode == "PA" else Image.new(mode, (2, 2))
    assert load_image(image).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    # v / 257 rounded: 128 / 257 = 0.498, 129 / 257 = 0.502
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 128, 255]
    assert np.asarray(load_image(encode(Image.fromarray(values), kind)))[0, :, 0].tolist() == expected


def test_big_endian_sixteen_bits_are_scaled_too():
    image = Image.frombytes("I;16B", (2, 1), np.array([257, 65535], ">u2").tobytes())
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int32, [0, 1, 255], [0, 1, 255]),
        (np.int32, [0, 257, 65535], [0, 1, 255]),
        (np.int32, [0, 0, 256], [0, 0, 1]),
        (np.float32, [0, 0.5, 1], [0, 128, 255]),
        (np.float32, [0, 0.5, 2], [0, 0, 2]),
        (np.float32, [0, 100.4, 255], [0, 100, 255]),
        (np.float32, [0, 257, 65535], [0, 1, 255]),
        (np.float32, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_white_of_wide_grey_is_the_smallest_usual_one_that_holds_every_value(dtype, values, expected):
    image = Image.fromarray(np.array([values], dtype))
    assert image.mode == ("I" if dtype is np.int32 else "F")
    assert np.asarray(load_image(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [-1, 65536, float("nan"), float("inf"), -float("inf")])
def test_grey_whose_range_is_unknown_is_refused(value):
    image = Image.fromarray(np.array([[0.5, value]], np.float32))
    assert "scale it" in refused(image).fix


def test_a_sixteen_bit_portable_greymap_is_scaled():
    assert load_image(b"P5 1 1 65535\n\xff\xff").getpixel((0, 0)) == WHITE


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert load_image(data).getpixel((0, 0)) == RED, kind
    with Image.open(BytesIO(data)) as image:
        image.seek(2)
        assert load_image(image).getpixel((0, 0)) == (0, 0, 255)
        assert image.tell() == 2


# ---------------------------------------------------------------- sizes and damage


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (65_500, 1)])
def test_slivers_are_loaded(size):
    for kind in ("PNG", "JPEG"):
        assert load_image(encode(Image.new("RGB", size), kind)).size == size


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])  # 8-bit grey
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (13_378, 13_378), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_from_its_header(size):
    assert "too many pixels" in refused(png_header(*size)).what


def test_the_limit_of_pixels_is_configurable_and_holds_for_pil_images():
    image = Image.new("RGB", (10, 10))
    for source in (image, encode(image)):
        assert "max_pixels" in refused(source, limits=ImageLimits(max_pixels=99)).fix
        assert load_image(source, limits=ImageLimits(max_pixels=100)).size == (10, 10)


def test_a_picture_below_the_limit_raises_no_bomb_warning():
    size = 10_000  # 100 Mpx: Pillow warns from 89 Mpx on; the data is missing, so it is damaged but no bomb
    assert "cannot be decoded" in refused(png_header(size, size)).what


def test_an_empty_pil_image_is_refused():
    assert "no pixels" in refused(Image.new("RGB", (0, 5))).what


def test_a_closed_pil_image_is_refused(tmp_path):
    corners().save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    assert "cannot be decoded" in refused(image).what


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_picture_is_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    for share in (0.5, 0.9):
        refused(data[: int(len(data) * share)])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("data", [b"hello, world", b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0"])
def test_bytes_of_something_else_are_refused(data):
    assert "not a picture" in refused(data).what


def test_a_drawing_that_would_start_another_program_is_refused():
    assert "EPS" in refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n").why


ORIGINALS = [encode(Image.effect_noise((16, 16), 80).convert("RGB"), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ORIGINALS), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=6))
def test_flipped_bytes_give_a_picture_or_an_input_error(data, flips):
    damaged = bytearray(data)
    for place, value in flips:
        damaged[place % len(damaged)] = value
    try:
        image = load_image(damaged, limits=ImageLimits(max_pixels=1_000_000))
    except InputError:
        return
    assert image.mode == "RGB"


# ---------------------------------------------------------------- what stays as it was


def test_a_pil_image_is_not_modified_and_the_result_is_another():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(BytesIO(encode(corners(), exif=exif))) as image:
        image.load()
        before, info = image.copy(), dict(image.info)
        result = load_image(image)
        result.putpixel((0, 0), (1, 2, 3))
        assert np.array_equal(image, before)
        assert image.info == info
        assert image.getexif()[0x0112] == 6
    plain = corners()
    result = load_image(plain)
    assert type(result) is Image.Image
    result.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(plain, CORNERS)


def test_pillow_settings_and_warning_filters_are_left_alone():
    ceiling, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    load_image(corners())
    refused(b"hello")
    assert (ceiling, filters) == (Image.MAX_IMAGE_PIXELS, warnings.filters)


def test_threads_that_overlap_leave_the_warning_filters_alone():
    filters, data = list(warnings.filters), encode(Image.new("RGB", (300, 300)), "JPEG")
    sizes: list[tuple[int, int]] = []
    threads = [
        threading.Thread(target=lambda: sizes.extend(load_image(data).size for _ in range(20))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 8 * 20
    assert warnings.filters == filters


def test_a_file_is_closed_after_loading(tmp_path):
    path = Path(tmp_path / "a.png")
    path.write_bytes(encode(corners()))
    load_image(path)  # an open handle would be a ResourceWarning, and that an error in this suite
    path.unlink()
