"""Language models with the runtime: positions, the KV store, trees of uncommitted rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.checks.language import KIND, ROUNDING, language_model
from andes_sdk.testing.material import MaskedAttention, answer_to_everything, conversation, ids_of, plain_inputs
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require, require_close
from andes_sdk.types import Inputs

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

CACHED = 1e-4
"""One row at a time against all at once: other matrix kernels, several layers deep."""


@check(KIND, "a row's position is the one it is given")
@torch.no_grad()
def _positions(subject: Subject) -> None:
    model = language_model(subject)
    count = 8
    embeds = model.embed(ids_of(model.spec.vocab_size, count))
    places = torch.arange(count)
    plain = model.hidden_states(embeds, places, MaskedAttention(places[None] <= places[:, None]))
    turn = torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])
    seen = MaskedAttention(places[turn][None] <= places[turn][:, None])
    turned = model.hidden_states(embeds[turn], places[turn], seen)
    require_close(turned, plain[turn], ROUNDING, "the same rows at the same positions in another order")


@check(KIND, "a session that reads a prompt, then token by token, equals one pass")
def _cached(subject: Subject) -> None:
    pipe = subject.pipe
    pictured = pipe.prepare(conversation(0))
    session = pipe.compiled.session(KeepAll())
    got = [session.prefill(pictured)]
    session.close()
    require_close(
        got[0], answer_to_everything(pipe.model, pictured)[-1], CACHED, "logits after a prompt with a picture"
    )
    inputs = plain_inputs(pipe, 14)
    wanted = answer_to_everything(pipe.model, inputs)
    session = pipe.compiled.session(KeepAll())
    got = [session.prefill(Inputs(ids=inputs.ids[:6]))]
    for token in inputs.ids[6:].tolist():
        got.append(session.extend([token])[0][-1])
        session.commit()
    session.close()
    require_close(torch.stack(got), wanted[5:], CACHED, "logits with a KV store against without")


@check(KIND, "a tree of tokens equals its chains")
def _tree(subject: Subject) -> None:
    pipe = subject.pipe
    prompt = plain_inputs(pipe, 7).ids
    tokens = plain_inputs(pipe, 6, seed=8).ids.tolist()
    parents = [-1, 0, 0, 1, -1, 4]
    session = pipe.compiled.session(KeepAll())
    session.prefill(Inputs(ids=prompt))
    scores, _ = session.extend(tokens, parents)
    for row in range(len(tokens)):
        path = [row]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        chain = torch.cat([prompt, torch.tensor([tokens[i] for i in path])])
        wanted = answer_to_everything(pipe.model, Inputs(ids=chain))[-1]
        require_close(scores[row], wanted, CACHED, f"row {row} of a tree against its chain of {len(path)} tokens")
    session.commit([0, 2])
    require(session.length == 9, f"after 7 rows and a path of 2 the session's length is {session.length}")
    after = session.extend([tokens[0]])[0][-1]
    chain = torch.cat([prompt, torch.tensor([tokens[0], tokens[2], tokens[0]])])
    wanted = answer_to_everything(pipe.model, Inputs(ids=chain))[-1]
    session.close()
    require_close(after, wanted, CACHED, "the row after a committed path of the tree")
