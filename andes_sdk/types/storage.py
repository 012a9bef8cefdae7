"""What reads and writes checkpoints of other people's layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan


class PublishedLayout(Protocol):
    """A published layout of checkpoints: its `config.json` to plugins, and modules back to such a file."""

    def plugin_items(self, config: Mapping[str, Any], *, who: str) -> Sequence[Mapping[str, Mapping[str, Any]]]:
        """Plugins with options that build the modules of a `config.json`.

        Raises:
            CheckpointError: parts that are absent or cannot be; `who` names the file.
        """

    def dtype(self, config: Mapping[str, Any], *, who: str) -> str:
        """Precision that it states."""

    def same_modules(self, config: Mapping[str, Any], plan: Plan) -> bool:
        """Whether it describes the modules of this plan."""

    def config_of(self, model: VisionLanguageModel, plan: Plan, *, dtype: str) -> dict[str, Any] | None:
        """A `config.json` for these modules, or None where this layout cannot describe them."""

    def side_files(self, folder: Path) -> Sequence[Path]:
        """Files of a published checkpoint that hold no weights and travel with it, `config.json` among them."""
