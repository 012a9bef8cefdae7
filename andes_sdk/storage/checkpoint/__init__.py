"""Checkpoints: ours (`andes.json`) and the published AndesVL layout (`config.json`), read strictly, written whole.

Nothing here runs code from a checkpoint: weights are safetensors, or `.bin` files through torch's weights-only reader.
"""

from andes_sdk.storage.checkpoint.files import layout, scan
from andes_sdk.storage.checkpoint.load import aliases, assign, check_weights, load_weights, needed, refuse_meta_buffers
from andes_sdk.storage.checkpoint.manifest import stored_plan
from andes_sdk.storage.checkpoint.saving import portable, save
from andes_sdk.storage.checkpoint.shards import stored_tensors

__all__ = [
    "aliases", "assign", "check_weights", "layout", "load_weights", "needed", "portable", "refuse_meta_buffers", "save",
    "scan", "stored_plan", "stored_tensors",
]  # fmt: skip
