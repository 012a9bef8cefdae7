"""okv over models whose weights stay packed, and over int8 rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_okv.fitting import fit
from andes_okv.weights import identity

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError
from andes_sdk.testing.material import plain_inputs

PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
SMALL = {"rows": 16, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32, "budget": "head"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Pipeline.from_plugins(PLUGINS)
    recipe = default_recipe(source.model, "w4_g32", head="w8", vision="w8")
    return Path(pack_model(source.model, recipe, tmp_path_factory.mktemp("packed") / "m.andes", plan=source.plan).path)


def opened(file: Path, backend: str, **okv: Any) -> Pipeline:
    item: Any = {"numba": {"activations": "exact", "kv": "int8"}} if backend == "numba" else backend
    return Pipeline.from_pretrained(file, plugins=[{"okv": {**SMALL, **okv}}], backend=item)


@pytest.mark.parametrize("scorer", ["restkv", "critical", "kvzip+"])
def test_projections_are_read_from_a_packed_file(file: Path, scorer: str) -> None:
    packed, plain = opened(file, "numba", scorer=scorer), opened(file, "torch", scorer=scorer)
    rows = torch.randn(5, packed.model.text.head_dim, generator=torch.Generator().manual_seed(1))
    a, b = (pipe.policy.outputs for pipe in (packed, plain))  # type: ignore[attr-defined]
    with torch.inference_mode():
        for layer in range(packed.model.text.layers):
            assert torch.allclose(a.euclidean(layer, 1, rows), b.euclidean(layer, 1, rows), rtol=1e-3)
            assert torch.allclose(a.absolute(layer, 1, rows), b.absolute(layer, 1, rows), rtol=1e-3)


@pytest.mark.parametrize("scorer", ["restkv", "kvzip+"])
def test_int8_rows_take_the_bytes_that_they_say(file: Path, scorer: str) -> None:
    packed = opened(file, "numba", scorer=scorer)
    session: Any = packed.session()
    session.prefill(plain_inputs(packed, 90))
    for token in range(10):
        assert session.extend([token])[0].isfinite().all()
        session.commit()
    held = [n for layer in session.stats.rows for n in layer]
    assert all(16 <= n <= 20 for n in held)
    # int8: a number each for keys and values, and two float32 scales
    assert session.stats.kv_bytes == sum(held) * 2 * (packed.model.text.head_dim + 4)


def test_a_scorer_of_the_packed_numbers_is_not_that_of_the_floats(file: Path, tmp_path: Path) -> None:
    floats = Pipeline.from_plugins([*PLUGINS, {"okv": {**SMALL, "scorer": "kvzip+"}}])
    packed = opened(file, "numba", scorer="kvzip+")
    assert identity(packed.model) == opened(file, "torch").model.numbers != identity(floats.model)
    for name, pipe in (("floats", floats), ("packed", packed)):
        weights, _ = fit(pipe, [plain_inputs(pipe, 40, seed=n) for n in range(3)])
        weights.write(tmp_path / name)
    used = opened(file, "numba", weights=str(tmp_path / "packed"))
    session: Any = used.session()
    session.prefill(plain_inputs(used, 90))
    assert used.policy.scorer.name == "learned"  # type: ignore[attr-defined]
    assert all(16 <= n <= 20 for layer in session.stats.rows for n in layer)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        opened(file, "numba", weights=str(tmp_path / "floats")).policy  # noqa: B018 - building it is the point
