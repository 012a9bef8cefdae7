"""What `Pipeline.from_pretrained` opens when it gets a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

MAGIC = b"GGUF"


def open_file(path: Path) -> Sequence[Mapping[str, Mapping[str, object]]]:
    """The plugin that reads the file; encoder and projector are the caller's to add."""
    return [{"gguf": {"path": str(path.absolute())}}]
