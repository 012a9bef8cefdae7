"""The published conformance kit on this plugin, under the scorers and budgets that differ in kind."""

from andes_sdk.testing import conformance

SMALL = {"rows": 24, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32}
QWEN3 = [{"qwen3": {"preset": "tiny"}}]

test_conformance = conformance("okv")
test_conformance_h2o_by_layer = conformance("okv", options={**SMALL, "scorer": "h2o", "budget": "layer"})
test_conformance_replays_over_all = conformance(
    "okv", options={**SMALL, "scorer": "kvzip+", "budget": "global"}, companions=QWEN3
)
test_conformance_uniform = conformance(
    "okv", options={**SMALL, "scorer": "restkv", "budget": "uniform"}, companions=QWEN3
)
test_conformance_share = conformance(
    "okv", options={"keep": 0.25, "least": 0, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32}
)
