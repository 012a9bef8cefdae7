"""The published conformance kit on this plugin. Where LiteRT is not installed, its exporter cannot write."""

from andes_dimensity.environment import is_ready

from andes_sdk.testing import conformance

WRITES = "writes its file and nothing beside it, and leaves the model as it was"
ABSENT = {} if is_ready() else {f"exporters: {WRITES}": "the environment of LiteRT is not here"}

test_conformance = conformance("dimensity", expected_failures=ABSENT)
