import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from andes_dimensity import environment

from andes_sdk import Pipeline

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
