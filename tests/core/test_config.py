"""Plain data to plugins, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import field, frozen
from attrs.validators import ge, le
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import config
from andes_sdk.errors import AssemblyError, ConfigError


@frozen(eq=False, kw_only=True)
class Options:
    keep: float = field(default=0.25, validator=[ge(0.0), le(1.0)])
    rows: int = 4
    on: bool = False
    name: str = "x"
    maybe: int | None = None
    where: Path = Path()
    table: dict[str, int] = field(factory=dict)


def texts(options) -> list[str]:
    with pytest.raises(AssemblyError) as caught:
        config.structure(Options, options, "okv")
    assert all(isinstance(e, ConfigError) for e in caught.value.exceptions)
    return [str(e) for e in caught.value.exceptions]


def test_values_arrive_as_they_are() -> None:
    made = config.structure(
        Options, {"keep": 1, "rows": 3, "on": True, "maybe": 5, "where": "a/b", "table": {"a": 1}}, "okv"
    )
    assert (made.keep, made.rows, made.on, made.maybe, made.where, made.table) == (
        1.0,
        3,
        True,
        5,
        Path("a/b"),
        {"a": 1},
    )
    assert type(made.keep) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "x"}, "expected float, got 'x' @ okv.keep"),
        ({"rows": "7"}, "expected int, got '7' @ okv.rows"),
        ({"rows": 3.9}, "expected int, got 3.9 @ okv.rows"),
        ({"rows": True}, "expected int, got True @ okv.rows"),
        ({"on": 1}, "expected bool, got 1 @ okv.on"),
        ({"name": 3}, "expected str, got 3 @ okv.name"),
        ({"where": 3}, "expected a path, got 3 @ okv.where"),
        ({"table": {"a": "b"}}, "expected int, got 'b' @ okv.table['a']"),
        ({"keep": 1.5}, "'keep' must be <= 1.0"),
        ({"kepe": 0.5}, "did you mean 'keep'?"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_path(options, message: str) -> None:
    (text,) = texts(options)
    assert message in text


def test_all_problems_come_at_once() -> None:
    assert len(texts({"keep": 2.0, "rows": "7", "on": 1, "kepe": 1})) == 4


def test_options_at_their_default_are_left_out_of_a_plan() -> None:
    assert config.plain(Options(rows=5)) == {"rows": 5}
    assert config.plain(Options()) == {}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["keep", "rows", "on", "name", "maybe", "where", "table", "kepe"]), anything))
def test_fuzzed_options_end_in_our_errors_or_in_a_right_result(options) -> None:
    try:
        made = config.structure(Options, options, "okv")
    except AssemblyError as group:
        assert all(isinstance(e, ConfigError) and e.who == "okv" for e in group.exceptions)
        return
    assert 0 <= made.keep <= 1
    assert type(made.rows) is int
    assert config.structure(Options, config.plain(made), "okv").rows == made.rows


plugin_names = st.sampled_from(["aimv2", "siglip2", "mlp", "qwen3", "sft", "pretraining", "nothing", ""])
items = plugin_names | st.dictionaries(plugin_names, anything, max_size=2) | anything
runs = st.fixed_dictionaries(
    {},
    optional={
        "device": st.sampled_from(["cpu", "cuda", "cuda:7", "mps", "tpu", "", "cpu:x"]),
        "dtype": st.sampled_from(["float32", "bfloat16", "float8", ""]),
        "backend": st.sampled_from(["torch", "numba", ""]),
        "seed": st.integers(0, 5),
        "image": st.dictionaries(
            st.sampled_from(["variant", "min_size", "max_size", "mean", "x"]), anything, max_size=2
        ),
    },
)


@given(st.lists(items, max_size=5) | anything, runs)
def test_fuzzed_pipelines_end_in_our_errors_or_in_a_plan(plugins, run) -> None:
    from andes_sdk import Pipeline

    try:
        pipeline = Pipeline.from_plugins(plugins, **run)
    except AssemblyError as group:
        assert group.exceptions
        return
    assert pipeline.plan.names


def test_a_configuration_file_is_read_and_its_mistakes_named(tmp_path: Path) -> None:
    from andes_sdk import Pipeline

    file = tmp_path / "pipe.toml"
    file.write_text('plugins = [{aimv2 = {preset = "tiny"}}, "mlp", {qwen3 = {preset = "tiny"}}]\nseed = 3\n')
    assert Pipeline.from_config(file).plan.seed == 3
    file.write_text('plugins = ["mlp"]\nsede = 3\n')
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_config(file)
    assert "did you mean 'seed'" in str(caught.value)
    file.write_text("plugins = [")
    with pytest.raises(ConfigError, match="cannot be read"):
        Pipeline.from_config(file)
