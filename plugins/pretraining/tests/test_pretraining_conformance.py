"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance("pretraining")
test_conformance_with_the_encoder_in_training = conformance("pretraining", options={"encoder_rate": 1e-4})
