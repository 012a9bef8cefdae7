"""Every tensor under its name in one .npz file, which NumPy reads without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from andes_sdk.errors import CheckpointError
from andes_sdk.files import appearing_file


@frozen
class NumpyArchive:
    """An uncompressed .npz."""

    half: bool
    name = "example"

    def export(self, pipeline: Any, path: Path) -> Mapping[str, Any]:
        """The file takes its place when it is complete -> what was written, and the largest rounding error.

        Raises:
            CheckpointError: the file cannot be written.
        """
        kind = np.float16 if self.half else np.float32
        weights = {name: tensor.detach().float().cpu().numpy() for name, tensor in pipeline.model.named_parameters()}
        rounded = {name: array.astype(kind) for name, array in weights.items()}
        try:
            with appearing_file(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **rounded)
        except OSError as error:
            raise CheckpointError("cannot be written", who=str(path), why=str(error), fix="choose another") from None
        errors = [float(np.abs(rounded[name].astype(np.float32) - weights[name]).max(initial=0)) for name in weights]
        return {"tensors": len(weights), "bytes": path.stat().st_size, "max_error": max(errors, default=0.0)}
