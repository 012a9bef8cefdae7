"""GGUF, the files of llama.cpp: language models read from them and written to them, as two plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs.validators import in_

from andes_sdk import hookimpl

from .options import TYPES

if TYPE_CHECKING:
    from andes_qwen3.decoder import Decoder

    from andes_sdk.plan import Plan
    from andes_sdk.types import Exporter, Files

    from .tokenizer import GgufTokenizer


@frozen(eq=False, kw_only=True)
class Gguf:
    """A Llama, Qwen2 or Qwen3 file. Shortest use: `Pipeline.from_plugins([..., {"gguf": {"path": "model.gguf"}}])`."""

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"path": str(Path(__file__).parent / "data" / "tiny.gguf")}

    path: str = field(default="", metadata={"help": "the .gguf file; not needed beside a checkpoint", "local": True})
    config: Mapping[str, object] = field(
        factory=dict, metadata={"help": "sizes of the model; read from the file, and kept in checkpoints"}
    )
    image_token: str = field(default="", metadata={"help": "control token that stands for pictures; empty: a spare"})
    chat_template: str = field(default="", metadata={"help": "Jinja text that replaces the file's chat template"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute layers in the backward pass"})

    def __attrs_post_init__(self) -> None:
        from .architecture import read_options

        object.__setattr__(self, "config", read_options(self.path, self.config))

    @hookimpl
    def andes_language_model(self) -> Decoder:
        """The file's weights; without a file, or on the meta device, nothing is read."""
        from .model import build

        return build(self.config, self.path, gradient_checkpointing=self.gradient_checkpointing)

    @hookimpl
    def andes_tokenizer(self, files: Files | None) -> GgufTokenizer:
        """The file's, else the checkpoint's."""
        from .tokenizer import find

        return find(self.path, files, image_token=self.image_token, template=self.chat_template)

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Architecture, and where weights and tokenizer come from."""
        return {"architecture": str(self.config["model_type"]), "file": self.path or "none: the checkpoint's weights"}


@frozen(eq=False, kw_only=True)
class GgufExport:
    """Writes the language model for llama.cpp. Shortest use: `Pipeline.from_plugins([..., "gguf-export"])`."""

    contract = "1.1"
    companions: ClassVar[Sequence[object]] = ({"gguf": {"path": str(Path(__file__).parent / "data" / "tiny.gguf")}},)

    type: str = field(default="auto", validator=in_(TYPES), metadata={"help": f"of the matrices: {', '.join(TYPES)}"})
    embedding: str = field(
        default="", validator=in_(("", *TYPES)), metadata={"help": "of embedding and head; empty: as type, or F16"}
    )

    @hookimpl
    def andes_exporters(self) -> Sequence[Exporter]:
        """One exporter, named "gguf"."""
        from .export import GgufExporter

        return [GgufExporter(type=self.type, embedding=self.embedding)]
