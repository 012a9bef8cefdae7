"""Draft heads as files: safetensors whose header names the kind, the shape, and the model that the head belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from andes_sdk.config import structure
from andes_sdk.errors import AndesError, AssemblyError, CheckpointError, ConfigError
from andes_sdk.files import appearing_file, regular
from andes_sdk.numbers import numbers_of, weights_of

from .block import Block, BlockShape
from .eagle import Eagle3, HeadShape

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

KIND, BASE, SHAPE = "andes_draft", "andes_base", "andes_shape"
FIX = "train one with `andes draft train`"
MOST = 16
"""Largest block, and layers of a head."""
Head = Eagle3 | Block
KINDS: dict[str, tuple[type[Any], type[Any]]] = {"eagle3": (HeadShape, Eagle3), "block": (BlockShape, Block)}
"""Kind of head -> its shape and its class."""


def base_of(model: VisionLanguageModel) -> str:
    """What names the numbers that a model computes with: those that it was compressed to, else its weights."""
    return model.numbers or numbers_of(model) or weights_of(model)


def kind_of(head: Head) -> str:
    """As users write it."""
    return next(kind for kind, (_, cls) in KINDS.items() if isinstance(head, cls))


def save_head(head: Head, path: Path, base: str) -> None:
    """Write a head; the file appears whole or not at all."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}
    with appearing_file(path) as place:
        save_file(tensors, place, {KIND: kind_of(head), BASE: base, SHAPE: json.dumps(asdict(head.shape))})


def load_head(path: Path, model: VisionLanguageModel, kind: str) -> Any:
    """Read the head of a model, of a kind of `KINDS`.

    Raises:
        CheckpointError: a file that is missing, cut, or no head of this kind. ConfigError: a head of another model.
    """
    who = str(path)
    try:
        with safe_open(regular(path), "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError("the draft head cannot be read", who=who, why=str(error), fix=FIX) from None
    if facts.get(KIND) != kind:
        why = f"it holds {facts.get(KIND, 'something else')!r}"
        raise CheckpointError(f"is no draft head {kind!r}", who=who, why=why, fix=FIX)
    own = base_of(model)
    if facts.get(BASE) != own:
        why = f"it was trained on {facts.get(BASE)}, this model has {own or 'no weights that can be compared'}"
        raise ConfigError("the draft head belongs to another model", who=who, why=why, fix=f"{FIX} for this model")
    head = _built(kind, facts.get(SHAPE, ""), who)
    if why := _misfit(head, tensors, model):
        raise CheckpointError("the draft head does not fit", who=who, why=why, fix=FIX)
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)


def _built(kind: str, text: str, who: str) -> Head:
    shape_class, head_class = KINDS[kind]
    try:
        shape = structure(shape_class, json.loads(text), "draft head")
        sizes = {name: size for name, size in asdict(shape).items() if isinstance(size, int)}
        small = {name: sizes[name] for name in ("block", "layers") if name in sizes}
        if min(sizes.values()) < 1 or max(sizes.values()) > 1 << 20 or max(small.values(), default=1) > MOST:
            raise ValueError(f"sizes {sizes}")
        if shape.heads % shape.kv_heads or shape.head_dim % 2:
            raise ValueError(f"{shape.heads} heads on {shape.kv_heads} of {shape.head_dim}")
        with torch.device("meta"):
            head: Head = head_class(shape)
    except (ValueError, TypeError, AndesError, AssemblyError) as error:
        raise CheckpointError("the draft head has no shape", who=who, why=str(error), fix=FIX) from None
    return head.to_empty(device="cpu")


def _misfit(head: Head, tensors: dict[str, torch.Tensor], model: VisionLanguageModel) -> str:
    """Why a head cannot work for a model, or nothing."""
    wanted = {name: tuple(t.shape) for name, t in head.state_dict().items()}
    if (got := {name: tuple(t.shape) for name, t in tensors.items()}) != wanted:
        return f"tensors {sorted(set(got.items()) ^ set(wanted.items()))[:4]}"
    if head.shape.width != model.text.width or not all(0 <= tap <= model.text.layers for tap in head.shape.taps):
        return f"width {head.shape.width} and layers {head.shape.taps} of a model of {model.text.layers} layers"
    tokens = tensors["tokens"]
    if tokens.is_floating_point() or not 0 <= int(tokens.min()) <= int(tokens.max()) < model.text.vocab_size:
        return "it names tokens that the model does not have"
    wrong = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    return f"numbers that are not finite in {wrong[:3]}" if wrong else ""
