"""Packed models: a recipe of formats, one file per artefact, and the bits that it takes."""

from andes_sdk.storage.packing.artefact import Artefact
from andes_sdk.storage.packing.bpw import Report, of_artefact, of_checkpoint, of_model
from andes_sdk.storage.packing.header import is_artefact
from andes_sdk.storage.packing.pack import pack_model
from andes_sdk.storage.packing.recipe import default_recipe

__all__ = [
    "Artefact",
    "Report",
    "default_recipe",
    "is_artefact",
    "of_artefact",
    "of_checkpoint",
    "of_model",
    "pack_model",
]
