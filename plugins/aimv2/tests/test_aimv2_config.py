import pytest
from andes_aimv2 import AimV2, AimV2Config

from andes_sdk.errors import ConfigError


def test_the_defaults_are_the_published_values():
    assert AimV2().resolved() == AimV2Config(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=8, num_channels=3,
        patch_size=14, image_size=448, rms_norm_eps=1e-5, qkv_bias=False, use_bias=False, hidden_stride=2,
        preserve_original_pe=True, interpolate_pe_method="two_dim", fullatt_block_indexes=None, disable_rope=False,
    )  # fmt: skip


def test_fields_of_a_published_config_override_the_preset_and_bookkeeping_is_let_through():
    published = {"hidden_size": 64, "num_attention_heads": 4, "torch_dtype": "bfloat16", "model_type": "aimv2"}
    config = AimV2(preset="tiny", config=published).resolved()
    assert (config.hidden_size, config.num_attention_heads, config.head_dim, config.table_side) == (64, 4, 16, 4)
    assert (config.intermediate_size, config.num_hidden_layers) == (64, 2)


def test_the_spec_says_what_preprocessing_needs():
    spec = AimV2(preset="tiny").andes_vision_encoder().spec
    assert (spec.width, spec.patch_size, spec.merge) == (32, 14, 2)
    assert spec.mean == (0.48145466, 0.4578275, 0.40821073)
    assert spec.std == (0.26862954, 0.26130258, 0.27577711)


def test_an_unknown_key_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="hiden_size") as caught:
        AimV2(config={"hiden_size": 64})
    assert "did you mean 'hidden_size'?" in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_choice():
    with pytest.raises(ConfigError, match="no preset 'huge'") as caught:
        AimV2(preset="huge")
    assert "large, tiny" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 3),
        ("num_attention_heads", 16),  # 2 features per head: too few for rows, columns and pairs
        ("image_size", 57),
        ("hidden_size", "32"),
        ("hidden_size", True),
        ("num_hidden_layers", 0),
        ("patch_size", 14.0),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", float("nan")),
        ("qkv_bias", 1),
        ("hidden_act", "gelu"),
        ("interpolate_pe_method", "three_dim"),
        ("attention_dropout", 0.1),
        ("temporal_patch_size", 2),
        ("num_channels", 1),
        ("window_size", "112"),
        ("fullatt_block_indexes", "0"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(key, value):
    with pytest.raises(ConfigError) as caught:
        AimV2(preset="tiny", config={key: value})
    assert caught.value.who.startswith("aimv2.config.")
    assert str(value) in str(caught.value)


def test_window_attention_is_refused_and_not_ignored():
    with pytest.raises(ConfigError, match="window attention is not supported"):
        AimV2(preset="tiny", config={"window_size": 112, "fullatt_block_indexes": [1]})


def test_a_window_size_that_no_block_uses_is_accepted_and_explained():
    for config in ({"window_size": 112}, {"window_size": 112, "fullatt_block_indexes": [0, 1]}):
        rows = AimV2(preset="tiny", config=config).andes_explain(plan=None)
        assert "window_size 112 has no effect" in rows["attention"]


def test_explain_says_what_is_on_and_off():
    rows = AimV2(preset="tiny", config={"disable_rope": True}, gradient_checkpointing=True).andes_explain(plan=None)
    assert rows["rotary positions"] == "none (disable_rope)"
    assert rows["absolute positions"] == "learned 4x4 table, two_dim"
    assert rows["gradient checkpointing"] == "on, in training"


def test_biases_and_the_missing_table_follow_the_config():
    config = {"qkv_bias": True, "use_bias": True, "preserve_original_pe": False}
    names = set(AimV2(preset="tiny", config=config).andes_vision_encoder().state_dict())
    assert {"trunk.blocks.0.attn.qkv.bias", "trunk.blocks.0.attn.proj.bias", "trunk.blocks.0.mlp.fc3.bias"} <= names
    assert "preprocessor.pos_embed" not in names
