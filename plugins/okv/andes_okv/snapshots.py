"""Sessions as files: committed rows, compressed or not, with a checksum and the name of the model they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from andes_sdk.errors import CheckpointError
from andes_sdk.files import at_home, regular, write_atomically, writing

from .weights import identity

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Session

FORMAT = "andes-session-1"


def save_session(pipeline: Pipeline, session: Session, path: str | Path) -> Path:
    """Write a session to a file (safetensors), whole or not at all -> its path.

    Raises:
        SessionError: uncommitted rows, or a closed session. ConfigError: the model cannot be told from others.
        InputError: the file cannot be written.
    """
    place = at_home(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in session.state().items()}
    about = {"format": FORMAT, "model": identity(pipeline.model), "sha256": _digest(state)}
    with writing(place):
        write_atomically(place, save(state, about))
    return place


def load_session(pipeline: Pipeline, path: str | Path) -> Session:
    """A session that goes on where `save_session` wrote it, under this pipeline's cache policy.

    Raises:
        CheckpointError: no such file, one that is damaged or cut short, or of another model.
        SessionError: it was taken under another policy, backend or precision, or with an adapter that is not there.
    """
    place, fix = at_home(path), "save the session again with pipe.save_session(session, path)"
    try:
        with safe_open(regular(place), "pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError("is no session", who=str(place), why=str(error), fix=fix) from None
    if about.get("format") != FORMAT:
        why = f"its format is {about.get('format')!r}, not {FORMAT!r}"
        raise CheckpointError("is no session", who=str(place), why=why, fix=fix)
    if about.get("sha256") != _digest(state):
        raise CheckpointError("is damaged", who=str(place), why="its checksum differs", fix=fix)
    if about.get("model") != (own := identity(pipeline.model)):
        why = f"it was taken on {about.get('model')}, this model is {own}"
        raise CheckpointError("is a session of another model", who=str(place), why=why, fix="open it with that model")
    return pipeline.compiled.restore(state, pipeline.policy)


def _digest(state: Mapping[str, Tensor]) -> str:
    """sha256, in hex, over names, types, shapes and bytes, in the order of the names."""
    made = hashlib.sha256()
    for name in sorted(state):
        one = state[name].contiguous()
        made.update(f"{len(name)}:{name}:{one.dtype}:{tuple(one.shape)}".encode())
        made.update(one.reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()
