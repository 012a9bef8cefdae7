"""The processor: conversations and pictures to the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from andes_sdk.errors import InputError
from andes_sdk.inputs.messages import parse_messages
from andes_sdk.inputs.processor import Processor
from andes_sdk.types import Media, Rendered


class AndesVLProcessor(ProcessorMixin):
    """Conversations and pictures to the model's inputs, through `andes_sdk.inputs.processor.Processor`."""

    def __init__(self, processor: Processor, folder: Path) -> None:
        self.processor = processor
        self.folder = folder
        self.chat_template = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> AndesVLProcessor:
        """From a checkpoint folder in either layout; `image={...}` gives options of the preprocessor."""
        from andes_sdk.assembling.building import build_processor
        from andes_sdk.pipeline import Pipeline
        from andes_sdk.storage.checkpoint import stored_plan

        folder = Path(pretrained_model_name_or_path)
        plan = stored_plan(folder)
        pipeline = Pipeline.from_plan(plan, weights=folder)
        return cls(build_processor(pipeline.meta_model(), pipeline.plan), folder)

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' own tokenizer of the folder, for text that is already rendered."""
        return AutoTokenizer.from_pretrained(self.folder)

    @property
    def model_input_names(self) -> list[str]:
        """What `apply_chat_template` and a call return."""
        return ["input_ids", "attention_mask", "pixel_values", "image_grid_hw"]

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        enable_thinking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One conversation or a list of them -> text, or with `tokenize` the model's inputs (left-padded tensors).

        Text cannot tell a special token from the same characters typed by a user; `tokenize=True` can.
        """
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        if chat_template is not None:
            options = {"add_generation_prompt": add_generation_prompt, "enable_thinking": enable_thinking}
            return self.tokenizer.apply_chat_template(conversation, chat_template, tokenize=tokenize, **options)
        all_of_them = conversation if several else [conversation]
        if not tokenize:
            texts = [self._text(one, think=enable_thinking, generate=add_generation_prompt) for one in all_of_them]
            return texts if several else texts[0]
        inputs = [
            self.processor.prepare(one, think=enable_thinking, generate=add_generation_prompt) for one in all_of_them
        ]
        return self._batch(
            [i.ids.tolist() for i in inputs],
            [i.media["image"] for i in inputs if "image" in i.media],
        )

    def _text(self, messages: Any, *, think: bool, generate: bool) -> str:
        """What our own template writes, with one picture token for each picture."""
        turns, _ = parse_messages(messages, self.processor.modalities)
        rendered = self.processor.tokenizer.render(turns, think=think, generate=generate)
        return str(self.tokenizer.decode(list(rendered.ids), skip_special_tokens=False))

    def __call__(self, text: str | Sequence[str] = "", images: Any = None, **kwargs: Any) -> BatchFeature:
        """Rendered text, one picture token per picture, and the pictures in order -> the model's inputs."""
        texts = [text] if isinstance(text, str) else list(text)
        flat = _flat(images)
        pictures = self.processor.pictures
        media = pictures.pack(flat)
        left, rows = media.sizes, []
        for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]:
            count = ids.count(self.processor.tokenizer.placeholder("image"))
            rendered = Rendered(ids=tuple(ids), supervised=(False,) * len(ids))
            own = pictures.media(media.data, [(h, w) for h, w in left[:count]])
            rows.append(self.processor.expand(rendered, {"image": own})[0])
            left = left[count:]
        if left:
            raise InputError(f"{len(left)} pictures without a token", fix="write one <|vision_pad|> per picture")
        return self._batch(rows, [media] if flat else [])

    def _batch(self, rows: list[list[int]], pictures: Sequence[Media]) -> BatchFeature:
        longest = max(map(len, rows), default=0)
        pad = self.processor.tokenizer.pad
        data: dict[str, Any] = {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        if pictures:
            media = Media.join(pictures)
            data |= {"pixel_values": media.data, "image_grid_hw": torch.tensor([list(size) for size in media.sizes])}
        return BatchFeature(data)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the tokenizer's files; sizes and colours are the encoder's and stand in the model's configuration."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.processor.tokenizer.save(folder)
        return []


def _flat(images: Any) -> list[Any]:
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [image for item in images for image in _flat(item)]
