"""Damaged pictures, messages, configurations and journals: an error of ours, or a right result."""

from __future__ import annotations

import base64
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError, InputError
from andes_sdk.files import Journal
from andes_sdk.inputs.images import ImageLimits, load_image
from andes_sdk.plan import Plan
from andes_sdk.reading import parse_json
from andes_sdk.testing.damage import CASES, ODD_TOML, altered, catalogue, damaged, to_toml

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]

# ---------------------------------------------------------------- pictures


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    plain = Image.frombytes("RGB", (12, 9), bytes(range(108)) * 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = plain.convert("RGBA")
    clear.putalpha(Image.frombytes("L", (12, 9), bytes(range(108))))
    frames = [plain.quantize(16), plain.rotate(180).quantize(16)]
    return {
        "png": encoded(plain, "PNG"),
        "png of 16 bits": encoded(Image.frombytes("I;16", (12, 9), bytes(range(216))), "PNG"),
        "png with a palette": encoded(plain.quantize(16), "PNG", transparency=3),
        "jpeg": encoded(plain, "JPEG", exif=exif),
        "progressive jpeg": encoded(plain.convert("CMYK"), "JPEG", progressive=True),
        "gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=2),
        "webp": encoded(plain, "WEBP", exif=exif),
        "webp without loss": encoded(clear, "WEBP", lossless=True),
        "tiff": encoded(plain, "TIFF", exif=exif),
        "tiff of floats": encoded(plain.convert("F"), "TIFF"),
        "tiff, lzw": encoded(clear, "TIFF", compression="tiff_lzw"),
        "tiff, deflate": encoded(plain, "TIFF", compression="tiff_deflate"),
        "tiff, jpeg": encoded(plain, "TIFF", compression="jpeg"),
        "bmp": encoded(plain, "BMP"),
    }


PICTURES = pictures()
LIMITS = ImageLimits(max_pixels=1 << 14)


@CASES
@given(name=st.sampled_from(sorted(PICTURES)), data=st.data())
def test_fuzz_pictures(name, data):
    content = data.draw(damaged(PICTURES[name]))
    try:
        image = load_image(content, limits=LIMITS)
    except InputError:
        return
    assert image.mode == "RGB"
    assert not image.info
    assert image.width * image.height <= LIMITS.max_pixels
    assert image.tobytes() == load_image(content, limits=LIMITS).tobytes()  # no pixel is left to chance
    if content == PICTURES[name]:
        assert image.size in ((12, 9), (9, 12))


# ---------------------------------------------------------------- messages

URL = "data:image/png;base64," + base64.b64encode(PICTURES["png"]).decode()
CHAT: list[Any] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}},
        {"type": "text", "text": "What is it?"},
        {"type": "image", "image": URL},
    ]},
    {"role": "assistant", "content": "A picture."},
    {"role": "user", "content": "Sure?"},
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_plugins(TINY, image={"min_size": 28, "max_size": 56}, seed=1)


def check_prepared(pipe: Pipeline, messages: Any) -> None:
    """A conversation that is taken holds every text, and a row for each row of its pictures."""
    try:
        found = pipe.prepare(messages)
    except (AndesError, AssemblyError):
        return
    ids, mark = found.ids.tolist(), pipe.tokenizer.placeholder("image")
    assert all(0 <= i < pipe.tokenizer.vocab_size for i in ids)
    assert ids.count(mark) == sum(sum(media.rows) for media in found.media.values())
    text = pipe.tokenizer.decode(ids)
    parts = [messages] if isinstance(messages, str) else [p for m in messages for p in _texts(m)]
    assert [p for p in parts if unicodedata.normalize("NFC", p) not in text] == []


def _texts(message: Any) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]


@CASES
@given(messages=altered(CHAT))
def test_fuzz_messages(pipe, messages):
    check_prepared(pipe, messages)


@CASES
@given(content=damaged(json.dumps(CHAT).encode()))
def test_fuzz_bytes_of_messages(pipe, content):
    try:
        messages = parse_json(content)
    except ValueError:
        return
    check_prepared(pipe, messages)


# ---------------------------------------------------------------- configurations

CONFIG: dict[str, Any] = {
    "plugins": TINY,
    "seed": 3,
    "device": "cpu",
    "dtype": "float32",
    "backend": "torch",
    "image": {"min_size": 28, "max_size": 56},
}


