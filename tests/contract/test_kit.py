"""The kit itself: intact plugins pass everything, no check vanishes, expected failures are strict."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from andes_training.testing.reference import ReferenceStage

from andes_sdk.errors import ConfigError, PluginNotFound
from andes_sdk.hookspecs import HOOKS
from andes_sdk.testing import NotApplicable, check, checks_of, conformance, counts, reference, registry, run_checks
from andes_sdk.testing.pytest_plugin import summary
from andes_sdk.testing.registry import Check
from andes_sdk.testing.runner import _run_case
from andes_sdk.testing.subject import Subject

pytest_plugins = ["pytester"]
INTACT = {name: getattr(reference, name) for name in reference.__all__ if name != "REFERENCES"}
INTACT["ReferenceStage"] = ReferenceStage
CHANGES = "training_stages: a stage that changes the model leaves its modules and weights as they were"
SCORES = "cache_policy: scores are finite, one for each KV head and row, and those of dropped rows leave no trace"


@pytest.mark.parametrize("name", INTACT)
def test_the_reference_plugin_passes_every_check_of_its_kinds(name):
    cls = INTACT[name]
    results = run_checks(cls)
    assert {r.id: r.reason for r in results if r.status == "failed"} == {}
    assert Counter(r.kind for r in results) == {kind: counts()[kind] for kind in Subject(cls).kinds}
    skipped = {r.id for r in results if r.status == "not applicable"}
    plain = {"general: an option of the wrong type is refused", SCORES, CHANGES}  # no options, no scores, no change
    assert skipped - plain == {
        "general: its distribution registers it",
        "general: the list of plugins shows it without importing it",
    }


def test_every_hook_has_checks_and_the_table_counts_them():
    assert set(counts()) == {"general", *HOOKS.values()}
    checks = checks_of(counts())
    assert Counter(c.kind for c in checks) == counts()
    assert len({c.id for c in checks}) == len(checks)


def test_a_check_that_vanishes_is_an_error(monkeypatch):
    checks_of(["general"])
    monkeypatch.delitem(registry._CHECKS, "projector: no features give no rows")
    with pytest.raises(RuntimeError, match=r"do not match its table: \{'projector': 8\}"):
        checks_of(["general"])


def test_two_checks_of_one_name_are_an_error(monkeypatch):
    monkeypatch.setattr(registry, "_CHECKS", {})
    check("general", "is new")(lambda subject: None)

    def other(subject: Subject) -> None: ...

    with pytest.raises(ValueError, match="two checks are named 'general: is new'"):
        check("general", "is new")(other)


def test_a_run_in_which_nothing_applied_is_an_error():
    with pytest.raises(RuntimeError, match="no check applied to 'referencereward'"):
        run_checks(reference.ReferenceReward, kinds=["decoder"])


def test_an_unknown_plugin_is_an_error():
    with pytest.raises(PluginNotFound):
        run_checks("no-such-plugin")


def test_an_unknown_expected_failure_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        conformance(
            reference.ReferenceReward, expected_failures={"rewards: every reward has a name of its won": "typo"}
        )
    assert "did you mean 'rewards: every reward has a name of its own'?" in str(caught.value)


def test_a_check_of_another_kind_is_no_expected_failure():
    with pytest.raises(ConfigError, match="no check 'decoder: has a name'"):
        conformance(reference.ReferenceReward, expected_failures={"decoder: has a name": "wrong kind"})


def _case(action, expected):
    def run(subject):
        if action is not None:
            raise action

    _run_case(Check("general", "made up", run), Subject(reference.ReferenceReward), expected)


def test_expected_failures_are_strict():
    _case(None, None)
    with pytest.raises(AssertionError, match="broken"):
        _case(AssertionError("broken"), None)
    with pytest.raises(pytest.xfail.Exception, match="known: broken"):
        _case(AssertionError("broken"), "known")
    with pytest.raises(pytest.fail.Exception, match="but it passed"):
        _case(None, "known")
    with pytest.raises(pytest.skip.Exception, match="not applicable: no options"):
        _case(NotApplicable("no options"), None)
    with pytest.raises(pytest.fail.Exception, match="does not apply"):
        _case(NotApplicable("no options"), "known")


def test_options_come_from_the_class_unless_they_are_given():
    class Sized(reference.ReferenceEncoder):
        testing = {"width": 8}  # noqa: RUF012

    assert Subject(Sized).options == {"width": 8}
    assert Subject(Sized, {"width": 24}).options == {"width": 24}
    assert Subject(reference.ReferenceEncoder(patch_size=4)).options == {"patch_size": 4}


def test_companions_fill_only_the_slots_that_are_empty():
    def names(*args):
        return [type(item).__name__ for item in Subject(*args).companions()]

    assert names(reference.ReferenceEncoder) == ["ReferenceProjector", "ReferenceLanguageModel", "ReferenceTokenizer"]
    given = [reference.ReferenceProjector(), reference.ReferenceWatcher()]
    rest = ["ReferenceLanguageModel", "ReferenceTokenizer"]
    assert names(reference.ReferenceEncoder, None, given) == ["ReferenceProjector", "ReferenceWatcher", *rest]


def test_importing_the_kit_and_its_pytest_plugin_loads_no_torch():
    modules = "andes_sdk.testing, andes_sdk.testing.pytest_plugin, andes_sdk.testing.reference"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_summary_counts_checks_and_plugins():
    assert summary(["a"], 0) == "andes conformance: 1 check on 1 plugin"
    assert summary(["a", "b", "a"], 2) == "andes conformance: 3 checks on 2 plugins, 2 not applicable"


def test_pytest_shows_one_case_per_check_and_the_summary(pytester):
    pytester.makepyfile(
        """
        from andes_sdk.testing import conformance
        from andes_sdk.testing.reference import ReferenceReward

        test_conformance = conformance(
            ReferenceReward, expected_failures={"rewards: every reward has a name of its own": "to see it fail"}
        )
        """
    )
    result = pytester.runpytest_subprocess("-k", "rewards")
    result.assert_outcomes(passed=counts()["rewards"] - 1, failed=1, deselected=counts()["general"])
    result.stdout.fnmatch_lines(
        [
            "*but it passed: remove it from expected_failures*",
            f"andes conformance: {counts()['rewards']} checks on 1 plugin",
        ]
    )
