"""Planted bugs, and how many of them the conformance kit catches: `python tests/contract/planted.py --json`.

Each plants one bug in a plugin that is right otherwise, and passes only if the check that names the bug fails. The
tests are those of `test_kit_catches_*.py`; this counts them.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PLANTS = re.compile(r"planted_bug|_a_broken_|_is_named|_are_named|shared_between")
"""Names of tests that plant a bug."""


class Counted:
    """A pytest plugin that counts the tests that plant bugs, by file and outcome."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.missed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        if report.when != "call" or not PLANTS.search(report.nodeid):
            return
        self.outcomes[Path(report.nodeid.partition("::")[0]).stem, report.outcome] += 1
        if report.outcome != "passed":
            self.missed.append(report.nodeid)


def main() -> int:
    """Run them, print the counts -> 0 if all are caught."""
    counted = Counted()
    files = sorted(str(path) for path in HERE.glob("test_kit_catches_*.py"))
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence):
        pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[counted])
    planted = sum(counted.outcomes.values())
    caught = sum(n for (_, outcome), n in counted.outcomes.items() if outcome == "passed")
    facts = {"planted": planted, "caught": caught, "missed": counted.missed}
    facts["files"] = {file: n for (file, outcome), n in sorted(counted.outcomes.items()) if outcome == "passed"}
    if "--json" in sys.argv:
        print(json.dumps(facts))
    else:
        print(f"{planted} planted, {caught} caught", *counted.missed, sep="\n")
    return 0 if planted and caught == planted else 1


if __name__ == "__main__":
    sys.exit(main())
