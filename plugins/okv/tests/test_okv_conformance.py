"""The published conformance kit on this plugin, under every scorer and every budget."""

from andes_sdk.testing import conformance

SMALL = {"rows": 24, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32}

test_conformance = conformance("okv")
