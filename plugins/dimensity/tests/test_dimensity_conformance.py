"""The published conformance kit on this plugin. Where LiteRT is not installed, its exporter cannot write."""

import pytest
from andes_dimensity import Dimensity
from andes_dimensity.environment import is_ready

from andes_sdk.testing import conformance

WRITES = "exporters: writes its file and nothing beside it, and leaves the model as it was"
ABSENT = {} if is_ready() else {WRITES: "the environment of LiteRT is not here"}
REFUSED = {WRITES: "static activations are written for layout=npu alone, as .tflite"}

test_conformance = conformance("dimensity", expected_failures=ABSENT)
test_conformance_a16 = conformance(
    "dimensity", options={**Dimensity.testing, "activations": "a16"}, expected_failures=REFUSED
)
# slow: the same checks a third time; a16 differs from it in one number
test_conformance_a8 = pytest.mark.slow(
    conformance("dimensity", options={**Dimensity.testing, "activations": "a8"}, expected_failures=REFUSED)
)
