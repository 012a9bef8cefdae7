"""Packed models: one file per artefact, mapped, not read; andes-compression writes them."""

from andes_sdk.storage.packing.artefact import Artefact, row_chunk
from andes_sdk.storage.packing.header import Entry, Header, Place, aligned, matrix, raw_dtype
from andes_sdk.storage.packing.modules import open_reference

__all__ = [
    "Artefact",
    "Entry",
    "Header",
    "Place",
    "aligned",
    "matrix",
    "open_reference",
    "raw_dtype",
    "row_chunk",
]
