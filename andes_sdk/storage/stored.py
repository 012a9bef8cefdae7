"""What a model is stored in: nothing, a checkpoint folder, or what a plugin opens. Opening reads the plan once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

from andes_sdk.files import FolderFiles
from andes_sdk.plan import Plan

if TYPE_CHECKING:
    from andes_sdk.assembling.extending import Copied
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Format, Packed


class Build(Protocol):
    """Builds the modules on torch's default device.

    Hollow, they have no memory for what is to be read into them. `packed` says that nothing will be: the weights stay
    in a packed file.
    """

    def __call__(self, *, hollow: bool = False, packed: bool = False) -> VisionLanguageModel:
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


@runtime_checkable
class PackedStored(Stored, Protocol):
    """A packed model, mapped once the formats of all plugins are known."""

    @property
    def artefact(self) -> Packed | None:
        """What `map` made, or None before it."""

    def map(self, formats: Iterable[Format], *, verify: bool = False) -> PackedStored:
        """The same, mapped.

        Args:
            formats: of plugins.
            verify: read everything once and compare the checksums.

        Raises:
            CheckpointError: damaged, or in formats that are not installed here.
        """

    def attached(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules without weights: each is read from the file when it is used."""


PluginItems = Sequence[Mapping[str, Mapping[str, Any]]]
"""`{name: options}` of each plugin."""


class Opener(Protocol):
    """A module that opens files of one suffix (entry points of `hookspecs.OPENERS`)."""

    @property
    def MAGIC(self) -> bytes:
        """The first bytes of such a file, by which it is known whatever its name."""

    def open_file(self, path: Path) -> Stored | PluginItems:
        """What is stored, or the plugins that read the file themselves; no weight is read.

        Raises:
            CheckpointError: it is no such file, or damaged.
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
    def plan_file(self) -> Path:
        """The file that holds the plan, or the configuration that it was made from."""
        from andes_sdk.storage.checkpoint.manifest import MANIFEST

        own = self.folder / MANIFEST
        return own if own.is_file() else self.folder / "config.json"

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
