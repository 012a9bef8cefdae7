"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance("sft")
test_conformance_with_the_encoder_frozen = conformance("sft", options={"encoder_rate": 0.0})
