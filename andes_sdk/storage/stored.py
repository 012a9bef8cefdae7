"""What a model is stored in: nothing, a checkpoint folder, or a packed file. Opening reads plan or header once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs
from attrs import field, frozen

from andes_sdk.files import FolderFiles
from andes_sdk.plan import Plan

if TYPE_CHECKING:
    from andes_sdk.assembling.extending import Copied
    from andes_sdk.formats import Format
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.storage.packing.artefact import Artefact
    from andes_sdk.storage.packing.header import Found


class Build(Protocol):
    """Builds the modules on torch's default device; hollow: without memory for what is to be read into them."""

    def __call__(self, *, hollow: bool = False) -> VisionLanguageModel:
        """The modules, after every plugin that changes them."""


class Stored(Protocol):
    """What the weights of a pipeline come from."""

    @property
    def plan(self) -> Plan:
        """The plan that it was saved with, for the CPU and the precision that it is read in."""

    @property
    def files(self) -> FolderFiles | Copied | None:
        """The tokenizer's files, or None."""

    @property
    def folder(self) -> Path | None:
        """The checkpoint folder, if it is one."""

    @property
    def source(self) -> str:
        """Where it lies, for people."""

    def weights(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules with weights, on the plan's device in its precision.

        Raises:
            CheckpointError: naming everything that does not fit the modules.
        """


@frozen
class Random:
    """Nothing is stored: weights are the plugins' own, or random from the plan's seed."""

    plan: Plan
    files: None = None
    folder: None = None

    @property
    def source(self) -> str:
        """Where the weights come from, for people."""
        return f"as the plugins build them, seed {self.plan.seed}"

    def weights(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules as they are built."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            model = build()
        return model.to(device=plan.device, dtype=getattr(torch, plan.dtype)).eval()


@frozen
class Folder:
    """A checkpoint folder, ours or a published one. Made by `open`, or around a plan that is known already."""

    folder: Path
    plan: Plan

    @classmethod
    def open(cls, folder: Path) -> Folder:
        """Read what a folder says of itself; no weight is read.

        Raises:
            CheckpointError: it is no checkpoint, or lacks weight files.
        """
        from andes_sdk.storage.checkpoint.manifest import stored_plan

        return cls(folder, stored_plan(folder))

    @property
    def files(self) -> FolderFiles:
        """The folder's files."""
        return FolderFiles(self.folder)

    @property
    def source(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def weights(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules, filled; as `Stored.weights`."""
        import torch

        from andes_sdk.storage.checkpoint.load import load_weights

        model = build(hollow=True)
        load_weights(model, self.folder, device=plan.device, dtype=getattr(torch, plan.dtype))
        return model.eval()


@frozen(slots=False)
class PackedFile:
    """A packed file: its header is read, its weights are mapped once the formats of all plugins are known.

    Attributes:
        found: the header as it was read.
        artefact: what `map` made of it, or None.
    """

    found: Found
    artefact: Artefact | None = field(default=None, eq=False)
    folder: None = None

    @classmethod
    def open(cls, path: Path) -> PackedFile:
        """Read the header.

        Raises:
            CheckpointError: this is no packed file, or its header is damaged.
        """
        from andes_sdk.storage.packing.header import read_header

        return cls(read_header(path))

    def map(self, formats: Iterable[Format], *, verify: bool = False) -> PackedFile:
        """The same file, mapped; as `Artefact.open`."""
        from andes_sdk.storage.packing.artefact import Artefact

        return attrs.evolve(self, artefact=Artefact.of(self.found, formats=formats, verify=verify))

    @property
    def mapped(self) -> Artefact:
        """The mapped file; `map` comes first."""
        assert self.artefact is not None, "map the file first"
        return self.artefact

    @property
    def plan(self) -> Plan:
        """Its plan; what runs dequantised runs in float32."""
        return attrs.evolve(self.found.header.plan, dtype="float32")

    @property
    def files(self) -> Copied:
        """The tokenizer's files inside it."""
        return self.mapped.files

    @property
    def source(self) -> str:
        """The file's path."""
        return str(self.mapped.path)

    def weights(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules with every weight dequantised: the reference for what runs packed."""
        from andes_sdk.storage.packing.modules import fill

        return fill(build(hollow=True), self.mapped, device=plan.device, dtype=plan.dtype)

    def attached(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules without weights: each is read from the file when it is used."""
        from andes_sdk.storage.packing.modules import attach

        return attach(build(hollow=True), self.mapped, dtype=plan.dtype)
