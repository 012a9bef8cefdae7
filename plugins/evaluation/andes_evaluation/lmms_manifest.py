"""What lmms-eval asks of its entry-point group `lmms_eval.models`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model `andes`: a class for tasks of messages, and one for tasks of a text and pictures (`--force_simple`)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    where = "andes_evaluation.lmms_model"
    return ModelManifest(
        model_id="andes", simple_class_path=f"{where}.AndesSimple", chat_class_path=f"{where}.AndesChat"
    )
