"""The weights of andes-nano: a model of the AndesVL architecture that reads, points and answers about pictures."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent


def instruct() -> Path:
    """Folder of andes-nano, the model that answers at once."""
    return HERE / "instruct"
