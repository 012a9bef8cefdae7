"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance(
    "qalft",
    options={"rank": 2},
    expected_failures={
        "training_stages: only the modules it names get gradients, and the loss changes no weight": (
            "B begins at zero, as in the paper of LoRA, so the first gradient of A is zero"
        )
    },
)
