"""Modules of an artefact: filled with dequantised weights, or reading each weight from the file when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from andes_packing.header import AGAIN
from andes_sdk.errors import CheckpointError
from andes_sdk.storage.checkpoint import aliases, assign, needed, refuse_meta_buffers

if TYPE_CHECKING:
    from andes_packing.artefact import Artefact
    from andes_sdk.model import VisionLanguageModel


def check_fit(model: VisionLanguageModel, artefact: Artefact) -> None:
    """Refuse modules, built on the meta device, that an artefact does not fill.

    Raises:
        CheckpointError: naming what is missing, extra or of another shape. PluginBroken: buffers nobody fills.
    """
    stored = {name: entry.shape for name, entry in artefact.tensors.items()}
    wanted = needed(model, stored.keys() | artefact.header.tied.keys())
    tied = {name: first for name, first in aliases(model).items() if name in wanted}
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items() if name not in tied}
    if stored != shapes or dict(artefact.header.tied) != tied:
        wrong = sorted(n for n in stored.keys() | shapes.keys() if stored.get(n) != shapes.get(n)) or sorted(tied)
        why = f"missing, extra or of another shape: {', '.join(wrong[:20])}"
        raise CheckpointError("does not fit the model that its plan builds", who=str(artefact.path), why=why, fix=AGAIN)
    refuse_meta_buffers(model, wanted)


def fill(model: VisionLanguageModel, artefact: Artefact, *, device: str, dtype: str) -> VisionLanguageModel:
    """Every weight dequantised: slow to open and as large as the float model; the reference for what runs packed."""
    check_fit(model, artefact)
    tied, model.numbers = dict(artefact.header.tied), artefact.numbers
    assign(model, {n: t for n, t in artefact.dequantised_state().items() if n not in tied}, tied)
    if callable(tie := getattr(model.language_model, "tie_weights", None)):
        tie()
    return model.to(device=device, dtype=getattr(torch, dtype)).eval()


def attach(model: VisionLanguageModel, artefact: Artefact, *, dtype: str) -> VisionLanguageModel:
    """Every matrix stays in the file and becomes numbers of `dtype` when it is used, for that use only.

    Vectors and integers, which are small, are read now. An embedding looks up the rows it is asked for.
    """
    check_fit(model, artefact)
    modules, kind = dict(model.named_modules()), getattr(torch, dtype)
    model.numbers = artefact.numbers
    for name in (*artefact.tensors, *artefact.header.tied):
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if artefact.stored_raw(name):
            tensor = torch.from_numpy(np.array(artefact.array(name)))
            _put(module, leaf, tensor.to(kind) if tensor.is_floating_point() else tensor)
        elif type(module) is nn.Embedding and leaf == "weight":
            parent, _, last = owner.rpartition(".")
            setattr(modules[parent], last, StoredEmbedding(artefact, name, kind))
        else:
            # what is registered has no elements; it tells modules their device and type
            _put(module, leaf, torch.empty(0, dtype=kind))
            register_parametrization(module, leaf, StoredWeight(artefact, name, kind), unsafe=True)
    return model.to(dtype=kind).eval()  # what the file may lack has another type so far


def _put(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


class StoredWeight(nn.Module):
    """A parametrisation: whatever is registered, the weight is what the artefact holds."""

    def __init__(self, artefact: Artefact, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.artefact, self.name, self.dtype = artefact, name, dtype

    def forward(self, registered: Tensor) -> Tensor:
        """-> the tensor in its own shape."""
        return torch.from_numpy(self.artefact.array(self.name)).to(self.dtype)


class StoredEmbedding(nn.Module):
    """`nn.Embedding` whose table stays in the artefact, shared with a head that is tied to it."""

    def __init__(self, artefact: Artefact, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.artefact, self.name, self.dtype = artefact, name, dtype
        self.num_embeddings, self.embedding_dim = artefact.tensors[artefact.header.tied.get(name, name)].matrix

    @property
    def weight(self) -> Tensor:
        """The whole table (V, D), dequantised anew."""
        return torch.from_numpy(self.artefact.array(self.name)).to(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., D)."""
        rows = self.artefact.rows(self.name, ids.reshape(-1).numpy())
        return torch.from_numpy(rows).to(self.dtype).view(*ids.shape, self.embedding_dim)
