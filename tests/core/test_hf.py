"""transformers' Auto classes open both layouts, compute the same, and `generate` gives the pipeline's tokens."""

import json
from pathlib import Path

import andes_andesvl.hf
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, DynamicCache, Qwen3Config
from transformers.utils import logging

from andes_sdk import Pipeline
from andes_sdk.errors import InputError
from andes_sdk.runtime.generation import GenerationOptions

NEW = 12


@pytest.fixture(autouse=True)
def no_progress_bar():
    logging.disable_progress_bar()


@pytest.fixture(scope="module", params=["aimv2", "siglip2"])
def pipeline(request) -> Pipeline:
    made = Pipeline.from_plugins([{request.param: {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=11)
    with torch.no_grad():  # weights of 0.02 repeat one token for ever; larger ones give answers that differ
        for parameter in made.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return made


@pytest.fixture(scope="module", params=["andes", "published"])
def folder(request, pipeline, tmp_path_factory) -> Path:
    return pipeline.save_pretrained(tmp_path_factory.mktemp("hf") / "model", layout=request.param)


def picture(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def ask(text: str, *images: Image.Image) -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_the_auto_classes_know_both_model_types(folder, pipeline):
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type.removeprefix("andesvl-").removesuffix("-qwen3") == pipeline.plan.names[0]
    assert isinstance(config.get_text_config(), Qwen3Config)
    assert config.image_token_id == pipeline.tokenizer.placeholder("image")
    andes_andesvl.hf.register()
    andes_andesvl.hf.register()


def test_names_weights_and_buffers_are_those_of_the_pipeline(folder, pipeline):
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    theirs, ours = model.state_dict(), pipeline.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(theirs[name], ours[name])] == []
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in pipeline.model.named_buffers())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_processor_gives_what_ours_gives(folder, pipeline):
    processor = AutoProcessor.from_pretrained(folder)
    messages = ask("what is it?", picture())
    got = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    expected = pipeline.prepare(messages)
    assert torch.equal(got["input_ids"][0], expected.ids)
    assert torch.equal(got["pixel_values"], expected.media["image"].data)
    assert got["image_grid_hw"].tolist() == [list(grid) for grid in expected.media["image"].sizes]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    again = processor(text=text, images=[picture()])
    assert torch.equal(again["input_ids"], got["input_ids"])
    assert torch.equal(again["pixel_values"], got["pixel_values"])
    with pytest.raises(InputError, match="without a token"):
        processor(text="no picture here", images=[picture()])


def test_greedy_generate_equals_our_pipeline(folder, pipeline):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    seen = set()
    for seed in range(3):
        messages = ask("what is it?", picture(seed), picture(seed + 9, (40, 100)))
        inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
        out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        got = tuple(out[0, inputs["input_ids"].shape[1] :].tolist())
        assert got == pipeline.generate(messages, GenerationOptions(max_tokens=NEW)).tokens
        seen |= set(got)
    assert len(seen) > 1


def test_a_padded_batch_gives_each_its_own_answer(folder, pipeline):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    conversations = [ask("what is it?", picture()), ask("count"), ask("and these?", picture(1), picture(2))]
    inputs = processor.apply_chat_template(conversations, tokenize=True, add_generation_prompt=True)
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    for row, messages in zip(out[:, inputs["input_ids"].shape[1] :].tolist(), conversations, strict=True):
        answer = pipeline.generate(messages, GenerationOptions(max_tokens=6)).tokens
        assert tuple(row[: len(answer)]) == answer


def test_labels_give_the_mean_next_token_loss_and_gradients_everywhere(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(ask("what is it?", picture()), tokenize=True)
    output = model(**inputs, labels=inputs["input_ids"])
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], inputs["input_ids"][0, 1:])
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.inference_mode()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_goes_in_under_either_name(folder, name):
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ids = torch.arange(20, 32)[None]
    cache = DynamicCache(config=model.config.text_config)
    model(ids[:, :8], use_cache=True, **{name: cache})
    assert cache.get_seq_length() == 8
    rest = model(ids[:, 8:], use_cache=True, **{name: cache}).logits
    torch.testing.assert_close(rest, model(ids).logits[:, 8:], rtol=1e-4, atol=1e-4)  # float32, another order of sums
    with pytest.raises(InputError, match="both cache and past_key_values"):
        model(ids, cache=cache, past_key_values=cache)


def test_pictures_and_picture_tokens_must_agree(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(ask("what is it?", picture()), tokenize=True)
    inputs["input_ids"] = inputs["input_ids"][:, :5]
    inputs["attention_mask"] = inputs["attention_mask"][:, :5]
    with pytest.raises(InputError, match="image tokens"):
        model(**inputs)


def test_what_transformers_saves_our_loader_reads(folder, pipeline, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")
    back = Pipeline.from_pretrained(tmp_path / "again")
    theirs = back.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in pipeline.model.state_dict().items())
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"].startswith("andesvl-")
