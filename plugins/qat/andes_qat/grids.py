"""Grids by name: what a matrix is rounded to while it is trained, and the format that will hold it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
from andes_packing.formats import FORMATS, Codes, Sparse
from andes_packing.formats.dense import Scaled
from attrs import frozen
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from andes_sdk.config import suggestion
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.types import Model

THREE_BITS = {"w3_g32": "w4_g32", "w3_g128": "w4_g128"}
"""Three-bit codes, -4 to 3, which the four-bit formats hold: a grid of its own, no smaller file."""


@frozen(kw_only=True)
class Target:
    """A grid: codes low, low + step … high, a scale for each row and `group` columns; n of every m codes survive.

    Attributes:
        form: the format that holds them. mean: the plain scale is the mean magnitude, not the largest ÷ high.
        n, m: 1, 1 where every weight is stored.
    """

    name: str
    form: Scaled
    low: int
    high: int
    step: int
    n: int
    m: int

    @property
    def group(self) -> int:
        """Columns per scale."""
        return self.form.group

    @property
    def mean(self) -> bool:
        """Whether the plain scale is a mean (BitNet b1.58), not a maximum."""
        return self.form.grid.mean

    @property
    def sparse(self) -> bool:
        """Whether some codes have to be zero."""
        return self.n < self.m

    @property
    def coarse(self) -> bool:
        """Whether the grid is the same on both sides and has four levels at most: those that SEQ is for."""
        return self.low == -self.high and (self.high - self.low) // self.step < 4

    def holds(self, codes: Codes) -> bool:
        """Whether codes lie within this grid and need all of it."""
        values = codes.values.astype(np.int16)
        inside = int(values.min(initial=0)) >= self.low and int(values.max(initial=0)) <= self.high
        return inside and bool((values != 0).any()) and not ((values[values != 0] - self.low) % self.step).any()


def grid(name: str, who: str) -> Target:
    """A grid by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    names = {n: n for n, f in FORMATS.items() if isinstance(f, Scaled)} | THREE_BITS
    if name not in names:
        raise ConfigError(f"no grid {name!r}", who=who, fix=suggestion(name, names))
    form = FORMATS[names[name]]
    assert isinstance(form, Scaled)
    n, m = (form.n, form.m) if isinstance(form, Sparse) else (1, 1)
    low, high = (-4, 3) if name in THREE_BITS else (form.grid.low, form.grid.high)
    return Target(name=name, form=form, low=low, high=high, step=form.grid.step, n=n, m=m)


@frozen(kw_only=True)
class Choice:
    """Grids by kind of module; an empty name leaves that kind in floats.

    Attributes:
        body: matrices of the language model's layers; roles: some of them otherwise, by role (q, k, v, o, gate, up,
            down), or by layer and role (0.q), which comes first.
        embedding, head: of the language model. vision: encoder. projector. Linear layers and embeddings.
        bits: most bits per weight of those layers, padding of short rows included; 0: any.
    """

    body: str
    roles: Mapping[str, str]
    embedding: str
    head: str
    vision: str
    projector: str
    bits: float = 0.0

    def grids(self) -> dict[str, Target | None]:
        """Kind, or `roles.ROLE` -> grid.

        Raises:
            ConfigError: a name that no grid has.
        """
        kinds = {n: getattr(self, n) for n in ("body", "embedding", "head", "vision", "projector")}
        kinds |= {f"roles.{role}": name for role, name in self.roles.items()}
        return {kind: grid(name, f"qat.{kind}") if name else None for kind, name in kinds.items()}


def places(model: Model, choice: Choice) -> dict[str, Target]:
    """Name of each module that is to be quantised -> its grid, in the order of the model.

    Raises:
        ConfigError: an unknown grid or role, a grid for what the model does not have, modules that are no plain layers,
            columns that a pattern does not divide, more bits than were asked for, or embedding and head that are one
        matrix with two grids.
    """
    grids, linears = choice.grids(), model.llm.linears()
    places_ = {f"{layer}.{role}" for layer, role in linears.values()}
    if unknown := sorted(set(choice.roles) - {role for _, role in linears.values()} - places_):
        known = ", ".join(sorted({role for _, role in linears.values()}))
        raise ConfigError(f"no matrix has the role {unknown[0]!r}", who="qat.roles", fix=f"use {known}")
    found: dict[str, Target] = {}
    met: set[str] = set()
    for name, module in model.named_modules():
        kind = _kind(name, module, model, {f"language_model.{n}": place for n, place in linears.items()}, grids)
        met.add(kind)
        target = grids.get(kind)
        if target is None:
            continue
        _refuse(name, module, target)
        found[name] = target
    _check_kinds(grids, met)
    _refuse_bits(model, found, choice.bits)
    found = _tied(model, found)
    if not found:
        raise ConfigError(
            "nothing is quantised", who="qat", fix="give body, embedding, head, vision or projector a grid"
        )
    return found


