"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance("qwen3")
test_conformance_thinking = conformance("qwen3", options={"preset": "tiny", "thinking": True})
