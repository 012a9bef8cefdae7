"""The published conformance kit on this plugin, with the tiny teacher that comes with it."""

from pathlib import Path

import torch
from andes_distillation import Distillation
from andes_distillation.tiny import write_tiny
from safetensors.torch import load_file

from andes_sdk.testing import conformance

TINY = str(Distillation.testing["teacher"])
HIDDEN = {"teacher": TINY, "k": 1000, "hidden": 2.0, "layers": [[-1, -1], [1, 0]], "encoder_rate": 1e-4}

test_conformance = conformance("distillation")
test_conformance_with_hidden_states = conformance("distillation", options=HIDDEN)


def test_the_shipped_teacher_is_the_one_that_write_tiny_makes(tmp_path: Path) -> None:
    made, shipped = (load_file(Path(f) / "model.safetensors") for f in (write_tiny(tmp_path / "tiny"), TINY))
    assert made.keys() == shipped.keys()
    assert all(torch.equal(made[name], shipped[name]) for name in made)
