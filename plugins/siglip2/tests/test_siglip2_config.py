import pytest
from andes_siglip2 import SigLIP2, SigLIP2Config

from andes_sdk.errors import ConfigError


def test_the_defaults_are_the_published_values():
    assert SigLIP2().resolved() == SigLIP2Config(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_channels=3,
        patch_size=16, num_patches=1024, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, hidden_stride=2,
        preserve_original_pe=True, disable_rope=False, fullatt_block_indexes=None,
    )  # fmt: skip


def test_fields_of_a_published_config_override_the_preset_and_bookkeeping_is_let_through():
    published = {"hidden_size": 64, "num_attention_heads": 4, "torch_dtype": "bfloat16", "model_type": "siglip2"}
    config = SigLIP2(preset="tiny", config=published).resolved()
    assert (config.hidden_size, config.num_attention_heads, config.head_dim, config.table_side) == (64, 4, 16, 4)
    assert (config.intermediate_size, config.num_hidden_layers) == (64, 2)


def test_the_spec_says_what_preprocessing_needs():
    spec = SigLIP2(preset="tiny").andes_vision_encoder().spec
    assert (spec.width, spec.patch_size, spec.merge) == (32, 16, 2)
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)


def test_an_unknown_key_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="hiden_size") as caught:
        SigLIP2(config={"hiden_size": 64})
    assert "did you mean 'hidden_size'?" in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_choice():
    with pytest.raises(ConfigError, match="no preset 'huge'") as caught:
        SigLIP2(preset="huge")
    assert "base, tiny" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 3),
        ("num_attention_heads", 16),  # 2 features per head: too few for rows, columns and pairs
        ("num_patches", 15),
        ("hidden_size", "32"),
        ("hidden_size", True),
        ("num_hidden_layers", 0),
        ("patch_size", 16.0),
        ("layer_norm_eps", 0.0),
        ("layer_norm_eps", float("nan")),
        ("disable_rope", 1),
        ("hidden_act", "silu"),
        ("attention_dropout", 0.1),
        ("num_channels", 1),
        ("window_size", "112"),
        ("fullatt_block_indexes", "0"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        SigLIP2(preset="tiny", config={key: value})
    assert caught.value.who.startswith("siglip2.config.")
    assert str(value) in str(caught.value)


def test_window_attention_is_refused_and_not_ignored():
    with pytest.raises(ConfigError, match="window attention is not supported"):
        SigLIP2(preset="tiny", config={"window_size": 112, "fullatt_block_indexes": [1]})


def test_a_window_size_that_no_block_uses_is_accepted_and_explained():
    for config in ({"window_size": 112}, {"window_size": 112, "fullatt_block_indexes": [0, 1]}):
        rows = SigLIP2(preset="tiny", config=config).andes_explain(plan=None)
        assert "window_size 112 has no effect" in rows["attention"]


def test_explain_says_what_is_on_and_off():
    rows = SigLIP2(preset="tiny", config={"disable_rope": True}, gradient_checkpointing=True).andes_explain(plan=None)
    assert rows["rotary positions"] == "none (disable_rope)"
    assert rows["absolute positions"] == "learned 4x4 table, bicubic"
    assert rows["gradient checkpointing"] == "on, in training"


def test_explain_names_the_activation_that_is_computed():
    for key, words in {"gelu_pytorch_tanh": "tanh-approximated GELU", "gelu": "exact GELU"}.items():
        rows = SigLIP2(preset="tiny", config={"hidden_act": key}).andes_explain(plan=None)
        assert rows["activation"] == f"{words} (hidden_act)"


def test_without_the_original_positions_there_is_no_table():
    names = SigLIP2(preset="tiny", config={"preserve_original_pe": False}).andes_vision_encoder().state_dict()
    assert "vision_model.embeddings.pos_embed.weight" not in names
