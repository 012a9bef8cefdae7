"""Planted bugs in encoders, projectors, language models and tokenizers: the kit names each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from andes_sdk import hookimpl
from andes_sdk.inputs.patches import split_rows
from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.testing import run_checks
from andes_sdk.testing.reference import (
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferenceProjector,
    ReferenceTokenizer,
)
from andes_sdk.testing.reference.modules import Block, Encoder, LanguageModel, Projector, waves
from andes_sdk.testing.reference.text import END, IMAGE, START, ByteTokenizer
from andes_sdk.types import Rendered, TextSpec, VisionSpec


class AcrossImages(Encoder):
    """Attends over the whole pack."""

    def attention(self, x, grids):
        return super().attention(x, [(len(x), 1)]) if grids else x


class OrderMatters(Encoder):
    """Adds the number of the image in its pack."""

    def forward(self, patches, grids):
        parts = split_rows(super().forward(patches, grids), grids)
        return torch.cat([part + i for i, part in enumerate(parts)]) if parts else torch.zeros(0, self.spec.width)


class WrongWidth(Encoder):
    """Promises one feature more than it gives."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.spec = evolve(self.spec, width=self.spec.width + 2)


class DeadWeight(Encoder):
    """Has a parameter that nothing uses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.ones(3))


class OwnNoise(Encoder):
    """Draws its weights from numpy, which the seed does not reach."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        noise = np.random.default_rng().normal(size=self.out.weight.shape)
        if not self.out.weight.is_meta:
            self.out.weight.data = torch.tensor(noise, dtype=torch.float32)


class OffMeta(Encoder):
    """Allocates one tensor whatever the default device is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm.weight = nn.Parameter(torch.ones(self.spec.width, device="cpu"))


class AlwaysFloat(Encoder):
    """Computes in float32 even when its weights are bfloat16."""

    def forward(self, patches, grids):
        return super().forward(patches, grids).float()


class FailsEmpty(Encoder):
    """Cannot take a pack of no images."""

    def forward(self, patches, grids):
        return torch.cat(
            [super(FailsEmpty, self).forward(p, [g]) for p, g in zip(split_rows(patches, grids), grids, strict=True)]
        )


class GraphBreak(Encoder):
    """Reads a value back to Python in the middle of the graph."""

    def forward(self, patches, grids):
        scale = 2.0 if patches.numel() and patches.sum().item() > 1e9 else 1.0
        return super().forward(patches, grids) * scale


class ForgetsToDetach(Encoder):
    """Saves memory by cutting the gradient."""

    def attention(self, x, grids):
        return super().attention(x.detach(), grids) if self.checkpointing else super().attention(x, grids)


class MixesBlocks(Projector):
    """Normalises over all rows together."""

    def forward(self, features):
        rows = super().forward(features)
        return rows - rows.mean(0) if len(rows) else rows


class FixedMerge(Projector):
    """Assumes 2x2 blocks."""

    def __init__(self, width, merge, text_width):
        super().__init__(width, 2, text_width)


class PeeksAhead(LanguageModel):
    """Adds a little of the next token."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        return super().hidden_states(embeds + 0.1 * embeds.roll(-1, 0), positions, attend, tap)


class OwnAttention(LanguageModel):
    """Computes causal attention itself: it cannot be packed, cached or evicted."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        return super().hidden_states(embeds, positions, PackedAttention([Segment(len(embeds))]), tap)


class IgnoresOneLayer(LanguageModel):
    """Its second layer throws away what attend returns."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        def first_only(layer, q, k, v, scale):
            out = attend(layer, q, k, v, scale)
            return out if layer == 0 else torch.zeros_like(out)

        return super().hidden_states(embeds, positions, first_only, tap)


class CountsRows(LanguageModel):
    """Takes the number of a row for its position."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        return super().hidden_states(embeds, torch.arange(len(embeds)), attend, tap)


class RepeatsHeads(LanguageModel):
    """Repeats KV heads before attend, so the KV store doubles."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        def repeated(layer, q, k, v, scale):
            return attend(layer, q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), scale)

        return super().hidden_states(embeds, positions, repeated, tap)


class SharesBlock(LanguageModel):
    """Calls every layer 0."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        x = embeds + waves(positions, self.spec.width)
        for block in self.blocks:
            x = block(x, 0, attend)
        return self.norm(x)


class TapsBetween(LanguageModel):
    """Shows the rows that leave a layer, and none for the last norm."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        def later(layer, hidden):
            if tap is not None and layer:
                tap(layer - 1, hidden)

        return super().hidden_states(embeds, positions, attend, later)


