from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "andes",
    max_examples=int(os.environ.get("ANDES_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("andes")

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two workers share two cores; one torch thread each also fixes the order of additions."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
