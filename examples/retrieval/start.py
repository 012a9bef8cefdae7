"""Write the weights that training begins with: random, but for three heads of attention that are set by hand.

    python examples/retrieval/start.py

From random weights alone it takes long until a model copies from its context: it must learn two things at once that
are of no use apart. Here they are there from the start (induction heads, Olsson et al. 2022, arXiv 2209.11895):

- Layer 0: one head looks at the token before and one at that before it, and both note it beside the token's own code.
- Layer 1: one head looks for the rows whose token before is the present one, and says their own token.

Training has to learn the rest: which words are asked for, several values, variables, counts, the form of an answer.
"""

from __future__ import annotations

import math

import torch
from prepare import HERE
from torch import Tensor

from andes_sdk import Pipeline

CODE, SECOND, ONE, BEFORE, BEFORE_THAT = 0, 32, 63, 64, 96
"""Where in a row stand: a token's code of 32 numbers, more of it, a one, the code of the token before, and so on."""

WIDTH, SIZE, THETA = 128, 64, 1e6
CONFIG = {
    "hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": SIZE, "vocab_size": 512, "max_position_embeddings": 4096,
    "rope_theta": THETA,
}  # fmt: skip


def looks_back(attention: dict[str, Tensor], rms: float) -> None:
    """Layer 0: the query of each of two heads is a key turned back by one position and by two; fast pairs tell them."""
    for name in "qk":
        attention[f"{name}_norm"].fill_(4)
        attention[f"{name}_proj"].zero_()
    turns = THETA ** (-2 * torch.arange(SIZE // 2) / SIZE)
    fast, slow = slice(0, 12), slice(24, 32)
    for head, distance in enumerate((1, 2)):
        rows = attention["q_proj"][head * SIZE : (head + 1) * SIZE, ONE]
        rows[fast] = 0.2 * torch.cos(distance * turns[fast])
        rows[SIZE // 2 :][fast] = -0.2 * torch.sin(distance * turns[fast])
    attention["k_proj"][:SIZE, ONE][fast] = 0.2
    for name, heads in (("q_proj", (2, 3)), ("k_proj", (1,))):  # the other heads see all rows alike
        for head in heads:
            attention[name][head * SIZE : (head + 1) * SIZE, ONE][slow] = 0.2
    attention["v_proj"][:32, :].zero_()
    attention["v_proj"][:32, CODE : CODE + 32] = rms * torch.eye(32)
    for head, place in enumerate((BEFORE, BEFORE_THAT)):
        attention["o_proj"][:, head * SIZE : (head + 1) * SIZE] = 0
        attention["o_proj"][place : place + 32, head * SIZE : head * SIZE + 32] = torch.eye(32)


def finds(attention: dict[str, Tensor], rms: float, gain: float = 3.0) -> None:
    """Layer 1: a query is a token's code and a key that of the token before, in the pairs that hardly turn."""
    for name, place, scale in (("q", CODE, 1.8), ("k", BEFORE, 1.8)):
        attention[f"{name}_norm"].fill_(scale)
        part = attention[f"{name}_proj"][:SIZE]
        part.zero_()
        for first, rows in ((0, slice(16, 32)), (16, slice(48, 64))):
            part[rows, place + first : place + first + 16] = 0.2 * torch.eye(16)
    attention["v_proj"][:63, :].zero_()
    attention["v_proj"][:63, :63] = rms * torch.eye(63)
    attention["o_proj"][:, :SIZE] = 0
    attention["o_proj"][:63, :63] = gain * torch.eye(63)


def main() -> None:
    """The command."""
    tokenizer = str(HERE / "data" / "tokenizer")
    plugins = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"tokenizer": tokenizer, "config": CONFIG}}]
    pipe = Pipeline.from_plugins(plugins, seed=0)
    state, random = pipe.model.language_model.state_dict(), torch.Generator().manual_seed(0)
    codes = torch.zeros(512, WIDTH)
    codes[:, :ONE] = torch.randn(512, ONE, generator=random) / math.sqrt(32)
    codes[:, SECOND:ONE] *= 0.5
    codes[:, ONE] = 1
    with torch.no_grad():
        state["model.embed_tokens.weight"].copy_(codes)
        for layer, made, parts in ((0, looks_back, 2.25), (1, finds, 4.25)):
            ahead = f"model.layers.{layer}.self_attn."
            attention = {n.split(".")[-2]: t for n, t in state.items() if n.startswith(ahead)}
            made(attention, math.sqrt(parts / WIDTH))
    pipe.save_pretrained(HERE / "data" / "start")


if __name__ == "__main__":
    main()
