"""Exporters: files of other runtimes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require
from andes_sdk.types import Exporter

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject


@check("exporters", "every exporter has a name of its own")
def _exporter_names(subject: Subject) -> None:
    subject.objects("andes_exporters", Exporter)


@check("exporters", "writes its file and nothing beside it, and leaves the model as it was")
def _exports(subject: Subject) -> None:
    for exporter in subject.objects("andes_exporters", Exporter):
        pipe = subject.pipeline()
        before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
        with TemporaryDirectory() as folder:
            path = Path(folder) / "made" / "model.out"
            told = exporter.export(pipe, path)
            found = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            require(found == [path.name], f"exporter {exporter.name!r} writes {found}, not {path.name!r} alone")
            exporter.export(pipe, path)  # a second time over the first
        require(isinstance(told, Mapping) and told, f"exporter {exporter.name!r} tells {told!r}, not facts")
        try:
            json.dumps(told)
        except (TypeError, ValueError) as error:
            require(False, f"the report of exporter {exporter.name!r} is not plain data: {error}")
        after = pipe.model.state_dict()
        changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        require(not changed, f"exporter {exporter.name!r} changes {', '.join(changed[:5])}")
