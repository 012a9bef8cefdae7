"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance("mpo")
test_conformance_with_a_frozen_encoder = conformance("mpo", options={"encoder_rate": 0.0, "reference": "online"})
