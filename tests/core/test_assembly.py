"""From the user's list to a plan: strict, complete, independent."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest
import torch
from attrs import field, frozen

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import AssemblyError, ConfigError, DuplicateName, PlanError, PluginBroken, SlotError
from andes_sdk.plan import Plan


@frozen(eq=False, kw_only=True)
class Watcher:
    """Observes and checks."""

    contract = "1.1"
    needs: str = ""
    seen: list = field(factory=list)

    @hookimpl
    def andes_check(self, plan):
        return [] if self.needs in ("", *plan.names) else [f"needs the plugin {self.needs!r}"]

    @hookimpl
    def andes_event(self, event):
        self.seen.append(event)


@frozen(eq=False, kw_only=True)
class Misspelt:
    contract = "1.1"

    @hookimpl
    def andes_vision_encodre(self): ...


@frozen(eq=False, kw_only=True)
class WrongArguments:
    contract = "1.1"

    @hookimpl
    def andes_projector(self, width): ...


class Named:
    name = "sft"


@frozen(eq=False, kw_only=True)
class SecondSft:
    contract = "1.1"

    @hookimpl
    def andes_training_stages(self):
        return [Named()]


def errors_of(*items, **run) -> list[Exception]:
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins(list(items), **run)
    return list(caught.value.exceptions)


def test_every_problem_of_a_list_comes_at_once(tiny) -> None:
    found = errors_of("aimv3", {"qwen3": {"preset": 3, "nope": 1}}, "mlp", "mlp", device="cuda:9", dtype="int3")
    assert len(found) == 6
    text = "\n".join(map(str, found))
    for part in ("did you mean 'aimv2'", "@ qwen3.preset", "unknown option 'nope'", "listed twice", "cuda:9", "int3"):
        assert part in text


def test_two_owners_of_a_slot_are_named(tiny) -> None:
    (error,) = errors_of(*tiny, "siglip2")
    assert isinstance(error, SlotError)
    assert error.who == "aimv2 and siglip2"


def test_every_slot_without_an_owner_is_named() -> None:
    found = errors_of("mlp")
    assert [e.what for e in found] == [
        f"slot {s!r} has no owner" for s in ("vision_encoder", "language_model", "tokenizer")
    ]


def test_two_objects_of_one_name_in_a_collection_are_an_error(tiny) -> None:
    (error,) = errors_of(*tiny, "sft", SecondSft())
    assert isinstance(error, DuplicateName)
    assert error.who == "sft and secondsft"


def test_a_misspelt_hook_and_wrong_arguments_are_errors(tiny) -> None:
    found = errors_of(*tiny, Misspelt(), WrongArguments())
    assert [type(e) for e in found] == [PluginBroken, PluginBroken]
    assert "andes_vision_encodre" in str(found[0])
    assert "width" in str(found[1])


def test_checks_of_plugins_are_raised_before_any_weight_is_read(tiny, tmp_path) -> None:
    found = errors_of(*tiny, Watcher(needs="okv"), weights=None)
    assert isinstance(found[0], PlanError)
    assert "needs the plugin 'okv'" in str(found[0])


@pytest.mark.parametrize("item", [Watcher, 7, None, {"a": 1, "b": 2}, ["aimv2"], {"aimv2": 3}])
def test_items_that_are_no_plugin_are_refused(tiny, item) -> None:
    assert any(isinstance(e, ConfigError) for e in errors_of(*tiny, item))


def test_the_result_does_not_depend_on_the_order(tiny) -> None:
    a = Pipeline.from_plugins(tiny).model.state_dict()
    b = Pipeline.from_plugins(tiny[::-1]).model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_pipelines_are_independent_of_one_another(tiny) -> None:
    watcher = Watcher()
    one, two = Pipeline.from_plugins([*tiny, watcher]), Pipeline.from_plugins(tiny)
    with torch.no_grad():
        for p in one.model.parameters():
            p.zero_()
    assert any(bool(p.any()) for p in two.model.parameters())
    from andes_sdk.types import Event

    two.tell(Event(kind="x"))
    assert watcher.seen == []
    one.tell(Event(kind="x"))
    assert len(watcher.seen) == 1


def test_building_a_model_leaves_the_callers_random_state_alone(tiny) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Pipeline.from_plugins(tiny, seed=9).model  # noqa: B018
    assert torch.equal(torch.rand(3), expected)


def test_a_plan_survives_json_and_pickle(tiny) -> None:
    plan = Pipeline.from_plugins([*tiny, {"sft": {"rate": 0.5}}], seed=4, image={"min_size": 56}).plan
    assert Plan.from_dict(plan.to_dict()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert dict(plan.plugins[-1].options) == {"rate": 0.5}
    assert plan.plugins[0].distribution == "andes-aimv2"


def _weights_sum(plan: Plan) -> float:
    model = Pipeline.from_plan(plan).model
    return sum(float(p.detach().double().sum()) for p in model.parameters())


def test_a_pickled_plan_rebuilds_the_same_pipeline_in_a_spawned_process(tiny) -> None:
    plan = Pipeline.from_plugins(tiny, seed=7).plan
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_weights_sum, (plan,)) == _weights_sum(plan)


def test_a_plan_with_objects_says_that_it_needs_them(tiny) -> None:
    plan = Pipeline.from_plugins([*tiny, Watcher()]).plan
    with pytest.raises(PlanError, match="objects="):
        Pipeline.from_plan(plan)
    assert Pipeline.from_plan(plan, objects=[Watcher()]).plan.names == plan.names


@pytest.mark.parametrize("data", [None, [], {}, {"plugins": 3}, {"plugins": [], "nope": 1}])
def test_data_that_is_no_plan_is_refused(data) -> None:
    with pytest.raises(PlanError):
        Plan.from_dict(data)


def test_explain_names_owner_size_and_weights(tiny) -> None:
    explained = Pipeline.from_plugins([*tiny, "sft"]).explain()
    rows = {r.part: r for r in explained.rows}
    assert rows["vision_encoder"].owner == "aimv2"
    assert rows["decoder"].value == "autoregressive"
    assert rows["training_stages"].state == "available"
    assert "seed 0" in rows["weights"].value
    assert explained.parameters == Pipeline.from_plugins(tiny).model.parameter_count()
    assert "AimV2Encoder" in str(explained)
    assert explained.to_dict()["parameters"] == explained.parameters


def test_a_hook_that_fails_names_its_plugin(tiny) -> None:
    @frozen(eq=False, kw_only=True)
    class Failing:
        contract = "1.1"

        @hookimpl
        def andes_projector(self, vision, text):
            raise RuntimeError("no such layer")

    pipeline = Pipeline.from_plugins([tiny[0], Failing(), tiny[2]])
    with pytest.raises(PluginBroken, match="no such layer") as caught:
        pipeline.model  # noqa: B018
    assert caught.value.who == "failing"


def test_a_plan_that_lists_a_plugin_twice_lost_one_of_them(tiny):
    plan = Pipeline.from_plugins(tiny).plan.to_dict()
    twice = {**plan, "plugins": [*plan["plugins"], plan["plugins"][0]]}
    with pytest.raises(PlanError, match="a plugin is listed twice"):
        Plan.from_dict(twice)
