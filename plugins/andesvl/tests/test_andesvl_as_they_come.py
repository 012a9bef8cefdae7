"""Published checkpoints as they come: strict about what changes numbers, tolerant of the rest."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, CheckpointError

SIGLIP2 = [{"siglip2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
AIMV2 = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path) -> Path:
    return Pipeline.from_plugins(SIGLIP2, seed=3).save_pretrained(tmp_path / "published", layout="published")


def change(folder: Path, part: str | None = None, **fields: object) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    target = config if part is None else config[part]
    for key, value in fields.items():
        target.pop(key) if value is None else target.update({key: value})
    path.write_text(json.dumps(config))
    return folder


def logits(pipe: Pipeline) -> torch.Tensor:
    inputs = pipe.prepare("hello")
    session = pipe.session()
    return session.prefill(inputs)[-1]


@pytest.mark.parametrize("part", ["vision_config"])
def test_keys_with_a_meaning_are_honoured_or_refused_by_value(folder, part):
    before = logits(Pipeline.from_pretrained(folder))
    same = Pipeline.from_pretrained(change(folder, part, merge_size=2, spatial_merge_size=2))
    assert torch.equal(logits(same), before)
    for wrong in (3, "2", True, 2.5):
        with pytest.raises(AssemblyError) as caught:
            Pipeline.from_pretrained(change(folder, part, merge_size=wrong))
        (problem,) = caught.value.problems
        assert "merge_size" in str(problem)
        assert str(folder / "config.json") in problem.who


def test_bookkeeping_is_listed_as_without_effect(folder):
    change(folder, "vision_config", transformers_version="4.57.0", _name_or_path="x", vision_use_head=False)
    change(folder, "text_config", use_cache=True, max_window_layers=28)
    rows = Pipeline.from_pretrained(folder).explain().rows
    told = {row.owner: row.value for row in rows if row.part == "without effect"}
    assert "_name_or_path, " in told["siglip2"]
    assert "vision_use_head" in told["siglip2"]
    assert "max_window_layers" in told["qwen3"]


@pytest.mark.parametrize(("part", "owner"), [("vision_config", "siglip2"), ("text_config", "qwen3")])
def test_an_unknown_key_names_the_file_and_the_way_round_it(folder, part, owner):
    change(folder, part, novel_gating="wide")
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_pretrained(folder)
    (problem,) = caught.value.problems
    assert str(folder / "config.json") in problem.who
    assert f'plugins=[{{"{owner}": {{"ignore": [\'novel_gating\']}}}}]' in problem.fix
    opened = Pipeline.from_pretrained(folder, plugins=[{owner: {"ignore": ["novel_gating"]}}])
    assert "novel_gating" in str(opened.explain().to_dict())


def test_an_absent_table_is_what_the_publishing_class_means_by_it(tmp_path):
    folder = Pipeline.from_plugins(AIMV2, seed=3).save_pretrained(tmp_path / "published", layout="published")
    change(folder, "vision_config", preserve_original_pe=None)
    with pytest.raises(CheckpointError, match="pos_embed"):
        _ = Pipeline.from_pretrained(folder).model
    told = str(Pipeline.from_pretrained(folder).explain().to_dict())
    assert "preserve_original_pe is false" in told


def test_an_absent_size_of_the_table_is_the_publishing_class_s(tmp_path):
    parts = [{"aimv2": {"preset": "tiny", "config": {"image_size": 224}}}, *AIMV2[1:]]
    folder = Pipeline.from_plugins(parts, seed=3).save_pretrained(tmp_path / "published", layout="published")
    before = Pipeline.from_pretrained(folder).model.vision_encoder.state_dict()
    change(folder, "vision_config", image_size=None)
    after = Pipeline.from_pretrained(folder).model.vision_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("prefix", ["model.", "module.base."])
def test_tensors_under_a_prefix_are_told_apart_from_other_tensors(folder, prefix):
    file = folder / "model.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError) as caught:
        _ = Pipeline.from_pretrained(folder).model
    assert f"under the prefix {prefix!r}" in caught.value.fix


def test_a_pointer_of_git_lfs_says_so(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="Git LFS"):
        _ = Pipeline.from_pretrained(folder).model


def test_a_byte_order_mark_is_no_part_of_a_configuration(folder):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert logits(Pipeline.from_pretrained(folder)).isfinite().all()


@pytest.mark.parametrize("stated", ["auto", "fp8", 16])
def test_a_precision_that_is_none_is_refused_by_name(folder, stated):
    with pytest.raises(CheckpointError, match="torch_dtype is") as caught:
        Pipeline.from_pretrained(change(folder, torch_dtype=stated))
    assert "config.json" in caught.value.who


def test_auto_classes_find_the_picture_token_by_its_name(folder):
    import andes_andesvl.hf  # noqa: F401
    from transformers import AutoConfig

    wanted = Pipeline.from_pretrained(folder).tokenizer.placeholder("image")
    assert AutoConfig.from_pretrained(change(folder, image_token_id=None)).image_token_id == wanted
    assert AutoConfig.from_pretrained(change(folder, image_token_id=wanted + 1)).image_token_id == wanted + 1


def test_the_template_s_text_is_our_own_with_pictures(folder):
    from andes_andesvl.hf import AndesVLProcessor
    from PIL import Image

    processor = AndesVLProcessor.from_pretrained(folder, image={"min_size": 32})
    picture = Image.new("RGB", (64, 64))
    asked = [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "sure?"},
    ]
    for think in (False, True):
        options = {"add_generation_prompt": True, "enable_thinking": think}
        text = processor.apply_chat_template(asked, tokenize=False, **options)
        whole = processor.apply_chat_template(asked, tokenize=True, **options)
        assert text.count("<|vision_pad|>") == 1
        again = processor(text, images=[picture])
        assert again["input_ids"].tolist() == whole["input_ids"].tolist()
        assert torch.equal(again["pixel_values"], whole["pixel_values"])
    assert (
        processor.apply_chat_template([asked, asked], tokenize=False)
        == [processor.apply_chat_template(asked, tokenize=False)] * 2
    )
