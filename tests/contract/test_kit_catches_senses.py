"""Planted bugs in modalities: the kit names each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from torch import nn

from andes_sdk import hookimpl
from andes_sdk.errors import InputError
from andes_sdk.testing import run_checks
from andes_sdk.testing.reference import ReferenceModality
from andes_sdk.testing.reference.senses import Audio, Frames
from andes_sdk.testing.reference.text import ByteTokenizer


def building(module):
    """The reference sense with another module."""

    class Special(Audio):
        def build(self, text):
            return module(self.frame, text.width)

    Special.__name__ = module.__name__
    return Special


# ---------------------------------------------------------------- rows and sizes


class OneRowMore(Audio):
    """Promises a row that the module does not give."""

    def pack(self, items, **how):
        media = super().pack(items, **how)
        return evolve(media, rows=tuple(n + 1 for n in media.rows))


class SizesInSamples(Audio):
    """States sizes in samples, the data is in frames."""

    def pack(self, items, **how):
        media = super().pack(items, **how)
        return evolve(media, sizes=tuple((n, self.frame) for (n,) in media.sizes))

    def build(self, text):
        class Lenient(Frames):
            def forward(self, data, sizes):
                return self.embed(data)

        return Lenient(self.frame, text.width)


class OneSizeForAll(Audio):
    """Gives the size of the pack, not of each item."""

    def pack(self, items, **how):
        media = super().pack(items, **how)
        return evolve(media, sizes=((len(media.data),),))


class FlatWhenEmpty(Audio):
    """Packs no items as data of another shape."""

    def pack(self, items, **how):
        media = super().pack(items, **how)
        return media if items else evolve(media, data=torch.zeros(0, self.frame + 1))


class Wide(Frames):
    """Gives rows that do not fit the language model."""

    def __init__(self, frame, width):
        super().__init__(frame, width + 1)


# ---------------------------------------------------------------- neighbours


class Centres(Frames):
    """Takes the mean over the pack away."""

    def forward(self, data, sizes):
        rows = super().forward(data, sizes)
        return rows - rows.mean(0) if len(rows) else rows


class Numbers(Frames):
    """Adds the number of the item in its pack."""

    def forward(self, data, sizes):
        places = [i for i, (n,) in enumerate(sizes) for _ in range(n)]
        return super().forward(data, sizes) + torch.tensor(places)[:, None].to(self.embed.weight.dtype)


class PadsToLongest(Audio):
    """Fills every item up to the longest of the pack."""

    def pack(self, items, **how):
        longest = max(map(len, items), default=0) if all(isinstance(i, list) for i in items) else 0
        filled = [[*i, *[0.0] * (longest - len(i))] for i in items] if longest else items
        return super().pack(filled, **how)


class SortsByLength(Audio):
    """Packs the longest first, and does not say so."""

    def pack(self, items, **how):
        lists = all(isinstance(i, list) for i in items)
        return super().pack(sorted(items, key=len, reverse=True) if lists else items, **how)


class Loudest(Audio):
    """Scales by the loudest sample of all items."""

    def pack(self, items, **how):
        media = super().pack(items, **how)
        return evolve(media, data=media.data / media.data.abs().max()) if len(media.data) else media


# ---------------------------------------------------------------- repeating


class Dithers(Audio):
    """Adds noise against the steps of quantisation."""

    def pack(self, items, **how):
        media = super().pack(items, **how)
        return evolve(media, data=media.data + 1e-6 * torch.randn(media.data.shape))


class AlwaysDrops(Frames):
    """Its dropout knows no evaluation."""

    def forward(self, data, sizes):
        return nn.functional.dropout(super().forward(data, sizes), 0.1, training=True)


class OwnNoise(Frames):
    """Draws its weights from numpy, which the seed does not reach."""

    def __init__(self, frame, width):
        super().__init__(frame, width)
        if not self.embed.weight.is_meta:
            noise = np.random.default_rng().normal(size=self.embed.weight.shape)
            self.embed.weight.data = torch.tensor(noise, dtype=torch.float32)


# ---------------------------------------------------------------- gradients, precision, devices


class Detached(Frames):
    """Cuts the gradient."""

    def forward(self, data, sizes):
        return super().forward(data, sizes).detach() + 0 * self.embed.bias


class Idle(Frames):
    """Has a parameter that nothing uses."""

    def __init__(self, frame, width):
        super().__init__(frame, width)
        self.gain = nn.Parameter(torch.ones(width))


class FreshZeros(Frames):
    """Answers no items with zeros of nowhere."""

    def forward(self, data, sizes):
        return super().forward(data, sizes) if len(data) else data.new_zeros(0, self.embed.out_features)


class OffMeta(Frames):
    """Allocates one tensor whatever the default device is."""

    def __init__(self, frame, width):
        super().__init__(frame, width)
        self.embed.bias = nn.Parameter(torch.zeros(width, device="cpu"))


class AlwaysFloat(Frames):
    """Computes in float32 even when its weights are bfloat16."""

    def forward(self, data, sizes):
        return super().forward(data, sizes).float()


class ForgetsGain(Frames):
    """Keeps a number outside its weights."""

    def __init__(self, frame, width):
        super().__init__(frame, width)
        self.gain = 1.0 if self.embed.weight.is_meta else float(self.embed.weight.detach().sum())

    def forward(self, data, sizes):
        return super().forward(data, sizes) * (1 + self.gain)


# ---------------------------------------------------------------- items and messages


class TakesAnything(Audio):
    """Turns what it cannot read into silence."""

    def pack(self, items, **how):
        return super().pack([i if isinstance(i, list) else [0.0] for i in items], **how)


class Crashes(Audio):
    """Leaves the complaint to Python."""

    def pack(self, items, **how):
        try:
            return super().pack(items, **how)
        except InputError as error:
            raise TypeError(str(error)) from error


class NeverRemote(Audio):
    """Does not know of addresses in messages."""

    def pack(self, items):
        return super().pack(items)


NAMES = "every modality has a name of its own, and a placeholder"
AGREE = "sizes and rows agree with what the module returns"
ORDER = "items keep their order, and none changes another"
REPEATS = "the same items give the same rows, and one seed the same weights, to the bit"
REFUSED = "what is no item is refused"
GRADIENTS = "gradients reach every parameter, without items too"
MODULE = "builds on the meta device, runs in bfloat16, survives saving"
PROMPT = "a message shows its items, and the model reads them"
PLANTED = [
    (OneRowMore, AGREE),
    (SizesInSamples, AGREE),
    (OneSizeForAll, AGREE),
    (FlatWhenEmpty, AGREE),
    (building(Wide), AGREE),
    (building(Centres), ORDER),
    (building(Numbers), ORDER),
    (PadsToLongest, ORDER),
    (SortsByLength, ORDER),
    (Loudest, ORDER),
    (Dithers, REPEATS),
    (building(AlwaysDrops), REPEATS),
    (building(OwnNoise), REPEATS),
    (TakesAnything, REFUSED),
    (Crashes, REFUSED),
    (building(Detached), GRADIENTS),
    (building(Idle), GRADIENTS),
    (building(FreshZeros), GRADIENTS),
    (building(OffMeta), MODULE),
    (building(AlwaysFloat), MODULE),
    (building(ForgetsGain), MODULE),
    (NeverRemote, PROMPT),
]

ALSO = {
    "OneRowMore": {PROMPT},  # rows and placeholders disagree in a prompt too
    "Wide": {PROMPT},
    "FlatWhenEmpty": {GRADIENTS},
    "OneSizeForAll": {ORDER},
    "Dithers": {ORDER},
    "AlwaysDrops": {ORDER, MODULE},
}
"""What else a bug breaks."""


def failures(sense, **around):
    """Names of the checks that fail for the reference plugin with this sense."""

    @frozen(eq=False, kw_only=True)
    class Broken(ReferenceModality):
        @hookimpl
        def andes_modalities(self):
            return [sense(self.frame)]

    results = run_checks(Broken, kinds=["modalities"], **around)
    return {r.id.removeprefix("modalities: "): r.reason for r in results if r.status == "failed"}


@pytest.mark.parametrize(("sense", "check"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_a_planted_bug_fails_the_check_that_names_it(sense, check):
    failed = failures(sense)
    assert set(failed) == {check, *ALSO.get(sense.__name__, ())}, failed


def test_one_placeholder_for_two_kinds_is_named():
    @frozen(eq=False, kw_only=True)
    class Shared:
        contract = "1.1"

        @hookimpl
        def andes_tokenizer(self, folder):
            tokenizer = ByteTokenizer(["audio"])
            tokenizer._placeholders["audio"] = tokenizer.placeholder("image")
            return tokenizer

    failed = failures(Audio, companions=[Shared()])
    assert "two kinds share a placeholder" in failed.pop(NAMES)
    assert set(failed) <= {PROMPT}


def test_a_plugin_without_examples_is_told_what_is_missing():
    @frozen(eq=False, kw_only=True)
    class Bare(ReferenceModality):
        examples = {"audio": [[0.5]]}  # noqa: RUF012

    results = run_checks(Bare, kinds=["modalities"])
    assert all("fewer than two items for 'audio'" in r.reason for r in results)
