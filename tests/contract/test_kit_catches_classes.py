"""Planted bugs in the plugin class itself, and in what it shares between pipelines: the kit names each of them."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache

import pytest
import torch
from attrs import define, field, frozen

from andes_sdk import hookimpl
from andes_sdk.testing import checks_of, run_checks
from andes_sdk.testing.reference import ReferenceEncoder, ReferencePolicy, ReferenceReward, ReferenceWatcher
from andes_sdk.testing.reference.collections import Contains
from andes_sdk.testing.reference.modules import Encoder
from andes_sdk.testing.reference.running import Recent
from andes_sdk.testing.runner import _result
from andes_sdk.testing.subject import Subject

RUNS = []


def reason(plugin, name, kind="general"):
    """Run one check -> why it failed, or "" if it passed or does not apply."""
    (one,) = (c for c in checks_of([kind]) if c.name == name)
    result = _result(one, Subject(plugin))
    return result.reason if result.status == "failed" else ""


SOUND = frozen(eq=False, kw_only=True)


def reward_class(decorate=SOUND, **changes):
    """A sound little plugin class, with some of its attributes changed or (None) taken away."""

    @hookimpl
    def andes_rewards(self):
        return [Contains()]

    body = {
        "__doc__": "A reward. Shortest use: `Pipeline.from_plugins([..., Little()])`.",
        "contract": "1.1",
        "weight": field(default=1.0, metadata={"help": "how much it counts"}),
        "__annotations__": {"weight": float},
        "andes_rewards": andes_rewards,
        **changes,
    }
    return decorate(type("Little", (), {k: v for k, v in body.items() if v is not None}))


def test_the_little_class_itself_passes():
    # its module imports torch for the other tests, which is the one thing the kit objects to
    failed = {r.id for r in run_checks(reward_class()) if r.status == "failed"}
    assert failed == {"general: importing it loads neither torch nor transformers"}


CLASSES = {
    "is a frozen attrs class with keyword options, hashed by identity": [
        reward_class(decorate=define(eq=False, kw_only=True)),
        reward_class(decorate=frozen(eq=False)),
        reward_class(decorate=frozen(kw_only=True)),
        reward_class(decorate=lambda cls: cls),
    ],
    "states a contract that this core speaks": [
        reward_class(contract=None),
        reward_class(contract="2.0"),
        reward_class(contract=1.0),
    ],
    "every option has a type and a help text": [
        reward_class(weight=field(default=1.0)),
        reward_class(weight=field(default=1.0, metadata={"help": "x"}), __annotations__=None),
    ],
    "every method named andes_ is a hook, and there is one": [
        reward_class(andes_reward=lambda self: []),
        reward_class(andes_rewards=None),
    ],
    "every hook is marked with hookimpl": [reward_class(andes_rewards=lambda self: [])],
    "the docstring says what it is and shows its shortest use": [
        reward_class(__doc__=None),
        reward_class(__doc__="A reward."),
    ],
    "an option of the wrong type is refused": [
        reward_class(__annotations__={"weight": "float | object"}),
    ],
    "options survive the plan as JSON": [
        reward_class(weight=field(default=1.0, metadata={"help": "x"}, converter=lambda value: value + 1.0)),
    ],
}


@pytest.mark.parametrize(
    ("check", "plugin"),
    [(check, plugin) for check, plugins in CLASSES.items() for plugin in plugins],
    ids=[f"{check}-{i}" for check, plugins in CLASSES.items() for i in range(len(plugins))],
)
def test_a_broken_class_fails_the_check_that_names_its_bug(check, plugin):
    assert reason(plugin, check)


def test_a_plugin_that_imports_torch_at_the_top_is_named(tmp_path):
    path = tmp_path / "heavy_plugin.py"
    path.write_text(
        "import torch\nfrom andes_sdk.testing.reference import ReferenceReward\n\n\n"
        "class Heavy(ReferenceReward):\n    pass\n"
    )
    spec = importlib.util.spec_from_file_location("heavy_plugin", path)
    module = sys.modules["heavy_plugin"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "loads torch" in reason(module.Heavy, "importing it loads neither torch nor transformers")


@cache
def shared_encoder():
    return Encoder(16, 8)


@frozen(eq=False, kw_only=True)
class Shared(ReferenceEncoder):
    """Builds one module for all pipelines."""

    @hookimpl
    def andes_vision_encoder(self):
        return shared_encoder()


SHARED_POLICY = Recent(24, 2, heads=4)


@frozen(eq=False, kw_only=True)
class SharedPolicy(ReferencePolicy):
    """Hands out one policy to all pipelines."""

    @hookimpl
    def andes_cache_policy(self, model):
        return SHARED_POLICY


class Tired(Encoder):
    """Counts its runs in a global and gets weaker."""

    def forward(self, patches, grids):
        RUNS.append(len(grids))
        return super().forward(patches, grids) * 0.99 ** len(RUNS)


@frozen(eq=False, kw_only=True)
class Global(ReferenceEncoder):
    """Keeps hidden state between pipelines."""

    @hookimpl
    def andes_vision_encoder(self):
        return Tired(self.width, self.patch_size)


def test_a_module_shared_between_pipelines_is_named():
    assert "share the modules Encoder" in reason(Shared, "two pipelines share no module and no memory")


def test_a_policy_shared_between_pipelines_is_named():
    assert "share their cache_policy" in reason(SharedPolicy, "two pipelines share no module and no memory")


def test_hidden_global_state_is_named():
    RUNS.clear()
    assert "the logits of a prompt differs" in reason(Global, "what one pipeline computes does not depend on another")


def test_a_plugin_that_changes_with_the_process_is_named(tmp_path, monkeypatch):
    path = tmp_path / "volatile_plugin.py"
    path.write_text(
        "import os\nfrom andes_sdk import hookimpl\nfrom andes_sdk.testing.reference import ReferenceReward\n"
        "from attrs import field, frozen\n\nFIRST = os.environ.pop('KIT_TEST_PROCESS', 'other')\n\n\n"
        "@frozen(eq=False, kw_only=True)\nclass Volatile(ReferenceReward):\n"
        "    '''Its default depends on the process; Pipeline.from_plugins.'''\n\n"
        "    made_in: str = field(default=FIRST, metadata={'help': 'process'})\n"
    )
    monkeypatch.setenv("KIT_TEST_PROCESS", "first")
    spec = importlib.util.spec_from_file_location("volatile_plugin", path)
    module = sys.modules["volatile_plugin"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = run_checks(module.Volatile, options={"made_in": "other"}, kinds=["general"])
    assert [r.id for r in results if r.status == "failed"] == ["general: the plan rebuilds in another process"]


def test_watchers_that_misbehave_are_named():
    @frozen(eq=False, kw_only=True)
    class Grumbles(ReferenceWatcher):
        @hookimpl
        def andes_check(self, plan):
            return ["I do not like it"]

    @frozen(eq=False, kw_only=True)
    class Numbers(ReferenceWatcher):
        @hookimpl
        def andes_explain(self, plan):
            return {"plugins": len(plan.plugins)}

    @frozen(eq=False, kw_only=True)
    class Picky(ReferenceWatcher):
        @hookimpl
        def andes_event(self, event):
            raise ValueError(event.kind)

    assert "I do not like it" in reason(
        Grumbles, "says nothing about its own pipeline, and speaks in sentences", "check"
    )
    assert "is no text" in reason(Numbers, "facts are texts", "explain")
    assert "kit-unknown" in reason(Picky, "an event of an unknown kind is passed over", "event")


def test_torch_is_left_with_its_threads_and_its_random_state():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_checks(ReferenceReward(), kinds=["rewards"])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
