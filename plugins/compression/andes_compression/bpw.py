"""Bits per weight, counted: per group of tensors and for the whole model, on disk and in memory.

Type BPW: bits of a group's tensors (codes, scales, indices, padding) per weight of the group. Model BPW: all bytes
that the weights need, header and alignment too, over all parameters, embeddings too; tied ones count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_packing import Header, aligned
from andes_packing.formats import Format, known
from attrs import frozen

from andes_compression.recipe import GROUPS, LANGUAGE_MODEL, groups

if TYPE_CHECKING:
    from andes_packing import Artefact

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan


@frozen(kw_only=True)
class Group:
    """One group of tensors. `disk` and `memory` are bytes."""

    group: str
    formats: tuple[str, ...]
    tensors: int
    weights: int
    disk: int
    memory: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with type BPW."""
        return {
            "group": self.group,
            "formats": list(self.formats),
            "tensors": self.tensors,
            "weights": self.weights,
            "type_bpw": {"disk": bits(self.disk, self.weights), "memory": bits(self.memory, self.weights)},
            "bytes": {"disk": self.disk, "memory": self.memory},
        }


@frozen(kw_only=True)
class Report:
    """All groups, and the totals.

    Attributes:
        disk, memory: bytes of the model: the groups, and the header and alignment that they need there.
        files: bytes of the tokenizer, in no BPW; None where they were not counted.
    """

    rows: tuple[Group, ...]
    disk: int
    memory: int
    files: int | None = None

    @property
    def weights(self) -> int:
        """Parameters, tied ones once."""
        return sum(r.weights for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        model = {"disk": self.disk, "memory": self.memory}
        language = [r for r in self.rows if r.group in LANGUAGE_MODEL]
        return {
            "groups": [r.to_dict() for r in self.rows],
            "language_model": _summed(language),
            "weights": self.weights,
            "type_bpw": _summed(self.rows)["type_bpw"],
            "model_bpw": {where: bits(size, self.weights) for where, size in model.items()},
            "bytes": {**model, "tokenizer_files": self.files},
        }


def _summed(rows: Iterable[Group]) -> dict[str, Any]:
    rows = tuple(rows)
    weights, disk, memory = (sum(getattr(r, name) for r in rows) for name in ("weights", "disk", "memory"))
    bpw = {"disk": bits(disk, weights), "memory": bits(memory, weights)}
    return {"weights": weights, "type_bpw": bpw, "bytes": {"disk": disk, "memory": memory}}


def bits(size: int, weights: int) -> float:
    """Bytes -> bits per weight; 0 for no weights."""
    return size * 8 / weights if weights else 0.0


def of_artefact(artefact: Artefact) -> Report:
    """What an artefact takes; in memory its weights are mapped as they lie in the file."""
    size = artefact.path.stat().st_size
    return _of_header(artefact.header, artefact.formats, size - artefact.header.nbytes)


def of_model(
    model: VisionLanguageModel, plan: Plan, recipe: Mapping[str, str], *, formats: Iterable[Format] = ()
) -> Report:
    """What a model would take once packed; shapes only, no weights are read and the tokenizer is not counted.

    Args:
        model: on the meta device, or with weights.
        formats: of plugins.

    Raises:
        ConfigError: a recipe that does not fit the model.
    """
    from andes_compression.pack import arrange

    formats = tuple(formats)
    header = arrange(model, recipe, plan, formats=formats)
    return _of_header(header, known(formats), len(header.to_bytes()), counted=False)


def _of_header(header: Header, formats: Mapping[str, Format], head: int, *, counted: bool = True) -> Report:
    disk: dict[str, int] = {}
    memory: dict[str, int] = {}
    for name, entry in header.tensors.items():
        form = formats.get(entry.format)
        disk[name] = entry.nbytes
        memory[name] = form.memory_nbytes(*entry.matrix) if form is not None else entry.nbytes
    facts = {n: (e.group, e.format, e.weights) for n, e in header.tensors.items()}
    return Report(
        rows=_rows(facts, disk, memory),
        disk=head + sum(map(aligned, disk.values())),
        memory=sum(map(aligned, memory.values())),
        files=sum(p.nbytes for p in header.files.values()) if counted else None,
    )


def of_checkpoint(folder: Path, model: VisionLanguageModel, plan: Plan) -> Report:
    """What a checkpoint takes as it is: its weight files, and memory in the plan's dtype.

    Args:
        model: that of the plan; on the meta device will do.

    Raises:
        CheckpointError: its weight files cannot be read.
    """
    import torch

    from andes_sdk.storage.checkpoint import aliases, layout, scan

    tied, group = aliases(model), groups(model)
    item = getattr(torch, plan.dtype).itemsize
    facts: dict[str, tuple[str, str, int]] = {}
    disk: dict[str, int] = {}
    for stored, entry in scan(folder).entries.items():
        name = tied.get(stored, stored)
        if name not in group:
            continue
        count = torch.Size(entry.shape).numel()
        facts[name] = (group[name], str(entry.dtype).removeprefix("torch."), count)
        disk[name] = disk.get(name, 0) + count * entry.dtype.itemsize  # a tied tensor may be stored twice
    memory = {name: count * item for name, (_, _, count) in facts.items()}
    files = layout(folder)[0]
    return Report(
        rows=_rows(facts, disk, memory),
        disk=sum((folder / f).stat().st_size for f in files),
        memory=sum(memory.values()),
    )


def _rows(
    facts: Mapping[str, tuple[str, str, int]], disk: Mapping[str, int], memory: Mapping[str, int]
) -> tuple[Group, ...]:
    present = {group for group, _, _ in facts.values()}
    rows = []
    for group in [g for g in GROUPS if g in present] + sorted(present - set(GROUPS)):
        names = [n for n, fact in facts.items() if fact[0] == group]
        rows.append(
            Group(
                group=group,
                formats=tuple(sorted({facts[n][1] for n in names})),
                tensors=len(names),
                weights=sum(facts[n][2] for n in names),
                disk=sum(disk[n] for n in names),
                memory=sum(memory[n] for n in names),
            )
        )
    return tuple(rows)
