"""The conformance kit: what a plugin must keep to, as checks that anyone can run on their own plugin.

    from andes_sdk.testing import conformance

    test_conformance = conformance("my-plugin", options={"preset": "tiny"})

gives one pytest case per check. A plugin says how it is made tiny in its class attribute `testing`, a mapping of
options that is used where none are given. `andes plugins check` runs the same checks without pytest.
"""

from __future__ import annotations

from andes_sdk.testing.registry import Check, CheckResult, check, checks_of, counts, measure
from andes_sdk.testing.require import Nonconformance, NotApplicable
from andes_sdk.testing.runner import conformance, run_checks

__all__ = [
    "Check", "CheckResult", "Nonconformance", "NotApplicable", "check", "checks_of", "conformance", "counts", "measure",
    "run_checks",
]  # fmt: skip
