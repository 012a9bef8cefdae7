import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from andes_dimensity import environment
from torch import nn

from andes_sdk import Pipeline
from andes_sdk.types import Codes, Range

WORKER = Path(environment.HERE) / "worker"


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    """The worker's graphs, which need nothing but torch."""
    spec = importlib.util.spec_from_file_location("andes_dimensity_graphs", WORKER / "graphs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pipe() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=3)


class Grid(nn.Linear):
    """A layer that training left with a scale per row, and a range of its input."""

    def __init__(self, old, scale):
        rows, columns = old.weight.shape
        super().__init__(columns, rows, bias=False)
        self.values = np.random.default_rng(rows).integers(-127, 128, (rows, columns)).astype(np.int8)
        self.weight = nn.Parameter(torch.from_numpy(self.codes().weights()))
        self.scale = scale

    def codes(self):
        rows, columns = self.values.shape
        return Codes(self.values, np.full((rows, 1), 2.0**-9, np.float16), columns)

    def input_range(self):
        return Range(bits=16, scale=self.scale)


@pytest.fixture
def grid() -> type[Grid]:
    return Grid
