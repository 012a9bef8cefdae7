"""Our scorers beside kvpress 0.5.5 on the same tensors: the same rows kept, or the difference explained.

    nox -s kvpress

runs this in an environment that has kvpress and the transformers it needs. A Qwen3 of three small layers with random
weights reads random tokens; each layer's queries, keys, values and inputs go to kvpress's `score` and to our scorer. A
quarter of the rows is kept. `share` is the share of kvpress's rows that are ours too; it must be 1 where no reason is
given.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from andes_okv.budgets import Budget
from andes_okv.heads import Head
from andes_okv.outputs import Outputs
from andes_okv.replayed import Replayed
from andes_okv.scorers import scorer_class
from kvpress import CriticalKVPress, KnormPress, KVzipPress, SnapKVPress
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from andes_sdk.types import Layer, TextSpec

ROWS, KEPT, WINDOW, SINKS = 200, 50, 16, 4
REPEAT = 30
"""Rows of the request and the context's first rows, replayed."""

REASONS = {
    "kvzip+": "kvpress divides by the norm of a row after the layer's RMSNorm, we by that of the residual stream "
    "before it; with kvpress's norms the rows are the same (`kvzip+, their norms`)",
}


class Seen:
    """What each layer's attention was given."""

    def __init__(self, model: Any) -> None:
        self.layers: list[dict[str, Any]] = []
        self.entering: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: self.entering.append((*args, *kwargs.values())[0]), with_kwargs=True
            )
            layer.self_attn.register_forward_hook(self.note, with_kwargs=True)

    def note(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        hidden = kwargs["hidden_states"]
        shape = (*hidden.shape[:-1], -1, module.head_dim)
        queries = module.q_norm(module.q_proj(hidden).view(shape)).transpose(1, 2)
        keys = module.k_norm(module.k_proj(hidden).view(shape)).transpose(1, 2)
        values = module.v_proj(hidden).view(shape).transpose(1, 2)
        cos, sin = kwargs["position_embeddings"]
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        self.layers.append(
            {"module": module, "hidden": hidden, "q": queries[0], "k": keys, "v": values, "kwargs": kwargs}
        )


class Model:
    """What `Outputs` asks of a model of ours."""

    def __init__(self, theirs: Any) -> None:
        config = theirs.config
        self.language_model, self.device, self.dtype = theirs, torch.device("cpu"), torch.float32
        self.text = TextSpec(
            width=config.hidden_size, vocab_size=config.vocab_size, layers=config.num_hidden_layers,
            query_heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, head_dim=config.head_dim,
            max_positions=config.max_position_embeddings,
        )  # fmt: skip
        self.llm = self

    def linears(self) -> dict[str, tuple[int, str]]:
        return {f"model.layers.{n}.self_attn.o_proj": (n, "o") for n in range(self.text.layers)}


def layer_of(number: int, seen: dict[str, Any], window: int) -> Layer:
    places = torch.arange(ROWS)
    keys, values = seen["k"][0][:, :ROWS], seen["v"][0][:, :ROWS]
    return Layer(
        index=number, keys=list(keys), values=list(values), positions=[places] * len(keys),
        queries=seen["q"][:, ROWS - window : ROWS], image=torch.zeros(ROWS, dtype=torch.bool),
    )  # fmt: skip


def ours(name: str, number: int, seen: dict[str, Any], outputs: Outputs) -> torch.Tensor:
    """(Hkv, ROWS)"""
    layer = layer_of(number, seen, WINDOW)
    group = len(layer.queries) // len(layer.keys)
    scorer, at = scorer_class(name)(window=WINDOW), torch.arange(ROWS - WINDOW, ROWS)
    heads = [
        Head(
            layer=layer, index=h, queries=layer.queries[h * group : (h + 1) * group], at=at, seen=ROWS, room=KEPT,
            outputs=outputs,
        )
        for h in range(len(layer.keys))
    ]  # fmt: skip
    return torch.stack([scorer(head) for head in heads])


def same(a: torch.Tensor, b: torch.Tensor, budget: str = "head") -> float:
    """Share of the rows kept by scores `a` (Hkv, n) that scores `b` keep."""
    kept = []
    for scores in (a, b):
        places = [[torch.arange(scores.shape[1])] * len(scores)]
        image = torch.zeros(scores.shape[1], dtype=torch.bool)
        (chosen,) = Budget(kind=budget).keep([list(scores.float())], places, image, room=KEPT, sinks=0, recent=1)
        kept.append({(h, int(i)) for h, index in enumerate(chosen) for i in index})
    return len(kept[0] & kept[1]) / len(kept[0])


def scores_of_presses(model: Any, ids: torch.Tensor, outputs: Outputs) -> dict[str, float]:
    seen = Seen(model)
    with torch.inference_mode():
        model(ids, past_key_values=DynamicCache())
    ratio = 1 - KEPT / ROWS
    snap = SnapKVPress(compression_ratio=ratio, window_size=WINDOW, kernel_size=5)
    presses: dict[str, Any] = {
        "keynorm": KnormPress(compression_ratio=ratio), "snapkv": snap, "critical": CriticalKVPress(snap),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in presses}
    for number, one in enumerate(seen.layers):
        for name, press in presses.items():
            theirs = press.score(one["module"], one["hidden"], one["k"], one["v"], None, one["kwargs"])[0]
            found[name].append(same(theirs, ours(name, number, one, outputs)))
    return {name: min(shares) for name, shares in found.items()}


def scores_of_replays(model: Any, ids: torch.Tensor, outputs: Outputs) -> dict[str, float]:
    """KVzip and KVzip+: the context, then its replay behind it."""
    replay = torch.cat([torch.randint(0, 90, (1, REPEAT), generator=torch.Generator().manual_seed(5)), ids], dim=1)
    seen, cache = Seen(model), DynamicCache()
    with torch.inference_mode():
        model(ids, past_key_values=cache)
        context, seen.layers, seen.entering = seen.layers, [], []
        model(replay, past_key_values=cache)
    found: dict[str, list[float]] = {"kvzip": [], "kvzip+": [], "kvzip+, their norms": []}
    for number, (one, again) in enumerate(zip(context, seen.layers, strict=True)):
        keys, values = (torch.cat([one[x], again[x]], dim=2) for x in ("k", "v"))
        for plus in (False, True):
            press = KVzipPress(compression_ratio=1 - KEPT / ROWS, n_sink=SINKS, kvzip_plus_normalization=plus)
            press.context_length, press.start_idx, press.end_idx = ROWS, 0, ROWS
            press.score_val = torch.zeros(model.config.num_hidden_layers, 1, len(keys[0]), ROWS)
            press.score_kvzip(again["module"], again["hidden"], keys, values, None, again["kwargs"])
            theirs = press.score_val[number][0]
            norms = (
                {"kvzip+": seen.entering[number][0], "kvzip+, their norms": again["hidden"][0]}
                if plus
                else {"kvzip": None}
            )
            for name, rows in norms.items():
                mine = replayed(number, one, again, outputs, name, rows)
                found[name].append(same(theirs, mine))
    return {name: min(shares) for name, shares in found.items()}


def replayed(number: int, one: Any, again: Any, outputs: Outputs, name: str, rows: Any) -> torch.Tensor:
    layer = layer_of(number, one, 0)
    group = len(again["q"]) // len(layer.keys)
    scorer = scorer_class("kvzip+" if rows is not None else "kvzip")()
    heads = []
    for head in range(len(layer.keys)):
        queries, own = again["q"][head * group : (head + 1) * group], again["k"][0][head]
        norms = None if rows is None else rows.float().norm(dim=-1)
        heads.append(scorer.replayed(Replayed(layer, head, torch.arange(ROWS), 0, queries, own, norms, outputs)))
    return torch.stack(heads)


def adakv() -> float:
    """AdaKV's choice in one layer, by its own formula on the same scores."""
    scores = torch.rand(4, ROWS, generator=torch.Generator().manual_seed(2)) ** torch.arange(1, 5)[:, None]
    safe = int(KEPT * 0.2)
    theirs = scores.clone()
    theirs.scatter_(-1, theirs.topk(safe, dim=-1).indices, torch.finfo(torch.float32).max)
    dropped = set((-theirs.reshape(-1)).topk(4 * (ROWS - KEPT)).indices.tolist())
    kept = Budget(kind="layer", safeguard=0.2).keep(
        [list(scores)], [[torch.arange(ROWS)] * 4], torch.zeros(ROWS, dtype=torch.bool), room=KEPT, sinks=0, recent=0
    )
    mine = {h * ROWS + int(i) for h, index in enumerate(kept[0]) for i in index}
    return len(mine - dropped) / (4 * KEPT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=1024,
    )  # fmt: skip
    model: Any = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:  # sharper attention than that of random weights
            layer.self_attn.q_norm.weight.mul_(3)
    ids, outputs = torch.randint(0, 90, (1, ROWS)), Outputs(Model(model))
    with torch.inference_mode():
        shares = {**scores_of_presses(model, ids, outputs), **scores_of_replays(model, ids, outputs), "adakv": adakv()}
    facts = {
        name: {"share": round(share, 4), **({"reason": REASONS[name]} if name in REASONS else {})}
        for name, share in shares.items()
    }
    wrong = [name for name, share in shares.items() if share < 1 and name not in REASONS]
    if as_json:
        print(json.dumps({"kvpress": facts, "differences": wrong}, indent=2))
    else:
        for name, one in facts.items():
            print(f"{name:22} {one['share']:.4f}  {one.get('reason', '')}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
