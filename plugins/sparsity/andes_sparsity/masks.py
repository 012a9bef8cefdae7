"""N:M masks, and the matrices that get them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_sdk.types import Model


def keep_mask(score: Tensor, n: int, m: int) -> Tensor:
    """(rows, columns) scores -> the same shape, bool: the n largest of every m neighbours; the earlier of equals.

    The choice is that of the N:M formats of andes-packing, where the scores are magnitudes.
    """
    blocks = score.reshape(len(score), -1, m)
    best = blocks.argsort(dim=-1, descending=True, stable=True)[..., :n]
    return torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, best, True).reshape(score.shape)


def matrices(model: Model, m: int, roles: Collection[str] = ()) -> dict[str, tuple[int, nn.Linear]]:
    """Matrices of the language model's layers -> (layer, module), by the module's name in the model.

    Args:
        roles: those that are meant; empty for all.

    Raises:
        ConfigError: an unknown role, columns that m does not divide, or a module that holds no plain weight.
    """
    every = model.llm.linears()
    if unknown := sorted(set(roles) - {role for _, role in every.values()}):
        known = ", ".join(sorted({role for _, role in every.values()}))
        raise ConfigError(f"no matrix has the role {unknown[0]!r}", who="sparsity.roles", fix=f"use {known}")
    found = {}
    for place, (layer, role) in every.items():
        if roles and role not in roles:
            continue
        name, module = f"language_model.{place}", model.language_model.get_submodule(place)
        if type(module) is not nn.Linear or is_parametrized(module):
            why = f"it is {type(module).__name__}: packed, quantised or adapted"
            fix = "open the float checkpoint; prune or train first, then pack"
            raise ConfigError("is no plain linear layer, so it cannot be pruned", who=name, why=why, fix=fix)
        if module.in_features % m:
            what = f"its {module.in_features} columns are no multiple of {m}"
            raise ConfigError(what, who=name, fix="take another m, or leave its role out of `roles`")
        found[name] = (layer, module)
    return found


def exact(weight: Tensor, n: int, m: int) -> bool:
    """Whether at most n of every m neighbours of a (rows, columns) matrix are not zero."""
    return int((weight.reshape(len(weight), -1, m) != 0).sum(-1).max()) <= n
