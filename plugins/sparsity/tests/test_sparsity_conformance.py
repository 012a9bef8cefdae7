"""The published conformance kit on this plugin."""

from andes_distillation import Distillation
from andes_sparsity import Sparsity

from andes_sdk.testing import conformance

DATA = Sparsity.testing["data"]

test_conformance = conformance("sparsity")
test_conformance_with_a_teacher = conformance(
    "sparsity",
    options={"data": DATA, "n": 2, "m": 8, "teacher": Distillation.testing["teacher"], "encoder_rate": 1e-4},
    companions=Distillation.companions,
)
