"""The published conformance kit on this plugin."""

from andes_sdk.testing import conformance

test_conformance = conformance("qalft", options={"rank": 2})
