"""The published conformance kit on this plugin; its language model has to be a Qwen3."""

from andes_sdk.testing import conformance

test_conformance = conformance("numba")
