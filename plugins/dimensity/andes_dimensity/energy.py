"""Energy of a token and of a picture: what moving bits, keeping them on the chip and multiplying take, with sources.

    joules = bits from memory * dram + bits through the chip's buffers * sram + products * mac

No bound either way: figures of older chips are too high, and leakage, the processor's cores, conversion between
voltages and the display are not in it. Every figure is an assumption that is printed, and an option.
"""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from andes_sdk.errors import ConfigError


@frozen(kw_only=True)
class Figure:
    """Picojoules of one thing, and where they are from."""

    value: float
    source: str


DRAM = Figure(
    value=10.0,
    source="Ortega et al., PIM-AI, arXiv 2411.17309, table 1, as others quote it: LPDDR5X of phones, both ends of the "
    "bus; derived there from the kind of memory, not measured",
)
SRAM = Figure(
    value=10.0 / 64,
    source="Horowitz, Computing's energy problem, ISSCC 2014: 10 pJ for 64 bits of an 8 kB cache, 45 nm; newer chips "
    "take less, larger buffers more",
)
MAC = Figure(
    value=0.3,
    source="Horowitz, ISSCC 2014: 0.2 pJ for an 8-bit product and 0.1 pJ for a 32-bit sum, 45 nm; newer chips "
    "take less, 16-bit activations more",
)
GIVEN = "given by option"


def _figure(value: float, known: Figure) -> Figure:
    return known if value == known.value else Figure(value=value, source=GIVEN)


def _bounded(self: Picojoules, attribute: Any, value: float) -> None:
    if not 0 <= value < 1e6:
        why, fix = "picojoules are from 0 to a million", "look at the source of your figure"
        raise ConfigError(f"is {value}", who=f"energy.{attribute.name}", why=why, fix=fix)


@frozen(kw_only=True)
class Picojoules:
    """What things take.

    Attributes:
        dram: of a bit between memory and chip. sram: of a bit written to or read from a buffer on the chip.
        mac: of a product of two codes and its sum.
    """

    dram: float = field(default=DRAM.value, validator=_bounded)
    sram: float = field(default=SRAM.value, validator=_bounded)
    mac: float = field(default=MAC.value, validator=_bounded)

    def joules(self, moved: float, macs: float) -> float:
        """Of so many bytes from memory, each written to a buffer and read from it once, and so many products."""
        return 1e-12 * (8 * moved * (self.dram + 2 * self.sram) + macs * self.mac)

    def assumed(self) -> list[str]:
        """Each figure with its source."""
        rows = (
            ("a bit from memory", _figure(self.dram, DRAM)), ("a bit to or from a buffer", _figure(self.sram, SRAM)),
            ("a product and its sum", _figure(self.mac, MAC)),
        )  # fmt: skip
        told = [f"energy: {one.value:.3g} pJ for {what} ({one.source})" for what, one in rows]
        return [*told, "energy is of moving and multiplying alone: leakage, cores and screen are not in it"]
