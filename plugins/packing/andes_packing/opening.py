"""What `Pipeline.from_pretrained` opens when it gets a packed file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from andes_packing.artefact import Artefact, StoredFiles
from andes_packing.header import MAGIC, Found, read_header
from andes_sdk.plan import Plan

if TYPE_CHECKING:
    from andes_packing.formats import Format
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.storage.stored import Build

__all__ = ["MAGIC", "PackedFile", "open_file"]


def open_file(path: Path) -> PackedFile:
    """A packed file, whose header is read.

    Raises:
        CheckpointError: this is no packed file, or its header is damaged.
    """
    return PackedFile(read_header(path))


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

    def map(self, formats: Iterable[Format], *, verify: bool = False) -> PackedFile:
        """The same file, mapped; as `Artefact.open`."""
        return attrs.evolve(self, artefact=Artefact.of(self.found, formats=formats, verify=verify))

    @property
    def _mapped(self) -> Artefact:
        assert self.artefact is not None, "map the file first"
        return self.artefact

    @property
    def plan(self) -> Plan:
        """Its plan; what runs dequantised runs in float32."""
        return attrs.evolve(self.found.header.plan, dtype="float32")

    @property
    def files(self) -> StoredFiles:
        """The tokenizer's files inside it."""
        header = self.found.header
        return StoredFiles(self.found.path, header.files, header.nbytes)

    @property
    def source(self) -> str:
        """The file's path."""
        return str(self.found.path)

    def weights(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules with every weight dequantised: the reference for what runs packed."""
        from andes_packing.modules import fill

        return fill(build(hollow=True), self._mapped, device=plan.device, dtype=plan.dtype)

    def attached(self, build: Build, plan: Plan) -> VisionLanguageModel:
        """The modules without weights: each is read from the file when it is used."""
        from andes_packing.modules import attach

        return attach(build(hollow=True, packed=True), self._mapped, dtype=plan.dtype)
