"""A session as plain tensors, and back: what `fork`, `state` and `restore` are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from andes_sdk.errors import AndesError, SessionError
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    from andes_sdk.types import CachePolicy

ABOUT = "about"


def state_of(session: Any) -> dict[str, Tensor]:
    """Everything committed, by name. The tensors are copies."""
    keeping = session.keeping
    state = {f"kv.{name}": tensor for name, tensor in session.dump().items()}
    state |= {f"keeper.{name}": tensor.clone() for name, tensor in keeping.keeper.state().items()}
    state["image"] = keeping.image.clone()
    for layer, window in enumerate(keeping.windows):
        if window is not None:
            state[f"window.{layer}"] = window.clone()
    for layer, heads in keeping.scores.items():
        state |= {f"score.{layer}.{head}": scores.clone() for head, scores in enumerate(heads)}
    if keeping.embeds:
        state["embeds"] = torch.cat(keeping.embeds)
    about = {
        **_made_by(session), "length": session.length, "held": keeping.held, "adapter": session.adapter,
        "policy": session.policy.name, "parts": sorted(state),
    }  # fmt: skip
    state[ABOUT] = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    return state


def _made_by(session: Any) -> dict[str, Any]:
    """What a state fits: kind of session, sizes of the model, precision of its rows."""
    return {"session": type(session).__name__, "sizes": attrs.asdict(session.model.text), "kv": session.precision}


def load_state(state: Mapping[str, Tensor], empty: Callable[[Mapping[str, Tensor]], Any], policy: CachePolicy) -> Any:
    """A session made by `empty` (which gets the keeper's state), filled.

    Raises:
        SessionError: no whole state, or one of another kind of session, model, precision or policy.
    """
    who = "restore"
    try:
        about = parse_json(bytes(state[ABOUT].tolist()))
        _same(about, {"policy": policy.name})  # a policy never sees what another one remembered
        if absent := sorted({*about["parts"]} - state.keys()):
            raise LookupError(f"it lacks {', '.join(absent[:5])}")
        who = f"cache policy {policy.name!r}"
        session = empty({k.removeprefix("keeper."): v.clone() for k, v in state.items() if k.startswith("keeper.")})
        who = "restore"
        _same(about, _made_by(session))
        _fill(session, state, about)
    except AndesError:
        raise
    except Exception as error:
        why, fix = f"{type(error).__name__}: {error}", "give all of Session.state(), and the same policy"
        raise SessionError("this is no state of a session", who=who, why=why, fix=fix) from error
    return session


def _same(about: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if wrong := [k for k, v in wanted.items() if about[k] != v]:
        why = "; ".join(f"{k}: {about[k]}, here {wanted[k]}" for k in wrong)
        raise SessionError("the state was taken elsewhere", who="restore", why=why, fix="restore it where it was taken")


def _fill(session: Any, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Rows and what is remembered of them. Raises ValueError where they do not fit one another."""
    session.load({k.removeprefix("kv."): v for k, v in state.items() if k.startswith("kv.")})
    keeping = session.keeping
    keeping.image, keeping.held = state["image"].clone(), about["held"]
    keeping.embeds = [state["embeds"].clone()] if "embeds" in state else []
    for layer in range(len(keeping.windows)):
        window = state.get(f"window.{layer}")
        keeping.windows[layer] = None if window is None else window.clone()
    for layer in {int(k.split(".")[1]) for k in state if k.startswith("score.")}:
        heads = range(session.model.text.kv_heads)
        keeping.scores[layer] = [state[f"score.{layer}.{head}"].clone() for head in heads]
    session.length, session.adapter = about["length"], about["adapter"]
    keeping.check(session.length, sum(int(n) for layer in session.counts() for n in layer))
