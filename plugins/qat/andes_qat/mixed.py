"""Grids chosen by how much the loss feels the rounding of each matrix, for a target of bits per weight.

The loss's rise when a matrix is rounded is estimated by its second-order term with the diagonal of the Fisher matrix:
½ Σ F (Q(w) − w)², F the mean of squared gradients over packs of data (as HAWQ and SqueezeLLM do; arXiv 1911.03852,
2306.07629). One backward pass serves all grids. Units of the choice are `q k v`, `o`, `gate up` and `down` of all
layers, which is what the compiled step of the backend numba runs, or every matrix. Beginning with the smallest grid
everywhere, the exchange that takes away most per byte is made until no other fits (the greedy rule of the knapsack).
Left out: what one matrix's rounding means for another's, and anything but the language model's layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from andes_sparsity.calibration import Calibration
from andes_training.loss import next_token_loss
from attrs import evolve, frozen
from torch import Tensor

from andes_sdk.errors import ConfigError
from andes_sdk.types import Compressed

from .compressors import _give, _matrix, _once, nearest, rotated_targets
from .grids import Choice, Target, grid

if TYPE_CHECKING:
    from andes_training.packing import Batch

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model

KINDS = ("q k v", "o", "gate up", "down")
"""Roles that have one format in the backend numba."""


@frozen(kw_only=True)
class Mixed:
    """Compressor `mixed`."""

    choice: Choice
    candidates: Sequence[str]
    units: str
    data: str
    lines: int
    max_tokens: int
    rotation: str = ""
    name: str = "mixed"

    def compress(self, model: Model, *, bits: float = 0.0, data: str = "", lines: int = 0) -> Compressed:
        """Choose a grid for every matrix of the layers, and round to nearest, in place.

        Args:
            bits, data, lines: instead of the plugin's.

        Returns:
            A report. bits: per weight of the layers, padding of short rows included. roles: what was chosen, as the
            plugin's option of that name takes it, to train on these grids. rise: the estimated rise of the loss, nats.

        Raises:
            ConfigError: no data, no target, or one that no grid of the candidates reaches; the error says the nearest.
            TrainingError: data that cannot be read.
        """
        most = bits or self.choice.bits
        grids = {name: grid(name, "qat.candidates") for name in self.candidates}
        whole = cast("VisionLanguageModel", model)
        places = {f"language_model.{name}": place for name, place in model.llm.linears().items()}
        kinds = self.units == "kinds"
        keys = {name: role if kinds else f"{layer}.{role}" for name, (layer, role) in places.items()}
        units = {name: next((g for g in KINDS if key in g.split()), key) for name, key in keys.items()}
        sizes = summed(sizes_of(whole, grids), units)
        weights = sum(_matrix(model, name).numel() for name in places)
        refuse_target(sizes, weights, most)
        rotated_targets(model, evolve(self.choice, bits=0.0), self.rotation)
        calibration = Calibration.of(whole, data or self.data, lines or self.lines, self.max_tokens, self.name)
        rises = summed(sensitivity(whole, calibration.packs, grids), units)
        chosen = allot(sizes, rises, int(most * weights / 8))
        roles = {keys[name]: chosen[unit] for name, unit in units.items()}
        with torch.no_grad():
            own = evolve(self.choice, roles=roles, bits=0.0)
            made = {f"{n}.weight": nearest(_matrix(model, n), t) for n, t in _once(model, own).items()}
            report = _give(model, made)
        report |= {
            "bits": 8 * sum(sizes[n][g] for n, g in chosen.items()) / weights, "roles": roles,
            "rise": sum(rises[n][g] for n, g in chosen.items()),
        }  # fmt: skip
        return Compressed(codes=made, report=report)


def summed(values: Mapping[str, Mapping[str, Any]], units: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Module -> grid -> number, added up over the modules of each unit; grids that one of them lacks are left out."""
    found: dict[str, dict[str, Any]] = {}
    for name, one in values.items():
        before = found.get(units[name])
        found[units[name]] = dict(one) if before is None else {g: before[g] + v for g, v in one.items() if g in before}
    return found


