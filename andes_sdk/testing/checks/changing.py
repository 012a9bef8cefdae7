"""Plugins that change the modules of a model (`andes_modules`)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from andes_sdk.assembling.building import build
from andes_sdk.testing.material import answer_to_everything, conversation
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import NotApplicable, require, require_bits, require_finite

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.testing.subject import Subject

KIND = "modules"


def _logits(pipe: Pipeline) -> torch.Tensor:
    return answer_to_everything(pipe.model, pipe.prepare(conversation(0)))


@check(KIND, "the changed model computes")
def _computes(subject: Subject) -> None:
    require_finite(_logits(subject.pipe), "logits of the changed model")


@check(KIND, "prefixes of what a checkpoint may lack are those of weights")
def _prefixes(subject: Subject) -> None:
    plugin, model = subject.plugin(), subject.baseline().model
    returned = plugin.andes_modules(model=model)
    require(
        not isinstance(returned, str) and all(isinstance(p, str) and p for p in returned),
        f"andes_modules returned {returned!r}: return a list of prefixes",
    )
    names = model.state_dict()
    idle = [p for p in returned if not any(n.startswith(p) for n in names)]
    require(not idle, f"no weight begins with {idle}")


@check(KIND, "meta and real builds have the same weights")
def _alike(subject: Subject) -> None:
    pipe = subject.pipeline()
    meta, real = pipe.meta_model(), pipe.model
    shapes = [{n: tuple(t.shape) for n, t in model.state_dict().items()} for model in (meta, real)]
    wrong = sorted(n for n in shapes[0].keys() | shapes[1].keys() if shapes[0].get(n) != shapes[1].get(n))
    require(not wrong, f"other weights on the meta device than with values: {', '.join(wrong[:5])}")
    require(meta.may_lack == real.may_lack, f"prefixes {meta.may_lack} on the meta device, {real.may_lack} with values")


@check(KIND, "what a checkpoint may lack follows from the seed")
def _from_the_seed(subject: Subject) -> None:
    pipe = subject.pipeline()
    prefixes = pipe.model.may_lack
    if not prefixes:
        raise NotApplicable("a checkpoint may lack none of its weights")
    hollow, again = build(pipe._assembly, pipe.tokenizer, hollow=True), subject.pipeline().model
    for name, value in pipe.model.state_dict().items():
        if not name.startswith(prefixes):
            continue
        require_bits(again.state_dict()[name], value, f"{name} of two models of one seed")
        kept = hollow.state_dict()[name]
        if not kept.is_meta:  # one that is tied to a weight of the model has no value before that is read
            require_bits(kept.to(value.dtype), value, f"{name} of a model whose weights are read")


@check(KIND, "saved and opened again, the logits are equal")
def _saved(subject: Subject) -> None:
    with TemporaryDirectory() as folder:
        pipe = subject.pipeline()
        saved = pipe.save_pretrained(Path(folder) / "saved")
        require_bits(_logits(subject.pipeline(weights=saved)), _logits(pipe), "logits of the model that was opened")
