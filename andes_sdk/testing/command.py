"""What `andes plugins check` runs and prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.progress import Progress

from andes_sdk.cli.console import print_json, stderr, stdout, table
from andes_sdk.errors import AndesError, PluginNotFound
from andes_sdk.testing.registry import CheckResult
from andes_sdk.testing.runner import run_checks


def check_all(names: Sequence[str], *, as_json: bool = False) -> None:
    """Run the kit on these plugins, each once, and print what came of it. Leaves with exit code 1 if a check fails.

    Raises:
        PluginNotFound: one of them is not installed.
    """
    wanted = list(dict.fromkeys(names))
    reports = []
    with Progress(console=stderr(), disable=as_json, transient=True) as bar:
        task = bar.add_task("checking", total=len(wanted))
        for name in wanted:
            bar.update(task, description=f"checking {name}")
            reports.append(summary(name, _checked(name)))
            bar.advance(task)
    if as_json:
        print_json(reports)
    else:
        _print_reports(reports)
    if any(r["failed"] for r in reports):
        raise typer.Exit(1)


def _checked(name: str) -> list[CheckResult]:
    """The results of one plugin; one that is broken is a failed check, so that the others are still checked."""
    try:
        return run_checks(name)
    except PluginNotFound:
        raise
    except AndesError as error:
        return [CheckResult(id="general: loads", kind="general", status="failed", reason=str(error), seconds=0.0)]


def summary(name: str, results: list[CheckResult]) -> dict[str, Any]:
    """Counts and rows of one plugin's checks; `run` counts those that had something to check."""
    count = {status: sum(r.status == status for r in results) for status in ("passed", "failed", "not applicable")}
    return {
        "name": name,
        "run": count["passed"] + count["failed"],
        "passed": count["passed"],
        "failed": count["failed"],
        "not_applicable": count["not applicable"],
        "seconds": round(sum(r.seconds for r in results), 3),
        "checks": [
            {"id": r.id, "kind": r.kind, "status": r.status, "reason": r.reason, "seconds": round(r.seconds, 4)}
            for r in results
        ],
    }


def _print_reports(reports: list[dict[str, Any]]) -> None:
    console = stdout()
    columns = ("name", "run", "passed", "failed", "not_applicable", "seconds")
    console.print(table(columns, [[r[c] for c in columns] for r in reports]))
    for report in reports:
        for row in report["checks"]:
            if row["status"] == "failed":
                console.print(f"{report['name']} · {row['id']}: {row['reason']}", markup=False, soft_wrap=True)
