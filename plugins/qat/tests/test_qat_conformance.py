"""The published conformance kit on this plugin."""

from andes_distillation import Distillation
from andes_qat import QAT

from andes_sdk.testing import conformance

DATA = QAT.testing["data"]

test_conformance = conformance("qat")
test_conformance_sparse_with_ranges_and_a_teacher = conformance(
    "qat",
    options={
        "data": DATA, "body": "nm14_w2", "embedding": "w4_g32", "vision": "w8", "projector": "w4_g32", "calibrate": 1,
        "bits": 99.0, "activations": 8, "roles": {"v": "nm14_w4"}, "teacher": Distillation.testing["teacher"],
        "encoder_rate": 1e-4,
    },
    companions=Distillation.companions,
)  # fmt: skip
