"""What a model perceives beside text: packed inputs of one kind, and what makes them and rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .modules import TextSpec


@frozen(eq=False, kw_only=True)
class Media:
    """All items of one kind in a prompt or a batch, in order.

    Attributes:
        data: their inputs, one after another along the first axis. Pictures: patches (N, 3*p*p) float32.
        sizes: of each item, as its module takes it; the product of its numbers is the rows of `data` that are the
            item's. Pictures: the grid (rows, columns) of patches.
        rows: how many rows of the language model each item becomes.
    """

    data: Tensor
    sizes: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]

    @staticmethod
    def join(parts: Sequence[Media]) -> Media:
        """Media of one kind, at least one, as one."""
        import torch

        return Media(
            data=torch.cat([part.data for part in parts]),
            sizes=tuple(size for part in parts for size in part.sizes),
            rows=tuple(rows for part in parts for rows in part.rows),
        )


@runtime_checkable
class Modality(Protocol):
    """A sense: what packs items of one kind, and the module that turns them into rows for the language model.

    A message shows an item as `{"type": name, name: item}`. The tokenizer must have a `placeholder` of that name.
    """

    @property
    def name(self) -> str:
        """A Python identifier, unique in its collection, and not "text"; "image" is the core's."""

    def build(self, text: TextSpec) -> nn.Module | None:
        """Its encoder and projector as one module, called with (data, sizes) of `Media` -> (M, D), M all its rows.

        Saved under `modalities.<name>.`. Built on torch's default device, which may be "meta", as slots are.
        No items give (0, D), connected to every parameter. None is for pictures alone, whose modules are slots.
        """

    def pack(self, items: Sequence[Any], *, allow_remote: bool = False) -> Media:
        """Items as messages hold them -> their inputs; no items -> no rows, `data` with the other axes as ever.

        Args:
            allow_remote: whether an item may be fetched from an address that a message names.

        Raises:
            InputError: an item that cannot be used.
        """
