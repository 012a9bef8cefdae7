"""Messages and pictures to tensors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen

from andes_sdk.errors import InputError
from andes_sdk.inputs.images import load_image
from andes_sdk.inputs.messages import parse_messages
from andes_sdk.types import Inputs

if TYPE_CHECKING:
    from PIL.Image import Image

    from andes_sdk.inputs.preprocess import Preprocessor
    from andes_sdk.types import Grid, Rendered, Tokenizer


@frozen
class Processor:
    """Everything between a conversation and the model's input tensors.

    Attributes:
        tokenizer: chat template and vocabulary.
        preprocessor: picture -> patches, one of the published variants.
        limit: most rows a prompt may have (the language model's positions).
    """

    tokenizer: Tokenizer
    preprocessor: Preprocessor
    limit: int = field(default=1 << 30)

    def prepare(
        self, messages: Any, *, think: bool = False, generate: bool = True, allow_remote: bool = False
    ) -> Inputs:
        """A conversation -> `Inputs`.

        Args:
            messages: OpenAI-style messages, or one string.
            think: prefill `<think>` (Thinking mode).
            generate: end with the assistant's header; False for training samples.
            allow_remote: fetch http(s) pictures.

        Raises:
            InputError: a message, picture or length that cannot be used.
        """
        start = time.perf_counter()
        turns, sources = parse_messages(messages)
        images = [load_image(source, allow_remote=allow_remote) for source in sources]
        rendered = self.tokenizer.render(turns, think=think, generate=generate)
        patches, grids = self.pixels(images)
        ids, supervised = self.expand(rendered, grids)
        if len(ids) > self.limit:
            raise InputError(
                f"the prompt has {len(ids)} tokens, the model takes {self.limit}",
                fix="send fewer or smaller pictures (image.max_size), or less text",
            )
        return Inputs(
            torch.tensor(ids, dtype=torch.int64),
            patches,
            grids,
            torch.tensor(supervised, dtype=torch.bool),
            rendered.prefix,
            time.perf_counter() - start,
        )

    def pixels(self, images: Sequence[Image]) -> tuple[torch.Tensor | None, tuple[Grid, ...]]:
        """Pictures -> packed patches (N, 3*p*p) and one grid each; None without pictures."""
        if not images:
            return None, ()
        pairs = [self.preprocessor.patches(image) for image in images]
        return torch.cat([patches for patches, _ in pairs]), tuple(grid for _, grid in pairs)

    def expand(self, rendered: Rendered, grids: Sequence[Grid]) -> tuple[list[int], list[bool]]:
        """Repeat each image token once per row that the projector will give for that picture."""
        merge = self.preprocessor.merge
        counts = iter([h * w // merge**2 for h, w in grids])
        ids: list[int] = []
        supervised: list[bool] = []
        for token, flag in zip(rendered.ids, rendered.supervised, strict=True):
            repeat = next(counts, 0) if token == self.tokenizer.image_token else 1
            if not repeat:
                raise InputError("the chat template wrote more image tokens than there are pictures")
            ids += [token] * repeat
            supervised += [flag] * repeat
        if next(counts, None) is not None:
            raise InputError("the chat template left out an image token", fix="report it to the tokenizer's author")
        return ids, supervised