def check_configured(path) -> None:
    try:
        pipe = Pipeline.from_config(path)
        pipe.explain()
    except (AndesError, AssemblyError):
        return
    assert Plan.from_dict(json.loads(pipe.plan.to_json())) == pipe.plan
    assert Pipeline.from_plan(pipe.plan).plan == pipe.plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@CASES
@given(config=altered(CONFIG, ODD_TOML))
def test_fuzz_configurations_in_toml(folder, config):
    (folder / "c.toml").write_bytes(to_toml(config))
    check_configured(folder / "c.toml")


@CASES
@given(config=altered(CONFIG))
def test_fuzz_configurations_in_json(folder, config):
    (folder / "c.json").write_text(json.dumps(config))
    check_configured(folder / "c.json")


@CASES
@given(kind=st.sampled_from(["toml", "json"]), data=st.data())
def test_fuzz_bytes_of_configurations(folder, kind, data):
    path = folder / f"b.{kind}"
    path.write_bytes(data.draw(damaged(to_toml(CONFIG) if kind == "toml" else json.dumps(CONFIG).encode())))
    check_configured(path)


@pytest.mark.parametrize("place", ["~nobody/x", "\0", "x" * 5000, "x/" * 3000, "\ud800", "/dev/zero", "tests"])
@pytest.mark.parametrize("suffix", ["", ".gguf", ".andes"])
def test_fuzz_places_of_models(place, suffix):
    """Names that cannot be: what is told is that there is no model."""
    for given_as in (str, Path):
        with pytest.raises((AndesError, AssemblyError)):
            Pipeline.from_pretrained(given_as(f"{place}{suffix}"))
    with pytest.raises((AndesError, AssemblyError)):
        Pipeline.from_config({**CONFIG, "weights": f"{place}{suffix}"})
    with pytest.raises((AndesError, AssemblyError)):
        Pipeline.from_config(f"{place}{suffix}")
    with pytest.raises(InputError):
        load_image(f"{place}{suffix}")


@pytest.mark.parametrize("place", ["~nobody/x", "\0", "x" * 5000, "x/" * 3000, "\ud800", "/dev/zero", "tests"])
def test_fuzz_places_in_options(place):
    for plugins in (
        [*TINY[:2], {"gguf": {"path": place}}],
        [*TINY[:2], {"qwen3": {"preset": "tiny", "tokenizer": place}}],
    ):
        with pytest.raises((AndesError, AssemblyError)):
            _ = Pipeline.from_plugins(plugins).tokenizer


# ---------------------------------------------------------------- journals

ROWS = [{"line": n, "text": "ab\u2028 \ud800é" * n, "n": [n, None, 1.5]} for n in range(6)]


@pytest.fixture(scope="module")
def lines(folder) -> bytes:
    journal = Journal(folder / "whole.jsonl")
    for row in ROWS:
        journal.add(row)
    assert journal.rows() == ROWS
    return journal.path.read_bytes()


@CASES
@given(data=st.data())
def test_fuzz_journals(folder, lines, data):
    """Whole lines are kept, all of them; only a torn last one goes."""
    content = data.draw(damaged(lines))
    journal = Journal(folder / "j.jsonl")
    journal.path.write_bytes(content)
    whole = content.split(b"\n")[:-1]
    try:
        expected = [parse_json(line) for line in whole]
    except ValueError:
        with pytest.raises(InputError):
            journal.rows()
        with pytest.raises(InputError):
            journal.keep(lambda row: True)
        assert journal.path.read_bytes() == content
        return
    assert repr(journal.rows()) == repr(expected)
    assert repr(journal.keep(lambda row: True)) == repr(expected)
    assert journal.path.read_bytes() == b"".join(line + b"\n" for line in whole)


@CASES
@given(row=altered(ROWS[3]))
def test_fuzz_rows_of_journals(folder, row):
    """What is added comes back, or is refused."""
    journal = Journal(folder / "r.jsonl")
    journal.path.unlink(missing_ok=True)
    journal.add(ROWS[0])
    journal.add(row)
    try:
        rows = journal.rows()
    except InputError:
        return
    assert repr(rows) == repr([ROWS[0], row])
