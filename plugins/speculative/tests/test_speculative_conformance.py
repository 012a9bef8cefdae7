"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance("speculative")
test_conformance_of_heads = conformance("draft-heads")
test_conformance_of_everything_that_is_guessed = conformance("speculative", options={"adapt": False, "rows": 12})
