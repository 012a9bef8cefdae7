"""Which tensor of a model goes into which format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from andes_packing.formats import Format, known
from torch import nn

from andes_sdk.config import suggestion
from andes_sdk.errors import ConfigError
from andes_sdk.model import VisionLanguageModel
from andes_sdk.storage.checkpoint import aliases, stored_tensors

GROUPS = ("body", "embedding", "head", "vectors", "vision_encoder", "projector")
"""Groups of tensors in reports. `embedding` holds a tied head too; `vectors` are norms and biases of the language
model; encoder and projector are one group each, and so is whatever else a model has (`modalities`)."""

LANGUAGE_MODEL = ("body", "embedding", "head", "vectors")
"""Groups that make up the language model."""

RAW = {
    torch.float32: "raw:float32", torch.int64: "raw:int64", torch.int32: "raw:int32", torch.int16: "raw:int16",
    torch.int8: "raw:int8", torch.uint8: "raw:uint8", torch.bool: "raw:bool",
}  # fmt: skip
"""Tensors that are no matrices are stored as they are; floating-point ones as float32."""


def is_matrix(tensor: torch.Tensor) -> bool:
    """Whether a tensor gets a format; vectors and integers do not."""
    return tensor.ndim >= 2 and tensor.is_floating_point()


def groups(model: VisionLanguageModel) -> dict[str, str]:
    """Stored tensor -> its group; a tied tensor once, under its first name."""
    tied = set(aliases(model).values())
    modules = dict(model.named_modules())
    # what has as many rows as the vocabulary has ids may still be a matrix of a layer
    body, vocabulary = {f"language_model.{name}" for name in model.llm.linears()}, model.text.vocab_size
    found = {}
    for name, tensor in stored_tensors(model).items():
        part, place = name.partition(".")[0], name.rpartition(".")[0]
        owner = modules[place]
        if part != "language_model":
            found[name] = "projector" if part == "mlp" else part
        elif not is_matrix(tensor):
            found[name] = "vectors"
        elif isinstance(owner, nn.Embedding) or name in tied:
            found[name] = "embedding"
        elif isinstance(owner, nn.Linear) and owner.out_features == vocabulary and place not in body:
            found[name] = "head"
        else:
            found[name] = "body"
    return found


def default_recipe(
    model: VisionLanguageModel, body: str, *, head: str | None = None, vision: str = "f16"
) -> dict[str, str]:
    """A format for every matrix, by name; add patterns after it to change some.

    Args:
        body: of the language model's matrices.
        head: of its embedding and head; None: as the body.
        vision: of the linear and convolution weights of encoder, projector and whatever else is beside the language
            model. What else they hold in two or more dimensions, such as positions, stays in f16.
    """
    modules = dict(model.named_modules())
    tensors = stored_tensors(model)
    recipe = {}
    for name, group in groups(model).items():
        if not is_matrix(tensors[name]):
            continue
        if group not in LANGUAGE_MODEL:
            weight = isinstance(modules[name.rpartition(".")[0]], nn.Linear | nn.Conv2d)
            recipe[name] = vision if weight else "f16"
        else:
            recipe[name] = body if group == "body" else head or body
    return recipe


def resolve(model: VisionLanguageModel, recipe: Mapping[str, str], extra: Iterable[Format] = ()) -> dict[str, str]:
    """Every stored tensor -> name of its format, or `raw:…`. The last pattern that matches a name wins.

    Raises:
        ConfigError: an unknown format, a pattern that matches no matrix, or a matrix that no pattern matches.
    """
    formats = known(extra)
    for chosen in recipe.values():
        if chosen not in formats:
            raise ConfigError(f"no format {chosen!r}", who="recipe", fix=suggestion(chosen, formats))
    tensors = stored_tensors(model)
    matrices = [name for name, tensor in tensors.items() if is_matrix(tensor)]
    given: dict[str, str] = {}
    for pattern, chosen in recipe.items():
        hits = [pattern] if pattern in tensors else [n for n in matrices if fnmatchcase(n, pattern)]
        hits = [n for n in hits if is_matrix(tensors[n])]
        if not hits:
            raise ConfigError(
                f"{pattern!r} matches no matrix", who="recipe", why="vectors stay in float32", fix="correct the pattern"
            )
        given |= dict.fromkeys(hits, chosen)
    missing = [n for n in matrices if n not in given]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ConfigError("no format for some matrices", who="recipe", why=shown, fix="add a pattern, such as '*'")
    return {name: given.get(name) or raw_name(tensor, name) for name, tensor in tensors.items()}


def raw_name(tensor: torch.Tensor, name: str) -> str:
    """How a tensor without a format is stored.

    Raises:
        ConfigError: its type is none that an artefact holds.
    """
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    if dtype not in RAW:
        raise ConfigError(f"{dtype} cannot be packed", who=name, fix=f"use {', '.join(str(t) for t in RAW)}")
    return RAW[dtype]
