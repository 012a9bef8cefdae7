"""Running checks: as a list of results, or as one pytest case each."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from andes_sdk.config import suggestion
from andes_sdk.errors import ConfigError
from andes_sdk.testing.pytest_plugin import PROPERTY
from andes_sdk.testing.registry import Check, CheckResult, checks_of
from andes_sdk.testing.require import NotApplicable
from andes_sdk.testing.subject import Subject, quiet

if TYPE_CHECKING:
    from andes_sdk.assembling.assembly import PluginItem


def run_checks(
    plugin: PluginItem,
    *,
    options: Mapping[str, Any] | None = None,
    companions: Sequence[PluginItem] | None = None,
    kinds: Collection[str] | None = None,
) -> list[CheckResult]:
    """Run every check that concerns a plugin.

    Args:
        plugin: a name, a class or an object.
        options: for a tiny random model; None takes the class attribute `testing`.
        companions: plugins to put around it, or None for those of its class attribute `companions`; slots left empty
            are filled with the kit's reference plugins.
        kinds: only these kinds of checks; None: all that concern the plugin.

    Raises:
        PluginNotFound, PluginBroken, ContractMismatch, DuplicateName: the plugin cannot be loaded.
        RuntimeError: not a single check applied.
    """
    subject = Subject(plugin, options, companions)
    chosen = [k for k in subject.kinds if kinds is None or k in kinds]
    results = [_result(check, subject) for check in checks_of(chosen)]
    if not any(r.status != "not applicable" for r in results):
        raise RuntimeError(f"no check applied to {subject.name!r}: the kit tested nothing")
    return results


def _result(check: Check, subject: Subject) -> CheckResult:
    start = time.perf_counter()
    status, reason = "passed", ""
    try:
        with quiet():
            check.run(subject)
    except NotApplicable as error:
        status, reason = "not applicable", str(error)
    except Exception as error:
        text = str(error) or "no message"
        status, reason = "failed", text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
    seconds = time.perf_counter() - start
    return CheckResult(id=check.id, kind=check.kind, status=status, reason=reason, seconds=seconds)


def conformance(
    plugin: PluginItem,
    *,
    options: Mapping[str, Any] | None = None,
    companions: Sequence[PluginItem] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A pytest test function with one case per check: `test_conformance = conformance("my-plugin")`.

    Args:
        plugin, options, companions: as in `run_checks`.
        expected_failures: check id -> why it is expected to fail. Strict: one that passes, or does not apply, fails.

    Raises:
        ConfigError: an expected failure that is no check of this plugin.
    """
    import pytest

    expected = dict(expected_failures or {})
    subject = Subject(plugin, options, companions)
    checks = checks_of(subject.kinds)
    known = [c.id for c in checks]
    for name in expected:
        if name not in known:
            raise ConfigError(f"no check {name!r}", who=f"conformance of {subject.name}", fix=suggestion(name, known))

    @pytest.mark.parametrize("andes_check", [pytest.param(c, id=c.id) for c in checks])
    def test_conformance(andes_check: Check, record_property: Callable[[str, object], None]) -> None:
        record_property(PROPERTY, subject.name)
        _run_case(andes_check, subject, expected.get(andes_check.id))

    return test_conformance


def _run_case(check: Check, subject: Subject, expected: str | None) -> None:
    import pytest

    try:
        with quiet():
            check.run(subject)
    except NotApplicable as reason:
        if expected is None:
            pytest.skip(f"not applicable: {reason}")
        pytest.fail(f"expected to fail ({expected}), but the check does not apply: {reason}")
    except Exception as error:
        if expected is None:
            raise
        pytest.xfail(f"{expected}: {error}")
    if expected is not None:
        pytest.fail(f"expected to fail ({expected}), but it passed: remove it from expected_failures")
