"""Fixed inputs for checks: pictures, patches, token ids, conversations, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.types import Inputs

if TYPE_CHECKING:
    from PIL.Image import Image

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Grid, LanguageModel, VisionSpec

BLOCKS = ((1, 2), (2, 2), (3, 1))
"""Rows and columns, in blocks, of the pictures that checks use: none of them the same size, two not square."""


def grids_of(spec: VisionSpec, blocks: Sequence[Grid] = BLOCKS) -> list[Grid]:
    """Patch grids for sizes in blocks."""
    return [(h * spec.merge, w * spec.merge) for h, w in blocks]


def patches_of(spec: VisionSpec, grids: Sequence[Grid], seed: int = 1) -> Tensor:
    """(N, 3*p*p) normal noise, like normalised pixels."""
    count = sum(h * w for h, w in grids)
    return torch.randn(count, 3 * spec.patch_size**2, generator=torch.Generator().manual_seed(seed))


def ids_of(vocab_size: int, count: int, seed: int = 2) -> Tensor:
    """(count,) token ids."""
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 0, size: Grid = (96, 64)) -> Image:
    """A picture of coloured noise."""
    from PIL import Image

    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def conversation(number: int = 0, *, answer: bool = False) -> list[dict[str, Any]]:
    """A question about a picture, with or without its answer."""
    from andes_sdk.inputs.messages import user_message

    questions = ("What is this? Say what this is.", "How many?", "Where is the button, and what does the button do?")
    answers = ("Noise, noise and noise.", "Three.", "Top left; it opens the settings.")
    messages = [user_message(questions[number % 3], [picture(number)])]
    return [*messages, {"role": "assistant", "content": answers[number % 3]}] if answer else messages


def plain_inputs(pipe: Pipeline, count: int, seed: int = 3) -> Inputs:
    """A prompt of random tokens that are no placeholders."""
    ids = ids_of(pipe.tokenizer.vocab_size, count, seed)
    marks = [pipe.tokenizer.placeholder(kind) for kind in pipe.model.kinds]
    other = next(i for i in range(pipe.tokenizer.vocab_size) if i not in marks)
    return Inputs(ids=torch.where(torch.isin(ids, torch.tensor(marks)), other, ids))


@frozen(eq=False)
class MaskedAttention:
    """`Attend` with a (T, T) mask, True where a row may look."""

    mask: Tensor

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""
        grouped = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2)


def hidden(model: LanguageModel, ids: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
    """(T,) ids of packed samples -> (T, D), causal, positions counted per sample."""
    lengths = [len(ids)] if lengths is None else lengths
    segments = [Segment(n) for n in lengths]
    positions = torch.cat([s.positions() for s in segments])
    return model.hidden_states(model.embed(ids), positions, PackedAttention(segments))


@torch.no_grad()
def answer_to_everything(model: VisionLanguageModel, inputs: Inputs) -> Tensor:
    """(T, V): all logits of a prompt with its media in one pass, without a KV store."""
    count, embeds = len(inputs.ids), model.embed(inputs.ids, model.encode(inputs.media))
    return model.logits(model.hidden_states(embeds, torch.arange(count), PackedAttention([Segment(count)])))
