"""What all tests share, also those of one plugin that run alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "andes",
    max_examples=int(os.environ.get("ANDES_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("andes")
# which kernels run must not depend on when a process in the background has ended
os.environ.setdefault("ANDES_NUMBA_COMPILING", "first")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two workers share two cores; one torch thread each also fixes the order of additions."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
