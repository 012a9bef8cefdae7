"""Messages to tensors, with pictures and what else they hold beside text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import evolve, field, frozen

from andes_sdk.errors import InputError
from andes_sdk.inputs.images import load_image
from andes_sdk.inputs.messages import parse_messages
from andes_sdk.types import Inputs, Media

if TYPE_CHECKING:
    from andes_sdk.inputs.preprocess import Preprocessor
    from andes_sdk.types import Grid, Modality, Rendered, TextSpec, Tokenizer


@frozen
class Pictures:
    """The modality of pictures, "image"; an item is whatever `load_image` takes.

    Attributes:
        preprocessor: picture -> patches, one of the published variants.
    """

    preprocessor: Preprocessor
    name: str = "image"

    def within(self, size: int | None) -> Pictures:
        """The same, with no picture larger in area than a square of this side in pixels; None changes nothing."""
        own = self.preprocessor
        if size is None or size >= own.max_size:
            return self
        return evolve(self, preprocessor=evolve(own, max_size=size, min_size=min(own.min_size, size)))

    def build(self, text: TextSpec) -> None:
        """Nothing: the vision encoder and the projector are slots."""

    def pack(self, items: Sequence[Any], *, allow_remote: bool = False) -> Media:
        """Pictures -> packed patches (N, 3*p*p), and the grid and the rows of each."""
        pairs = [self.preprocessor.patches(load_image(item, allow_remote=allow_remote)) for item in items]
        empty = torch.zeros(0, 3 * self.preprocessor.patch_size**2)
        return self.media(torch.cat([empty, *(patches for patches, _ in pairs)]), [grid for _, grid in pairs])

    def media(self, patches: torch.Tensor, grids: Sequence[Grid]) -> Media:
        """Packed patches of pictures with these grids."""
        rows = tuple(h * w // self.preprocessor.merge**2 for h, w in grids)
        return Media(data=patches, sizes=tuple(grids), rows=rows)


@frozen
class Processor:
    """Everything between a conversation and the model's input tensors.

    Attributes:
        tokenizer: chat template and vocabulary.
        modalities: what packs each kind of item; "image" is always there.
        limit: most rows a prompt may have (the language model's positions).
    """

    tokenizer: Tokenizer
    modalities: Mapping[str, Modality]
    limit: int = field(default=1 << 30)

    @property
    def pictures(self) -> Pictures:
        """The modality of pictures."""
        return cast("Pictures", self.modalities["image"])

    @property
    def preprocessor(self) -> Preprocessor:
        """Picture -> patches, one of the published variants."""
        return self.pictures.preprocessor

    def prepare(
        self,
        messages: Any,
        *,
        think: bool = False,
        generate: bool = True,
        allow_remote: bool = False,
        image_size: int | None = None,
    ) -> Inputs:
        """A conversation -> `Inputs`.

        Args:
            messages: OpenAI-style messages, or one string.
            think: prefill `<think>` (Thinking mode).
            generate: end with the assistant's header; False for training samples.
            allow_remote: fetch http(s) pictures, and other items from addresses.
            image_size: as in `GenerationOptions`.

        Raises:
            InputError: a message, picture, other item or length that cannot be used.
        """
        start = time.perf_counter()
        turns, items = parse_messages(messages, self.modalities)
        packers = {**self.modalities, "image": self.pictures.within(image_size)}
        media = {kind: packers[kind].pack(some, allow_remote=allow_remote) for kind, some in items.items()}
        rendered = self.tokenizer.render(turns, think=think, generate=generate)
        ids, supervised = self.expand(rendered, media)
        if len(ids) > self.limit:
            what = f"the prompt has {len(ids)} tokens, the model takes {self.limit}"
            raise InputError(what, fix="send fewer or smaller pictures (image_size, --image-size), or less text")
        return Inputs(
            torch.tensor(ids, dtype=torch.int64), media, torch.tensor(supervised, dtype=torch.bool), rendered.prefix,
            time.perf_counter() - start,
        )  # fmt: skip

    def expand(self, rendered: Rendered, media: Mapping[str, Media]) -> tuple[list[int], list[bool]]:
        """Repeat each placeholder once per row that its item becomes.

        Raises:
            InputError: the chat template wrote more or fewer placeholders than there are items.
        """
        marks = {self.tokenizer.placeholder(kind): kind for kind in self.modalities}
        counts = {kind: iter(media[kind].rows if kind in media else ()) for kind in marks.values()}
        ids: list[int] = []
        supervised: list[bool] = []
        for token, flag in zip(rendered.ids, rendered.supervised, strict=True):
            kind = marks.get(token)
            repeat = 1 if kind is None else next(counts[kind], None)
            if repeat is None:
                raise InputError(f"the chat template wrote more {kind} tokens than there are items of that kind")
            ids += [token] * repeat
            supervised += [flag] * repeat
        for kind, left in counts.items():
            if next(left, None) is not None:
                fix = "report it to the tokenizer's author"
                raise InputError(f"the chat template left out a token of {kind}", fix=fix)
        return ids, supervised