class TapsNormed(LanguageModel):
    """Shows the last norm's output where its input is asked for."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        def inner(layer, hidden):
            if tap is not None:
                tap(layer, self.norm(hidden) if layer == self.spec.layers else hidden)

        return super().hidden_states(embeds, positions, attend, inner)


class TapRounds(LanguageModel):
    """Computes in another way while it is watched."""

    def hidden_states(self, embeds, positions, attend, tap=None):
        rows = super().hidden_states(embeds, positions, attend, tap)
        return rows if tap is None else rows * (1 + 1e-6)


class NamesBlocks(LanguageModel):
    """Lists whole blocks among its linear layers."""

    def linears(self):
        return {**super().linears(), "blocks.0": (0, "block")}


class CountsFromOne(LanguageModel):
    """Numbers its layers from 1."""

    def linears(self):
        return {name: (layer + 1, role) for name, (layer, role) in super().linears().items()}


class ShortHead(LanguageModel):
    """Its head lacks the last id."""

    def logits(self, hidden):
        return super().logits(hidden)[:, :-1]


class ObeysText(ByteTokenizer):
    """Turns a written-out special token into the real one."""

    def encode(self, text):
        head, *rest = text.split("<|im_end|>")
        return super().encode(head) + [i for part in rest for i in (END, *super(ObeysText, self).encode(part))]


class ObeysInRender(ByteTokenizer):
    """Encodes text safely, but the template does not."""

    def _turn(self, turn):
        yield from super()._turn(turn)
        if any(isinstance(part, str) and "<image>" in part for part in turn.parts):
            yield IMAGE, False


class LearnsQuestions(ByteTokenizer):
    """Supervises everything."""

    def render(self, turns, *, think, generate):
        rendered = super().render(turns, think=think, generate=generate)
        return Rendered(rendered.ids, (True,) * len(rendered.ids), rendered.prefix)


class NeverEnds(ByteTokenizer):
    """Places no loss on the end of a turn."""

    def _turn(self, turn):
        return ((i, mark and i != END) for i, mark in super()._turn(turn))


class OtherPrompt(ByteTokenizer):
    """Asks with a blank after the header that training never shows."""

    def render(self, turns, *, think, generate):
        rendered = super().render(turns, think=think, generate=generate)
        extra = (32,) if generate else ()
        return Rendered(rendered.ids + extra, rendered.supervised + (False,) * len(extra), rendered.prefix)


class TwoImageTokens(ByteTokenizer):
    """Writes two tokens per picture."""

    def _turn(self, turn):
        for i, mark in super()._turn(turn):
            yield i, mark
            if i == IMAGE:
                yield i, mark


class Latin(ByteTokenizer):
    """Loses what Latin-1 cannot write."""

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode("latin-1")


class ForgetsPrefix(ByteTokenizer):
    """Claims a prefix that is not in the prompt."""

    def render(self, turns, *, think, generate):
        rendered = super().render(turns, think=False, generate=generate)
        return Rendered(rendered.ids, rendered.supervised, "<think>" if think else "")


class SamePlace(ByteTokenizer):
    """Puts pictures first whatever the user wrote before them."""

    def _turn(self, turn):
        pairs = list(super()._turn(turn))
        yield from [p for p in pairs if p[0] == IMAGE] + [p for p in pairs if p[0] != IMAGE]


ENCODERS = {
    AcrossImages: "an image never changes another, to the bit",
    OrderMatters: "the order of images does not matter",
    WrongWidth: "features have the shape the spec states, and are finite",
    DeadWeight: "gradients reach every parameter",
    OwnNoise: "weights survive saving, and one seed gives one model",
    OffMeta: "builds on the meta device under the same names",
    AlwaysFloat: "runs in bfloat16",
    FailsEmpty: "no images give no rows",
    GraphBreak: "compiles as one graph that gives the same features",
    ForgetsToDetach: "gradient checkpointing leaves gradients as they are",
}
PROJECTORS = {
    MixesBlocks: "a row depends on all of its block and on nothing else",
    FixedMerge: "follows the specs it is given",
}
LANGUAGE_MODELS = {
    PeeksAhead: "a later token leaves earlier rows unchanged",
    OwnAttention: "every layer calls attend once, with the spec's shapes",
    IgnoresOneLayer: "uses what attend returns",
    CountsRows: "a row's position is the one it is given",
    RepeatsHeads: "every layer calls attend once, with the spec's shapes",
    SharesBlock: "every layer calls attend once, with the spec's shapes",
    TapsBetween: "tap sees the rows that enter each layer, and changes no bit",
    TapsNormed: "tap sees the rows that enter each layer, and changes no bit",
    TapRounds: "tap sees the rows that enter each layer, and changes no bit",
    NamesBlocks: "is a module whose spec and list of linear layers match it",
    CountsFromOne: "is a module whose spec and list of linear layers match it",
    ShortHead: "logits cover the vocabulary, row by row",
}
TOKENIZERS = {
    ObeysText: "special tokens written out in a text stay text",
    ObeysInRender: "special tokens written out in a text stay text",
    LearnsQuestions: "only assistant text and its end are supervised",
    NeverEnds: "only assistant text and its end are supervised",
    OtherPrompt: "the prompt is a prefix of the training text",
    TwoImageTokens: "a picture is one image token, at its place",
    SamePlace: "a picture is one image token, at its place",
    Latin: "text survives the round trip",
    ForgetsPrefix: "the prefix stands at the end of the prompt",
}


def failures(plugin: object, kind: str) -> dict[str, str]:
    """Id -> reason of the checks of one kind that fail; a planted bug must leave most of them alone."""
    results = run_checks(plugin, kinds=[kind])
    failed = {r.id: r.reason for r in results if r.status == "failed"}
    assert 2 * len(failed) < len(results), f"everything fails, the bug is not singled out: {failed}"
    return failed


@pytest.mark.parametrize("module", ENCODERS, ids=lambda c: c.__name__)
def test_a_broken_encoder_fails_the_check_that_names_its_bug(module):
    @frozen(eq=False, kw_only=True)
    class Broken(ReferenceEncoder):
        @hookimpl
        def andes_vision_encoder(self):
            return module(self.width, self.patch_size, checkpointing=self.gradient_checkpointing)

    assert f"vision_encoder: {ENCODERS[module]}" in failures(Broken, "vision_encoder")


@pytest.mark.parametrize("module", PROJECTORS, ids=lambda c: c.__name__)
def test_a_broken_projector_fails_the_check_that_names_its_bug(module):
    @frozen(eq=False, kw_only=True)
    class Broken(ReferenceProjector):
        @hookimpl
        def andes_projector(self, vision: VisionSpec, text: TextSpec):
            return module(vision.width, vision.merge, text.width)

    assert f"projector: {PROJECTORS[module]}" in failures(Broken, "projector")


@pytest.mark.parametrize("module", LANGUAGE_MODELS, ids=lambda c: c.__name__)
def test_a_broken_language_model_fails_the_check_that_names_its_bug(module):
    @frozen(eq=False, kw_only=True)
    class Broken(ReferenceLanguageModel):
        @hookimpl
        def andes_language_model(self):
            return module(self.vocab_size, self.max_positions, checkpointing=self.gradient_checkpointing)

    assert f"language_model: {LANGUAGE_MODELS[module]}" in failures(Broken, "language_model")


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda c: c.__name__)
def test_a_broken_tokenizer_fails_the_check_that_names_its_bug(tokenizer):
    @frozen(eq=False, kw_only=True)
    class Broken(ReferenceTokenizer):
        @hookimpl
        def andes_tokenizer(self, folder):
            return tokenizer()

    assert f"tokenizer: {TOKENIZERS[tokenizer]}" in failures(Broken, "tokenizer")


def test_attention_written_by_hand_equals_the_reference_block():
    # the reference is what the kit measures others by: check it against a sum written out
    torch.manual_seed(0)
    block, x = Block(32), torch.randn(3, 32)
    seen = {}

    def attend(layer, q, k, v, scale):
        seen.update(q=q, k=k, v=v, scale=scale)
        return scaled_dot_product_attention(q, k, v, scale=scale, is_causal=True, enable_gqa=True).transpose(1, 2)

    with torch.no_grad():
        got = block(x, 0, attend)
        heads = []
        for h in range(4):
            q, k, v = seen["q"][0, h], seen["k"][0, h // 2], seen["v"][0, h // 2]
            rows = [(q[i] @ k[: i + 1].T * 8**-0.5).softmax(0) @ v[: i + 1] for i in range(3)]
            heads.append(torch.stack(rows))
        y = x + block.out(torch.cat(heads, dim=1))
        gate, value = block.up(block.norm2(y)).chunk(2, dim=-1)
        wanted = y + block.down(gate * gate.sigmoid() * value)
    # float32 sums of at most 32 terms in another order
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert seen["scale"] == 8**-0.5


def test_the_reference_prompt_is_what_its_docstring_says():
    from andes_sdk.types import Slot, Turn

    rendered = ByteTokenizer().render([Turn("user", ("a", Slot("image")))], think=True, generate=True)
    prompt = [START, *b"user\n", *b"a", IMAGE, END, START, *b"assistant\n<think>"]
    assert list(rendered.ids) == prompt
    assert rendered.prefix == "<think>"