def sizes_of(model: VisionLanguageModel, grids: Mapping[str, Target]) -> dict[str, dict[str, int]]:
    """Module -> bytes on each grid; grids whose pattern does not divide its columns are left out."""
    found = {}
    for place in model.llm.linears():
        rows, columns = _matrix(model, f"language_model.{place}").shape
        fits = {name: target for name, target in grids.items() if columns % target.m == 0}
        found[f"language_model.{place}"] = {n: t.form.nbytes(rows, columns) for n, t in fits.items()}
    return found


def refuse_target(sizes: Mapping[str, Mapping[str, int]], weights: int, most: float) -> None:
    """Refuse a target that is missing, or that no choice reaches.

    Raises:
        ConfigError: with the fewest bits that can be had.
    """
    if not most:
        fix = "give the option `bits`, such as -o bits=2.5"
        raise ConfigError("needs a target of bits per weight", who="mixed", fix=fix)
    least = 8 * sum(min(one.values(), default=0) for one in sizes.values()) / weights
    if all(sizes.values()) and least <= most:
        return
    if not all(sizes.values()):
        name = next(n for n, one in sizes.items() if not one)
        raise ConfigError("no grid of the candidates fits", who=name, fix="add one without a pattern, such as w4_g32")
    what = f"{most:g} bits per weight cannot be reached"
    fix = f"set bits = {least + 0.005:.2f}, or give a smaller grid in `candidates`"
    raise ConfigError(what, who="qat.bits", why=f"the smallest grids take {least:.2f}", fix=fix)


def sensitivity(
    model: VisionLanguageModel, packs: Sequence[Batch], grids: Mapping[str, Target]
) -> dict[str, dict[str, float]]:
    """Module -> estimated rise of the loss on each grid, nats."""
    names = [f"language_model.{place}" for place in model.llm.linears()]
    weights = {name: _matrix(model, name) for name in names}
    kept = [(p, p.requires_grad) for p in model.parameters()]
    fisher: dict[str, Tensor] = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    try:
        for parameter, _ in kept:
            parameter.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            for batch in packs:
                loss, _ = next_token_loss(model, batch)
                found = torch.autograd.grad(loss, list(weights.values()))
                for name, gradient in zip(names, found, strict=True):
                    # squares of sums over tokens: of independent tokens that is the sum of squares ÷ their number
                    fisher[name] += gradient.float().square() * batch.tokens / len(packs)
    finally:
        for parameter, before in kept:
            parameter.requires_grad_(before)
    rises: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for name, weight in ((n, w.detach()) for n, w in weights.items()):
            fits = {n: t for n, t in grids.items() if weight.shape[1] % t.m == 0}
            rises[name] = {
                n: 0.5
                * float((fisher[name] * (torch.from_numpy(nearest(weight, t).weights()) - weight).square()).sum())
                for n, t in fits.items()
            }
    return rises


def allot(
    sizes: Mapping[str, Mapping[str, int]], rises: Mapping[str, Mapping[str, float]], budget: int
) -> dict[str, str]:
    """Module -> grid, within a budget of bytes: from the smallest, the best exchange per byte until none fits."""
    chosen = {name: min(one, key=lambda g, one=one: (one[g], rises[name][g])) for name, one in sizes.items()}  # type: ignore[misc]
    left = budget - sum(sizes[n][g] for n, g in chosen.items())
    while True:
        best: tuple[float, str, str] | None = None
        for name, now in chosen.items():
            for other, size in sizes[name].items():
                more, gain = size - sizes[name][now], rises[name][now] - rises[name][other]
                if gain > 0 and more <= left:
                    ratio = gain / more if more > 0 else float("inf")
                    best = max(best or (0.0, "", ""), (ratio, name, other))
        if best is None or not best[1]:
            return chosen
        _, name, other = best
        left -= sizes[name][other] - sizes[name][chosen[name]]
        chosen[name] = other