def _kind(
    name: str, module: nn.Module, model: Model, roles: Mapping[str, tuple[int, str]], grids: Collection[str]
) -> str:
    part = name.partition(".")[0]
    if isinstance(module, nn.Embedding):
        return "embedding" if part == "language_model" else ""
    if not isinstance(module, nn.Linear):
        return ""
    if part != "language_model":
        return {"vision_encoder": "vision", "mlp": "projector"}.get(part, "")
    if name in roles:
        layer, role = roles[name]
        return next((own for own in (f"roles.{layer}.{role}", f"roles.{role}") if own in grids), "body")
    return "head" if module.out_features == model.text.vocab_size else ""


def _refuse(name: str, module: nn.Module, target: Target) -> None:
    held = hasattr(module, "held")  # codes of an earlier stage: it goes on from there
    if (type(module) not in (nn.Linear, nn.Embedding) and not held) or is_parametrized(module):
        why = f"it is {type(module).__name__}: packed, quantised, adapted, or of another library"
        fix = "open the float checkpoint, or give its kind no grid"
        raise ConfigError("is no plain layer, so it cannot be quantised", who=name, why=why, fix=fix)
    columns = cast("Tensor", module.weight).shape[1]
    if columns % target.m:
        what = f"its {columns} columns are no multiple of {target.m}"
        raise ConfigError(what, who=name, why=f"{target.name} stores {target.n} of {target.m}", fix="take another grid")


def _refuse_bits(model: Model, found: Mapping[str, Target], most: float) -> None:
    """Refuse grids that take more bits per weight of the layers than were asked for.

    Raises:
        ConfigError: how many they take, and which grid comes nearest.
    """
    if not most:
        return
    modules = dict(model.named_modules())
    weights = {n: cast("Tensor", modules[n].weight) for n in (f"language_model.{p}" for p in model.llm.linears())}
    shapes = {name: (int(w.shape[0]), int(w.shape[1])) for name, w in weights.items()}
    total = sum(rows * columns for rows, columns in shapes.values())

    def taken(forms: Mapping[str, Scaled]) -> float:
        sizes = (8 * forms[n].nbytes(*s) if n in forms else 16 * s[0] * s[1] for n, s in shapes.items())
        return sum(sizes) / total

    own = taken({name: target.form for name, target in found.items()})
    if own <= most:
        return
    forms = {n: f for n, f in FORMATS.items() if isinstance(f, Scaled)}
    forms = {n: f for n, f in forms.items() if not any(s[1] % getattr(f, "m", 1) for s in shapes.values())}
    bits = {name: taken(dict.fromkeys(shapes, form)) for name, form in forms.items()}
    fits = {name: size for name, size in bits.items() if size <= most}
    nearest = max(fits, key=lambda n: fits[n]) if fits else min(bits, key=lambda n: bits[n])
    fix = f"set body = {nearest!r} without roles, which takes {bits[nearest]:.2f}"
    fix += "" if fits else f": no grid takes fewer; and bits = {math.ceil(100 * bits[nearest]) / 100:g}, or 0 for any"
    whole = {shape[1] for shape in shapes.values() if any(shape[1] % t.group for t in found.values())}
    why = f"rows of {min(whole)} columns are padded to whole groups" if whole else "that is what the grids take"
    what = f"the layers would take {own:.2f} bits per weight, {most:g} were asked for"
    raise ConfigError(what, who="qat.bits", why=why, fix=fix)


def _check_kinds(grids: Mapping[str, Target | None], met: Collection[str]) -> None:
    for kind, target in grids.items():
        role = kind.removeprefix("roles")  # single layers may leave a role none, and roles the body
        own = any(k.startswith("roles.") and (kind == "body" or k.endswith(role)) for k in met)
        if target is not None and kind not in met and not own:
            raise ConfigError(f"the model has no {kind}", who=f"qat.{kind}", fix=f"leave {kind} out")


def _tied(model: Model, found: Mapping[str, Target]) -> dict[str, Target]:
    """With the further names of matrices that have several: one matrix has one grid under all of them.

    Raises:
        ConfigError: embedding and head have different ones.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            owners.setdefault(id(module.weight), []).append(name)
    whole = dict(found)
    for names in owners.values():
        chosen = {found[n].name: found[n] for n in names if n in found}
        if len(chosen) > 1:
            why = ", ".join(f"{n}: {found[n].name}" for n in names)
            fix = "give embedding and head the same grid, or one of them none"
            raise ConfigError("one matrix cannot have two grids", who="qat.head", why=why, fix=fix)
        whole |= dict.fromkeys(names, next(iter(chosen.values()))) if chosen else {}
    return whole
