"""A model for a Dimensity phone: lint it, write the bundle, compare it with the model, ask both about a picture.

    python examples/deploy_dimensity.py                       # the shipped first-light model
    python examples/deploy_dimensity.py --model MODEL --out model.litertlm

LiteRT lives in an environment of its own, which `andes deploy setup dimensity` makes (2.3 GB). Where it is missing,
this ends after linting, and says so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from andes_dimensity import environment
from andes_dimensity.check import check
from andes_dimensity.conversations import some
from andes_dimensity.export import export
from andes_dimensity.lint import lint
from andes_dimensity.options import Options

from andes_sdk import Pipeline

FIRST_LIGHT = Path(__file__).parent / "first_light" / "model"


def main(model: str | Path = FIRST_LIGHT, out: Path | None = None, rows: int = 256) -> bool:
    """Print what was found -> whether all that was checked holds."""
    pipe, options = Pipeline.from_pretrained(model), Options(rows=rows)
    found = lint(pipe, options)
    for one in found.findings:
        print(f"{one.level:8} {one.layer}: {one.what}")
    if not found.fine or not environment.is_ready():
        print("for the rest: andes deploy setup dimensity" if found.fine else "it cannot be exported")
        return found.fine
    with tempfile.TemporaryDirectory() as folder, some(pipe) as talks:
        path = out or Path(folder, "model.litertlm")
        written = export(pipe, path, options, print)
        print(f"{written['bytes']:,} bytes, {written['weights_exact']:.0%} of weights equal to ours")
        report = check(pipe, path, talks, print)
    for line in report.lines:
        print(f"{'checked here' if line.here else 'not checkable here'}: {line.what}: {line.value}")
    return report.fine


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=FIRST_LIGHT)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    given = parser.parse_args()
    raise SystemExit(not main(given.model, given.out, given.rows))
