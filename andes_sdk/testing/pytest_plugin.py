"""pytest plugin: one summary line with the number of conformance checks that ran, so that none vanishes unseen."""

from __future__ import annotations

from typing import Any

PROPERTY = "andes_conformance"
"""Name under which a conformance case reports its plugin; it also appears in JUnit files."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write `andes conformance: 34 checks on 1 plugin`."""
    ran: list[str] = []
    skipped = 0
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            plugins = [value for name, value in getattr(report, "user_properties", ()) if name == PROPERTY]
            if plugins and report.when == "call":
                skipped += outcome == "skipped"
                ran += plugins if outcome != "skipped" else []
    if ran or skipped:
        terminalreporter.write_line(summary(ran, skipped))


def summary(plugins: list[str], skipped: int) -> str:
    """One line; `plugins` names the plugin of each check that ran."""
    checks, different = len(plugins), len(set(plugins))
    line = f"andes conformance: {checks} check{'s' * (checks != 1)} on {different} plugin{'s' * (different != 1)}"
    return f"{line}, {skipped} not applicable" if skipped else line
