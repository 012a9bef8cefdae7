"""131,072 rows of one token. All are equal, whatever stays of them, so what is said behind them does not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.types import Inputs

ROWS = 131_072
TOKEN = 7


def pipeline(backend: str, positions: int, *plugins: Any, **okv: Any) -> Pipeline:
    text = {"qwen3": {"preset": "tiny", "config": {"max_position_embeddings": positions}}}
    numba = [{"numba": {"format": "f16", "activations": "exact"}}] if backend == "numba" else []
    policy = {"okv": {"rows": 64, "chunk": 1024, "slack": 16, "least": 0, **okv}}
    eyes = [{"aimv2": {"preset": "tiny"}}, "mlp"]
    return Pipeline.from_plugins([*eyes, text, *numba, policy, *plugins], backend=backend)


def equal(rows: int) -> Inputs:
    return Inputs(torch.full((rows,), TOKEN))


@pytest.mark.parametrize(("backend", "scorer"), [("torch", "snapkv"), ("numba", "snapkv")])
def test_what_is_said_behind_them_is_what_is_said_behind_one(backend: str, scorer: str) -> None:
    pipe = pipeline(backend, 2 * ROWS, scorer=scorer)
    short, session = pipe.session(), pipe.session()
    wanted, found = short.prefill(equal(1)), session.prefill(equal(ROWS))
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert session.length == ROWS
    assert {n for layer in session.stats.rows for n in layer} == {64}  # ties leave no head more or fewer
    following = [s.extend([TOKEN])[0][-1] for s in (session, short)]
    assert float((following[0] - following[1]).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_guesses_behind_them_change_no_token() -> None:
    """The automaton of `suffix` holds a text that is one repetition."""
    guessing = {"speculative": {"row_cost": 0.01}}
    made = []
    for plugins in ([], [guessing]):
        pipe = pipeline("torch", 2 * ROWS, *plugins, scorer="streaming")
        engine = pipe.engine()
        one = engine.join(equal(ROWS), GenerationOptions(max_tokens=8))
        engine.run()
        assert one.error is None
        made.append((list(one.tokens), one.session.stats.proposed))
    assert made[0][0] == made[1][0]
    assert made[1][1] > made[0][1]


def test_more_than_the_model_has_positions_for_are_refused_and_the_session_lives_on() -> None:
    pipe = pipeline("torch", 4096, scorer="snapkv")
    session = pipe.session()
    session.prefill(equal(100))
    with pytest.raises(AndesError, match="4096"):
        session.prefill(equal(ROWS))
    session.rollback()
    before = session.length
    session.extend([TOKEN])
    session.commit()
    assert session.length == before + 1
