"""Linear layers of a decoder layer, and what they do."""

ROLES = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
"""Name inside a layer -> role."""


def linears_of(layers: int) -> dict[str, tuple[int, str]]:
    """Module name -> (layer, role), of all layers."""
    return {f"model.layers.{n}.{place}": (n, role) for n in range(layers) for place, role in ROLES.items()}
