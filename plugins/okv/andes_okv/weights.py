"""Files of learned scorers: safetensors that say which model they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from andes_sdk.errors import CheckpointError
from andes_sdk.files import regular, write_atomically
from andes_sdk.numbers import weights_of
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    from andes_sdk.types import Model

SHIPPED = Path(__file__).parent / "weights"
"""Weights of models that come with this distribution, one file a model."""

FORMAT = "andes-okv-scorer-1"


@frozen(eq=False, kw_only=True)
class Weights:
    """A learned scorer.

    Attributes:
        model: what `identity` says of the model that it belongs to.
        maps: per layer a weight (Hkv, D) and a bias (Hkv,), float32.
        facts: how it was made, as plain data.
    """

    model: str
    maps: list[tuple[Tensor, Tensor]]
    facts: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {f"{n}.weight": w.contiguous() for n, (w, _) in enumerate(self.maps)}
        tensors |= {f"{n}.bias": b.contiguous() for n, (_, b) in enumerate(self.maps)}
        about = {"format": FORMAT, "model": self.model, "layers": str(len(self.maps)), "facts": json.dumps(self.facts)}
        write_atomically(path, save(tensors, about))

    @classmethod
    def read(cls, path: Path) -> Weights:
        """A file that `write` made.

        Raises:
            CheckpointError: it cannot be read, is cut short, or is no such file.
        """
        fix = "make it again with `andes okv fit`"
        try:
            with safe_open(regular(path), "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
                maps = [
                    (file.get_tensor(f"{n}.weight"), file.get_tensor(f"{n}.bias")) for n in range(int(about["layers"]))
                ]
            facts = parse_json(about.get("facts", "{}"))
            wrong = [
                n for n, m in enumerate(maps) if not all(x.isfinite().all() and x.dtype == torch.float32 for x in m)
            ]
            if wrong:
                raise ValueError(f"layers {wrong[:5]} hold what are no finite float32 numbers")
        except (OSError, SafetensorError, ValueError, LookupError) as error:
            raise CheckpointError("is no file of a learned scorer", who=str(path), why=str(error), fix=fix) from None
        return cls(model=about["model"], maps=maps, facts=facts)

    def check(self, model: Model, path: Path) -> None:
        """Refuse to score another model.

        Raises:
            CheckpointError: saying both.
        """
        own, spec = identity(model), model.text
        if self.model != own:
            why = f"it belongs to {self.model or 'no model'}, this one is {own or 'not to be told: it is packed'}"
            fix = "fit one for this model with `andes okv fit`, or choose another scorer"
            raise CheckpointError("belongs to another model", who=str(path), why=why, fix=fix)
        shapes = [(tuple(w.shape), tuple(b.shape)) for w, b in self.maps]
        if shapes != [((spec.kv_heads, spec.width), (spec.kv_heads,))] * spec.layers:
            why = f"{len(shapes)} layers, the first of shapes {shapes[:1]}"
            raise CheckpointError("does not fit the model", who=str(path), why=why, fix="make it with `andes okv fit`")


def identity(model: Model) -> str:
    """A name for the numbers of a language model: its own hash where it was compressed, else one over its weights."""
    return model.numbers or weights_of(model.language_model)


def shipped(model: Model) -> Path | None:
    """The file among those that come along that belongs to a model, or None."""
    own = identity(model)
    for path in sorted(SHIPPED.glob("*.safetensors")):
        if own and Weights.read(path).model == own:
            return path
    return None
