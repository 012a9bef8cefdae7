"""The contract's own checks, as published in andes_sdk.testing."""

from andes_sdk.testing import conformance

test_conformance = conformance("dinov2", options={"preset": "tiny", "weights": ""})
