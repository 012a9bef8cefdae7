"""Options that contradict one another, have no effect or cannot work are refused before any weight is read."""

from __future__ import annotations

from typing import Any

import pytest
from andes_okv.options import KINDS, SCORERS, WINDOWS
from andes_okv.scorers import scorer_class

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import AssemblyError, ConfigError
from andes_sdk.testing.reference import ReferenceLanguageModel, ReferenceTokenizer

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def pipeline(**okv: Any) -> Pipeline:
    return Pipeline.from_plugins([*TINY, {"okv": okv}])


WRONG = {
    "no rows": ({"rows": 0}, "rows"),
    "no share": ({"keep": 0.0}, "keep"),
    "more than all": ({"keep": 1.5}, "keep"),
    "fewer than must stay": ({"rows": 30}, "less than the 4 sinks and 32 recent rows"),
    "one row": ({"rows": 1}, "give rows=36 or more"),
    "two sizes": ({"rows": 200, "keep": 0.5}, "keep has no effect beside rows"),
    "a threshold alone": ({"threshold": 1.0}, "give both or neither"),
    "no threshold": ({"budget": "threshold"}, "give both or neither"),
    "a window for nobody": ({"scorer": "keynorm", "window": 8}, "window has no effect"),
    "weights for nobody": ({"scorer": "snapkv", "weights": "/x"}, "weights have no effect"),
    "a safeguard for nobody": ({"safeguard": 0.5, "budget": "head"}, "safeguard has no effect under the budget 'head'"),
    "an unknown scorer": ({"scorer": "snap"}, "scorer"),
    "an unknown budget": ({"budget": "heads"}, "budget"),
    "no recent row": ({"recent": 0}, "recent"),
}


@pytest.mark.parametrize(("options", "what"), WRONG.values(), ids=WRONG)
def test_options_that_cannot_be_are_refused_at_assembly(options: dict[str, Any], what: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        pipeline(**options)
    assert what in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(AssemblyError) as caught:
        pipeline(rows=3, threshold=1.0, scorer="keynorm", window=4)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", WINDOWS)
def test_scorers_are_known_by_their_name(name: str) -> None:
    assert scorer_class(name).name == name


def test_what_was_chosen_is_explained() -> None:
    rows = {
        r.part: r.value for r in pipeline(keep=0.1, scorer="rkv", budget="layer").explain().rows if r.owner == "okv"
    }
    assert rows["scorer"] == "rkv"
    assert "0.1 of the rows seen, 256 or more; heads of a layer compete, each has 0.2" in rows["budget"]
    assert "4 first and 32 latest rows" in rows["always stay"]
    assert "between chunks of 64 rows" in rows["evicts"]
    assert "kv='int8'" in rows["precision of rows"]
    whole = {r.part: r.value for r in pipeline(rows=500, reading=False).explain().rows if r.owner == "okv"}
    assert "its peak is the whole" in whole["evicts"]
    assert "500 rows per head" in whole["budget"]
    assert len(SCORERS) == 12
    assert len(KINDS) == 6


def test_a_static_store_takes_equal_heads_that_fit() -> None:
    from andes_okv import OKV

    model = pipeline().model
    fits = OKV(rows=200, chunk=32).andes_cache_policy(model, 300)
    assert fits.budget(10_000) == 264 * model.text.layers * model.text.kv_heads
    assert OKV(rows=200, chunk=32, budget="uniform").andes_cache_policy(model, 300).budget(300)
    with pytest.raises(ConfigError, match="different numbers of rows") as caught:
        OKV(rows=200, budget="global").andes_cache_policy(model, 300)
    assert "uniform" in caught.value.fix
    with pytest.raises(ConfigError, match="needs up to 364 rows") as caught:
        OKV(rows=300).andes_cache_policy(model, 300)
    assert "300 rows per head" in caught.value.why


def test_a_model_that_names_no_projection_keeps_the_scorers_that_need_none() -> None:
    class Nameless(ReferenceLanguageModel):
        @hookimpl
        def andes_language_model(self) -> Any:
            made = super().andes_language_model()
            made.linears = dict
            return made

    def made(scorer: str) -> Pipeline:
        return Pipeline.from_plugins([TINY[0], "mlp", Nameless(), ReferenceTokenizer(), {"okv": {"scorer": scorer}}])

    assert made("snapkv").policy.name.startswith("okv (snapkv")
    with pytest.raises(ConfigError, match="cannot weigh values"):
        made("restkv").policy  # noqa: B018 - building it is the point
