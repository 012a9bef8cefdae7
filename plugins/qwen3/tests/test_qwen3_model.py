"""The model against transformers' own class: the same weights must give the same bits."""

import os
import subprocess
import sys

import pluggy
import pytest
import torch
from andes_qwen3 import Qwen3
from andes_qwen3.model import Qwen3LanguageModel
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from andes_sdk.errors import AndesError, ConfigError
from andes_sdk.hookspecs import PROJECT, Hooks

IDS = [3, 250, 17, 99, 400, 8, 8, 511, 0, 42, 77]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def causal(layer, q, k, v, scale):
    """Plain causal attention over one sequence, as transformers asks SDPA for it when there is no mask."""
    out = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def tiny(**options):
    torch.manual_seed(0)
    return Qwen3(preset="tiny", **options).andes_language_model(packed=False).eval()


def stock_twin(model):
    """transformers' own class with the same configuration and weights."""
    config = Qwen3Config(**{k: v for k, v in model.config.to_dict().items() if not k.startswith("_")})
    stock = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    stock.load_state_dict(model.state_dict())
    return stock


def through_the_seam(model, ids, attend=causal):
    return model.logits(model.hidden_states(model.embed(ids), torch.arange(len(ids)), attend))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_through_the_seam_are_bit_equal_to_transformers(tied):
    model, ids = tiny(config={"tie_word_embeddings": tied}), torch.tensor(IDS)
    stock = stock_twin(model)
    with torch.no_grad():
        expected = stock(ids[None]).logits[0]
        assert torch.equal(through_the_seam(model, ids), expected)
        assert torch.equal(model(ids[None]).logits[0], expected)
    assert stock.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "andes"


def test_a_padded_batch_through_forward_is_bit_equal_to_transformers():
    model = tiny()
    ids = torch.tensor([IDS, IDS[::-1]])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        assert torch.equal(model(ids, attention_mask=mask).logits, stock_twin(model)(ids, attention_mask=mask).logits)


def test_greedy_generation_equals_transformers():
    model, ids = tiny(), torch.tensor([IDS])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 486}
    assert torch.equal(model.generate(ids, **options), stock_twin(model).generate(ids, **options))


def test_state_dict_names_are_those_of_transformers():
    model = tiny()
    assert list(model.state_dict()) == list(stock_twin(model).state_dict())
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.1.self_attn.q_norm.weight"} <= set(
        model.state_dict()
    )


def test_attend_meets_every_layer_once_with_the_promised_shapes():
    model, calls = tiny(), []

    def spy(layer, q, k, v, scale):
        calls.append((layer, q.shape, k.shape, v.shape, scale))
        return causal(layer, q, k, v, scale)

    through_the_seam(model, torch.tensor(IDS), spy)
    t = len(IDS)
    assert calls == [(n, (1, 4, t, 16), (1, 2, t, 16), (1, 2, t, 16), 0.25) for n in range(2)]


def test_two_packed_samples_with_positions_that_start_again_equal_the_samples_alone():
    model = tiny()
    a, b = torch.tensor(IDS[:5]), torch.tensor(IDS[5:])

    def blocks(layer, q, k, v, scale):
        parts = [causal(layer, q[:, :, s], k[:, :, s], v[:, :, s], scale) for s in (slice(0, 5), slice(5, None))]
        return torch.cat(parts, dim=1)

    positions = torch.cat([torch.arange(5), torch.arange(6)])
    with torch.no_grad():
        packed = model.hidden_states(model.embed(torch.cat([a, b])), positions, blocks)
        alone = [model.hidden_states(model.embed(x), torch.arange(len(x)), causal) for x in (a, b)]
    # Matrix products over other row counts may sum in another order: float32 rounding only.
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def parameters_by_hand(layers, hidden, inner, heads):
    attention = 2 * hidden * heads * 128 + 2 * hidden * 8 * 128 + 2 * 128  # q and o, k and v, two head norms
    layer = attention + 3 * hidden * inner + 2 * hidden
    return 151_936 * hidden + layers * layer + hidden  # the head is the embedding


