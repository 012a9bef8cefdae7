"""Matrices as the chip takes them: int8 or int4 codes, one float32 scale per output channel, and where they come from.

What training or compression left counts first: `Quantised` modules, and matrices of a packed file. Only matrices that
have no codes of their own are rounded here. Codes with several scales in a row cannot run on the chip, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from andes_sdk.errors import ConfigError
from andes_sdk.numbers import half_scales, quantised

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Codes, Range

BITS = {"w8": 8, "w4": 4}
"""Options of users -> bits of a code."""

_CUTS = {4: (0.7, 0.76, 0.82, 0.88, 0.94, 1.0), 8: (0.97, 0.985, 1.0)}
"""Of the largest magnitude of a row: what clipping a few outliers is worth."""


@frozen(eq=False)
class Matrix:
    """Codes of one matrix.

    Attributes:
        codes: (rows, cols) int8, within 4 bits where `bits` is 4.
        scales: (rows,) float32, above 0; each a float16, as in every format here. (rows, groups) of what only a unit
            that decompresses codes could run.
        source: "trained" (its module's), "packed" (the file's) or "rounded" (here, from floats).
        group: columns of a scale, where a row has several; 0: one scale per row.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    bits: int
    source: str
    group: int = 0

    @property
    def weights(self) -> NDArray[np.float32]:
        """(rows, cols) float32: what the codes stand for."""
        if self.group:
            wide = np.repeat(self.scales, self.group, axis=1)[:, : self.codes.shape[1]]
            return self.codes.astype(np.float32) * wide
        return self.codes.astype(np.float32) * self.scales[:, None]


def rounded(weight: NDArray[Any], bits: int) -> Matrix:
    """(rows, cols) floats -> codes; each row's scale is the one of least squared error among a few.

    Raises:
        ConfigError: weights that are not finite.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    if not np.isfinite(weight).all():
        raise ConfigError("weights that are not finite", fix="check the checkpoint")
    high = (1 << bits - 1) - 1
    largest = np.abs(weight).max(1)
    best, scales = np.full(len(weight), np.inf, np.float32), np.ones(len(weight), np.float32)
    for cut in _CUTS[bits]:
        step = half_scales(np.maximum(largest * cut / high, 1e-7)[:, None], "scales").astype(np.float32)
        values = np.clip(np.rint(weight / step), -high, high) * step
        error = np.square(values - weight).sum(1)
        better = error < best
        best[better], scales[better] = error[better], step[better, 0]
    codes = np.clip(np.rint(weight / scales[:, None]), -high, high).astype(np.int8)
    return Matrix(codes, scales, bits, "rounded")


def per_channel(name: str, codes: Codes, source: str, *, unit: bool = False) -> Matrix:
    """Codes of a format or a module as a matrix of the chip.

    unit: take several scales in a row as well, as a unit would hand them on that decompresses codes to int8.

    Raises:
        ConfigError: they have several scales in a row (without `unit`), or none, or take more than 8 bits.
    """
    scales = np.asarray(codes.scales)
    if codes.values.dtype != np.int8 or not scales.shape[1]:
        what, fix = "has no integer codes", "train or compress it to 8 or 4 bits per channel"
        raise ConfigError(what, who=name, why="the chip multiplies int8 and int4", fix=fix)
    halves = half_scales(scales, name).astype(np.float32)
    values = np.ascontiguousarray(codes.values)
    four = int(values.min(initial=0)) >= -8 and int(values.max(initial=0)) <= 7
    if (halves != halves[:, :1]).any():
        if unit:
            return Matrix(values, np.ascontiguousarray(halves), 4 if four else 8, source, codes.group)
        raise ConfigError(
            f"has a scale for every {codes.group} columns", who=name,
            why="the chip has one scale per output channel: block-wise codes are rejected there",
            fix="quantise with one scale per row (group = all columns), or deploy the float checkpoint",
        )  # fmt: skip
    return Matrix(values, np.ascontiguousarray(halves[:, 0]), 4 if four else 8, source)


@frozen(eq=False)
class Codebook:
    """Where the codes of a model's matrices are found, by name of the tensor."""

    model: VisionLanguageModel
    trained: Mapping[str, Codes]
    artefact: Any = None
    unit: bool = False

    @classmethod
    def of(cls, model: VisionLanguageModel, artefact: Any = None, *, unit: bool = False) -> Codebook:
        """Of a model; `artefact` is the packed file that its weights came from, or None; `unit` as in `per_channel`."""
        return cls(model, quantised(cast("Any", model))[0], artefact, unit)

    def matrix(self, name: str, bits: int) -> Matrix:
        """Codes of a tensor by its name in the model; floats without codes are rounded to `bits`.

        Raises:
            ConfigError: as `per_channel` and `rounded`, or there is no such tensor.
        """
        if name in self.trained:
            return per_channel(name, self.trained[name], "trained", unit=self.unit)
        if self.artefact is not None:
            stored = self.artefact.header.tied.get(name, name)
            entry = self.artefact.tensors.get(stored)
            if entry is not None and not entry.format.startswith(("raw:", "f16")):
                form = self.artefact.formats[entry.format]
                return per_channel(
                    name, form.unpack(self.artefact.packed(stored), *entry.matrix), "packed", unit=self.unit
                )
        tensors = dict(self.model.state_dict())
        if name not in tensors:
            raise ConfigError("there is no such matrix", who=name)
        weight = tensors[name].detach().float().cpu().numpy()
        return rounded(weight.reshape(len(weight), -1), bits)


def ranges_of(model: VisionLanguageModel, artefact: Any = None) -> dict[str, Range]:
    """Ranges of inputs by name of the module: those of a packed file, and before them those that modules have."""
    stored = dict(artefact.ranges) if artefact is not None else {}
    return stored | quantised(cast("Any", model))[1]


def refuse_unfit(name: str, one: Range, bits: int, *, exactly: bool = False) -> None:
    """Refuse a range that integers of so many bits cannot hold.

    exactly: refuse fewer bits as well: a file of int16 would not clip where training did.

    Raises:
        ConfigError: more bits than there are, fewer with `exactly`, or a zero point.
    """
    if one.zero or one.bits > bits or (exactly and one.bits != bits):
        why = f"it has {one.bits} bits and its zero at {one.zero}; activations have {bits} bits and their zero at 0"
        fix = f"train ranges of {bits} bits without a zero point, or choose other activations"
        raise ConfigError("a trained range does not fit the activations", who=name, why=why, fix=fix)
