"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

TINY = {"rewards": {"length": 1.0}, "group": 4, "prompts_per_step": 2, "max_answer": 6}

test_conformance = conformance("grpo")
test_conformance_of_gspo_with_a_reference = conformance(
    "grpo", options={**TINY, "level": "sequence", "normalise": "sequence", "kl": 0.1, "encoder_rate": 1e-6}
)
