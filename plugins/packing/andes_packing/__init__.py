"""Packed models: one file per artefact, mapped, not read; andes-compression writes them."""

from andes_packing.artefact import Artefact, row_chunk
from andes_packing.header import Entry, Header, Place, aligned, is_artefact, matrix, raw_dtype

__all__ = ["Artefact", "Entry", "Header", "Place", "aligned", "is_artefact", "matrix", "raw_dtype", "row_chunk"]
