"""What compression leaves behind: codes of matrices, ranges of inputs, and modules that have both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@frozen(eq=False)
class Codes:
    """A matrix on a format's grid: weight = value * scale of its row and group.

    Attributes:
        values: (rows, cols) int8; float16 for a format without scales.
        scales: (rows, groups) float16, or floats that become float16 when they are packed; (rows, 0) for a format
            without scales.
        group: columns per scale.
    """

    values: NDArray[Any]
    scales: NDArray[Any]
    group: int

    def weights(self) -> NDArray[np.float32]:
        """(rows, cols) float32, what every packing of these codes dequantises to."""
        import numpy as np

        values = self.values.astype(np.float32)
        if not self.scales.shape[1]:
            return values
        (rows, cols), groups = values.shape, self.scales.shape[1]
        short = groups * self.group - cols
        padded = np.pad(values, ((0, 0), (0, short))) if short else values
        padded = padded.reshape(rows, groups, self.group)
        padded *= self.scales.astype(np.float16).astype(np.float32)[:, :, None]
        return np.ascontiguousarray(padded.reshape(rows, groups * self.group)[:, :cols])


@frozen(kw_only=True)
class Range:
    """How the input of a matrix is rounded: code = round(x / scale) + zero, in `bits` bits.

    Attributes:
        bits: 2 to 16.
        scale: above 0, a float32.
        zero: the code of 0.0, within `bits` bits of either sign.
    """

    bits: int
    scale: float
    zero: int = 0


@runtime_checkable
class Quantised(Protocol):
    """A module whose own parameter `weight` lies on a format's grid. It is packed from these very codes."""

    def codes(self) -> Codes:
        """Of `weight`: the codes and scales that its forward pass computes with."""

    def input_range(self) -> Range | None:
        """How its input is rounded; None if it is not."""


@frozen(eq=False, kw_only=True)
class Compressed:
    """What a compressor did to a model.

    Attributes:
        codes: of the matrices that it put on a grid, by name of the tensor, beside those of `Quantised` modules.
        ranges: of inputs, by name of the module, beside those of `Quantised` modules.
        report: facts as plain data.
    """

    codes: Mapping[str, Codes] = field(factory=dict)
    ranges: Mapping[str, Range] = field(factory=dict)
    report: Mapping[str, Any] = field(factory=dict)
