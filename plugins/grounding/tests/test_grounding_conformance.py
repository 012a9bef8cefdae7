"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance("grounding")
test_conformance_with_the_encoder_learning = conformance("grounding", options={"encoder_rate": 1e-4, "look_layer": 0})
test_conformance_without_a_head_for_boxes = conformance("grounding", options={"box_weight": 0, "align_weight": 0.5})
