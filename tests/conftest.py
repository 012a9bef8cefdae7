from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture
def tiny() -> list[Any]:
    """A whole model of random weights that answers in milliseconds."""
    return list(TINY)


@pytest.fixture
def distribution(tmp_path: Path) -> Callable[..., Path]:
    """Write an installed distribution with plugins (metadata and source) -> the folder to put on sys.path."""

    def write(name: str, points: dict[str, str], modules: dict[str, str], version: str = "1.2.3") -> Path:
        site = tmp_path / "site"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{point} = {value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("[andes_sdk.v1.plugins]\n" + "\n".join(lines) + "\n")
        for path, source in modules.items():
            file = site / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return site

    return write
