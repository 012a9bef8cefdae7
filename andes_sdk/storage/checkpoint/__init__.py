"""Checkpoints: ours (`andes.json`) and the published AndesVL layout (`config.json`), read strictly, written whole.

Nothing here runs code from a checkpoint: weights are safetensors, or `.bin` files through torch's weights-only reader.
"""

from andes_sdk.storage.checkpoint.load import load_weights
from andes_sdk.storage.checkpoint.manifest import stored_plan
from andes_sdk.storage.checkpoint.saving import save

__all__ = ["load_weights", "save", "stored_plan"]