@pytest.mark.parametrize(
    ("preset", "sizes", "total"),
    [
        ("0.6b", (28, 1024, 3072, 16), 596_049_920),
        ("1.7b", (28, 2048, 6144, 16), 1_720_574_976),
        ("4b", (36, 2560, 9728, 32), 4_022_468_096),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, sizes, total):
    with torch.device("meta"):
        model = Qwen3(preset=preset).andes_language_model(packed=False)
    assert parameters_by_hand(*sizes) == total
    assert sum(p.numel() for p in model.parameters()) == total
    assert model.spec.max_positions == 40_960
    assert (model.spec.layers, model.spec.width, model.spec.query_heads) == (sizes[0], sizes[1], sizes[3])
    assert (model.spec.kv_heads, model.spec.head_dim, model.spec.vocab_size) == (8, 128, 151_936)
    assert model.config.rope_parameters == {"rope_theta": 1_000_000.0, "rope_type": "default"}


@pytest.mark.parametrize("load", ["copy into to_empty", "assign"])
def test_a_model_built_on_meta_and_filled_equals_one_built_with_weights(load):
    model, ids = tiny(), torch.tensor(IDS)
    with torch.device("meta"):
        other = tiny()
    if load == "assign":
        other.load_state_dict(model.state_dict(), assign=True)
    else:
        other.to_empty(device="cpu")
        other.load_state_dict(model.state_dict())
    other.tie_weights()
    assert other.tied
    assert other.spec == model.spec
    with torch.no_grad():
        assert torch.equal(through_the_seam(other, ids), through_the_seam(model, ids))


def test_rotary_frequencies_stay_float32_in_bfloat16_as_when_transformers_loads_it(tmp_path):
    model, ids = tiny(), torch.tensor(IDS)
    model.save_pretrained(tmp_path)
    stock = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    same = Qwen3LanguageModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    model.to(torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.no_grad():
        expected = stock(ids[None]).logits[0]
        assert torch.equal(through_the_seam(model, ids), expected)
        assert torch.equal(through_the_seam(same, ids), expected)


def test_gradient_checkpointing_recomputes_layers_and_gives_the_same_gradients():
    ids, gradients, calls = torch.tensor(IDS), [], []
    for checkpointing in (False, True):
        model, count = tiny(gradient_checkpointing=checkpointing).train(), []
        spy = lambda layer, *rest, count=count: count.append(layer) or causal(layer, *rest)  # noqa: E731
        F.cross_entropy(through_the_seam(model, ids, spy)[:-1], ids[1:]).backward()
        gradients.append([p.grad for p in model.parameters()])
        calls.append(len(count))
    assert calls == [2, 4]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradient_checkpointing_leaves_frozen_embeddings_without_gradients():
    model = tiny(gradient_checkpointing=True).train().requires_grad_(False)
    assert not model.embed(torch.tensor(IDS)).requires_grad


def test_published_rope_spellings_mean_the_same():
    old = tiny(config={"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "factor": 2.0,
               "original_max_position_embeddings": 64}})  # fmt: skip
    new = tiny(config={"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 2.0,
               "original_max_position_embeddings": 64}})  # fmt: skip
    assert torch.equal(old.model.rotary_emb.inv_freq, new.model.rotary_emb.inv_freq)
    ids = torch.tensor(IDS)
    with torch.no_grad():
        assert torch.equal(through_the_seam(old, ids), stock_twin(new)(ids[None]).logits[0])
        assert not torch.equal(through_the_seam(old, ids), through_the_seam(tiny(), ids))


def test_a_whole_published_configuration_is_accepted():
    published = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151936,
    }  # fmt: skip
    with torch.device("meta"):
        given = Qwen3(preset="4b", config=published).andes_language_model(packed=False)
        preset = Qwen3(preset="0.6b").andes_language_model(packed=False)
    assert given.config.to_dict() == preset.config.to_dict()


def test_a_configuration_written_by_this_version_of_transformers_is_accepted():
    written = tiny().config.to_dict()
    with torch.device("meta"):
        assert Qwen3(preset="0.6b", config=written).andes_language_model(packed=False).spec == tiny().spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "0.6B"}, "did you mean '0.6b'"),
        ({"config": {"hiden_size": 64}}, "did you mean 'hidden_size'"),
        ({"config": {"quantization_config": {"bits": 4}}}, "unknown field 'quantization_config'"),
        ({"config": {"hidden_size": "1024"}}, "expected int, got '1024'"),
        ({"config": {"num_hidden_layers": True}}, "expected int, got True"),
        ({"config": {"tie_word_embeddings": 1}}, "expected bool, got 1"),
        ({"config": {"hidden_size": 0}}, "must be positive"),
        ({"config": {"num_key_value_heads": 3}}, "multiple of num_key_value_heads"),
        ({"config": {"use_sliding_window": True}}, "sliding-window layers are not supported"),
        ({"config": {"layer_types": ["full_attention", "sliding_attention"]}}, "sliding-window"),
        ({"config": {"layer_types": 3}}, "expected list, got 3"),
        ({"config": {"attention_dropout": 0.1}}, "attention_dropout must be 0"),
        ({"config": {"model_type": "llama"}}, "another family"),
        ({"config": {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}}, "give one of them"),
        ({"config": {"rope_parameters": "yarn"}}, "expected Mapping"),
    ],
)
def test_a_wrong_option_is_refused_when_the_plugin_is_made(options, words):
    with pytest.raises(ConfigError) as caught:
        Qwen3(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize("config", [{"hidden_act": "sillu"}, {"rope_parameters": {"rope_type": "spiral"}}])
def test_what_transformers_does_not_know_is_a_configuration_error(config):
    with pytest.raises(ConfigError, match="transformers refuses"):
        tiny(config=config)


def test_the_class_itself_refuses_sliding_windows():
    config = Qwen3Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ConfigError, match="sliding-window"):
        Qwen3LanguageModel(config)


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    plugin = Qwen3(preset="tiny", config={"vocab_size": 400})
    with pytest.raises(AndesError, match="512 ids, the model only 400"):
        plugin.andes_tokenizer(files=None)


def test_every_hook_of_the_plugin_is_in_the_contract():
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    plugin = Qwen3(preset="tiny", thinking=True)
    manager.register(plugin, "qwen3")
    manager.check_pending()
    assert manager.hook.andes_language_model(packed=False).spec.width == 48
    assert manager.hook.andes_tokenizer(folder=None, files=None).vocab_size == 512
    facts = manager.hook.andes_explain(plan=None)[0]
    assert facts["mode"].startswith("thinking")
    assert facts["head"] == "tied to the embedding"


def test_importing_and_configuring_the_plugin_loads_no_heavy_library():
    code = (
        "import sys; from andes_qwen3 import Qwen3\n"
        "Qwen3(preset='4b', config={'rope_theta': 1e6}).andes_explain(plan=None)\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
