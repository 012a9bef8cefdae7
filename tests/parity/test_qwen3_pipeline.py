"""The whole path equals transformers' own Qwen3: to the bit where the same operations run in the same shapes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import GenerationOptions

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins(
        [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny", "config": CONFIG}}], seed=3
    )


@pytest.fixture(scope="module")
def stock(pipeline: Pipeline) -> Qwen3ForCausalLM:
    ours = pipeline.model.language_model
    config = Qwen3Config(**{k: v for k, v in ours.config.to_dict().items() if k != "model_type"})
    config._attn_implementation = "sdpa"
    model = Qwen3ForCausalLM(config).eval()
    model.load_state_dict(ours.state_dict())
    return model


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@torch.inference_mode()
def test_prefill_and_every_step_equal_transformers_to_the_bit(pipeline: Pipeline, stock: Qwen3ForCausalLM) -> None:
    inputs = pipeline.prepare("how many squares are there in this picture?")
    session = pipeline.session()
    ours = session.prefill(inputs)
    # transformers' generate asks for the last row's logits in the same way
    # the cache goes in by position, since its name depends on the release
    cache = DynamicCache(config=stock.config)
    output = stock(inputs.ids[None], None, None, cache, use_cache=True, logits_to_keep=1)
    theirs = output.logits[0, -1]
    for _ in range(8):
        assert torch.equal(ours, theirs)
        token = int(ours.argmax())
        ours = session.extend([token])[0][-1]
        session.commit()
        output = stock(torch.tensor([[token]]), None, None, cache, use_cache=True)
        theirs = output.logits[0, -1]


@torch.inference_mode()
def test_greedy_text_with_pictures_equals_transformers_generate(pipeline: Pipeline, stock: Qwen3ForCausalLM) -> None:
    content = [
        {"type": "image", "image": Image.new("RGB", (60, 90), "teal")},
        {"type": "text", "text": "and"},
        {"type": "image", "image": Image.new("RGB", (100, 40), "red")},
    ]
    messages = [{"role": "user", "content": content}]
    inputs = pipeline.prepare(messages)
    images = pipeline.model.encode(inputs.media)["image"]
    embeds = stock.get_input_embeddings()(inputs.ids)
    embeds[inputs.ids == pipeline.tokenizer.placeholder("image")] = images
    theirs = stock.generate(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
        max_new_tokens=16,
        do_sample=False,
        pad_token_id=pipeline.tokenizer.pad,
        eos_token_id=pipeline.tokenizer.eos,
    )[0]
    ours = pipeline.generate(messages, GenerationOptions(max_tokens=16))
    assert list(ours.tokens) == theirs.tolist()


def test_named_sizes_have_the_published_totals() -> None:
    from andes_andesvl.catalogue import plugins_of

    # billions, AndesVL report, table of models; 2.055 and 4.360 are printed to three digits
    published = {"andesvl-0.6b": 0.695, "andesvl-1b": 0.927, "andesvl-2b": 2.055, "andesvl-4b": 4.360}
    for name, total in published.items():
        count = Pipeline.from_plugins(plugins_of(name)).meta_model().parameter_count()
        assert count / 1e9 == pytest.approx(total, abs=0.00075), name
