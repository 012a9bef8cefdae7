"""Language models: shapes, causality, attention through `attend` only, gradients, precision."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from andes_sdk.testing import weights
from andes_sdk.testing.material import MaskedAttention, hidden, ids_of
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require, require_bits, require_close, require_finite

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

KIND = "language_model"
ROUNDING = 1e-5
"""The same row among other rows in float32: only the order of additions may differ."""


def language_model(subject: Subject, **arguments: Any) -> Any:
    """The model with weights of ordinary size; `embed` keeps its own scale."""
    return subject.build("language_model", **arguments).float().eval()


def _forward(model: Any) -> Tensor:
    rows: Tensor = model.logits(hidden(model, ids_of(model.spec.vocab_size, 12)))
    return rows


@check(KIND, "is a module whose spec and list of linear layers match it")
@torch.no_grad()
def _spec(subject: Subject) -> None:
    model = language_model(subject)
    require(isinstance(model, nn.Module), f"built {type(model).__name__}, not an nn.Module")
    facts = model.spec
    for name in ("width", "vocab_size", "layers", "query_heads", "kv_heads", "head_dim", "max_positions"):
        value = getattr(facts, name)
        require(type(value) is int and value > 0, f"spec.{name} is {value!r}, not a whole number above 0")
    require(facts.query_heads % facts.kv_heads == 0, "spec.query_heads is no multiple of spec.kv_heads")
    ids = ids_of(facts.vocab_size, 5)
    rows = hidden(model, ids)
    require(tuple(rows.shape) == (5, facts.width), f"hidden states of shape {tuple(rows.shape)}, width {facts.width}")
    _linears(model)


def _linears(model: Any) -> None:
    """Names of real linear layers, with the layer they are in and their role."""
    found, modules = model.linears(), dict(model.named_modules())
    for name, place in found.items():
        kind = type(modules.get(name)).__name__
        require(isinstance(modules.get(name), nn.Linear), f"linears() names {name!r}, which is a {kind}")
        pair = isinstance(place, tuple) and len(place) == 2
        require(pair and type(place[0]) is int and isinstance(place[1], str), f"linears() says {place!r} of {name!r}")
        layer, role = place
        require(0 <= layer < model.spec.layers, f"linears() puts {name!r} into layer {layer} of {model.spec.layers}")
        require(role, f"linears() gives {name!r} no role")
    missing = set(range(model.spec.layers)) - {layer for layer, _ in found.values()}
    require(not missing, f"linears() names no linear layer of layers {sorted(missing)}")


@check(KIND, "embeds each token alike wherever it stands")
@torch.no_grad()
def _embedding(subject: Subject) -> None:
    model = language_model(subject)
    ids = torch.tensor([1, 2, 1, model.spec.vocab_size - 1])
    rows = model.embed(ids)
    require(tuple(rows.shape) == (4, model.spec.width), f"4 ids embed to shape {tuple(rows.shape)}")
    require_bits(rows[0], rows[2], "one token embedded at two places")
    require(not torch.equal(rows[0], rows[1]), "different tokens have the same embedding")


@check(KIND, "logits cover the vocabulary, row by row")
@torch.no_grad()
def _logits(subject: Subject) -> None:
    model = language_model(subject)
    rows = hidden(model, ids_of(model.spec.vocab_size, 6))
    scores = model.logits(rows)
    wanted = (6, model.spec.vocab_size)
    require(tuple(scores.shape) == wanted, f"logits of shape {tuple(scores.shape)}, the spec promises {wanted}")
    require_finite(scores, "logits")
    require_close(model.logits(rows[2:3])[0], scores[2], ROUNDING, "logits of one row alone against among others")


@check(KIND, "every layer calls attend once, with the spec's shapes")
@torch.no_grad()
def _calls(subject: Subject) -> None:
    model = language_model(subject)
    facts, seen = model.spec, []
    causal = MaskedAttention(torch.ones(7, 7, dtype=torch.bool).tril())

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append(layer)
        require(isinstance(scale, float) and scale > 0, f"layer {layer} passes the scale {scale!r}")
        for name, x, heads in (("q", q, facts.query_heads), ("k", k, facts.kv_heads), ("v", v, facts.kv_heads)):
            wanted = (1, heads, 7, facts.head_dim)
            require(tuple(x.shape) == wanted, f"layer {layer} passes {name} of shape {tuple(x.shape)}, not {wanted}")
        return causal(layer, q, k, v, scale)

    model.hidden_states(model.embed(ids_of(facts.vocab_size, 7)), torch.arange(7), attend)
    require(
        seen == list(range(facts.layers)), f"attend was called for layers {seen}, expected 0 to {facts.layers - 1} once"
    )


@check(KIND, "tap sees the rows that enter each layer, and changes no bit")
@torch.no_grad()
def _tapped(subject: Subject) -> None:
    model = language_model(subject)
    facts = model.spec
    embeds, positions = model.embed(ids_of(facts.vocab_size, 7)), torch.arange(7)
    events: list[str] = []
    seen: list[Tensor] = []
    causal = MaskedAttention(torch.ones(7, 7, dtype=torch.bool).tril())

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        events.append(f"attend {layer}")
        return causal(layer, q, k, v, scale)

    def tap(layer: int, hidden: Tensor) -> None:
        events.append(f"tap {layer}")
        require(tuple(hidden.shape) == (7, facts.width), f"tap sees shape {tuple(hidden.shape)} at layer {layer}")
        seen.append(hidden.clone())

    plain = model.hidden_states(embeds, positions, attend)
    events.clear()
    require_bits(model.hidden_states(embeds, positions, attend, tap), plain, "hidden states with a tap")
    wanted = [f"{what} {n}" for n in range(facts.layers) for what in ("tap", "attend")] + [f"tap {facts.layers}"]
    require(events == wanted, f"a pass makes the calls {events}, expected {wanted}")
    for layer, (before, after) in enumerate(pairwise(seen)):
        require(not torch.equal(before, after), f"tap sees the same rows entering layers {layer} and {layer + 1}")
    require(not torch.equal(seen[-1], plain), f"tap {facts.layers} sees the rows after the last norm, not before it")


@check(KIND, "uses what attend returns")
@torch.no_grad()
def _obeys(subject: Subject) -> None:
    model = language_model(subject)
    embeds, positions = model.embed(ids_of(model.spec.vocab_size, 6)), torch.arange(6)
    size = model.spec.layers
    for deaf in range(size):

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, deaf: int = deaf) -> Tensor:
            return torch.full_like(q.transpose(1, 2), float(layer == deaf))

        zeros = model.hidden_states(
            embeds, positions, lambda layer, q, k, v, scale: torch.zeros_like(q.transpose(1, 2))
        )
        off = (model.hidden_states(embeds, positions, attend) - zeros).abs().max()
        require(bool(off > 0), f"layer {deaf} ignores what attend returns")


@check(KIND, "rows meet in attend and nowhere else")
@torch.no_grad()
def _isolated(subject: Subject) -> None:
    model = language_model(subject)
    alone = MaskedAttention(torch.eye(6, dtype=torch.bool))
    ids = ids_of(model.spec.vocab_size, 6)
    before = model.hidden_states(model.embed(ids), torch.arange(6), alone)
    for changed in (0, 5):
        other = ids.clone()
        other[changed] = (other[changed] + 1) % model.spec.vocab_size
        after = model.hidden_states(model.embed(other), torch.arange(6), alone)
        keep = [i for i in range(6) if i != changed]
        require_close(
            after[keep], before[keep], ROUNDING, f"rows that attend keeps from row {changed}, after it changed"
        )


@check(KIND, "a later token leaves earlier rows unchanged")
@torch.no_grad()
def _causal(subject: Subject) -> None:
    model = language_model(subject)
    ids = ids_of(model.spec.vocab_size, 9)
    before = hidden(model, ids)
    for changed in (1, 5, 8):
        other = ids.clone()
        other[changed:] = (other[changed:] + 1) % model.spec.vocab_size
        after = hidden(model, other)
        require_close(after[:changed], before[:changed], ROUNDING, f"rows before {changed}, after it changed")
        require(not torch.equal(after[changed], before[changed]), f"row {changed} does not depend on its own token")
    short = hidden(model, ids[:5])
    require_close(short, before[:5], ROUNDING, "a prefix on its own against the same rows of the whole")


@check(KIND, "packed samples equal single samples")
@torch.no_grad()
def _packed(subject: Subject) -> None:
    model = language_model(subject)
    lengths = [4, 1, 7]
    ids = ids_of(model.spec.vocab_size, sum(lengths))
    together = torch.split(hidden(model, ids, lengths=lengths), lengths)
    for index, part in enumerate(torch.split(ids, lengths)):
        require_close(together[index], hidden(model, part), ROUNDING, f"sample {index} packed against alone")


@check(KIND, "the same input gives the same bits")
def _repeatable(subject: Subject) -> None:
    weights.check_twice(language_model(subject), _forward)


@check(KIND, "gradients reach every parameter")
def _gradients(subject: Subject) -> None:
    weights.gradients(language_model(subject).train(), _forward)


@check(KIND, "gradient checkpointing leaves gradients as they are")
def _checkpointing(subject: Subject) -> None:
    twin = subject.twin("gradient_checkpointing")
    weights.check_checkpointing(language_model(subject), language_model(subject, options=twin), _forward)


@check(KIND, "builds on the meta device under the same names")
def _meta(subject: Subject) -> None:
    weights.check_meta(lambda: subject.build("language_model"), language_model(subject))


@check(KIND, "runs in bfloat16")
def _bfloat16(subject: Subject) -> None:
    weights.check_bfloat16(language_model(subject), _forward)


@check(KIND, "weights survive saving, and one seed gives one model")
def _saved(subject: Subject) -> None:
    weights.check_seed(lambda seed: subject.build("language_model", seed=seed))
    weights.check_saved(language_model(subject), language_model(subject, seed=9), _forward)
