"""Speculative decoding: a drafter proposes tokens, the model verifies several of them in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le, optional

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan
    from andes_sdk.types import Decoder

DRAFTERS = ("suffix", "model", "eagle3", "block")
_MADE: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Plugin -> the decoder that it made, for `explain()`."""


@frozen(eq=False, kw_only=True)
class Speculative:
    """Several guessed tokens are verified in one pass. Shortest use: Pipeline.from_plugins([..., "speculative"])."""

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"row_cost": 0.05}  # what is measured differs from run to run

    drafter: str = field(default="suffix", validator=in_(DRAFTERS), metadata={"help": f"one of {', '.join(DRAFTERS)}"})
    depth: int = field(default=64, validator=and_(ge(1), le(64)), metadata={"help": "most tokens guessed in a row"})
    width: int = field(default=3, validator=and_(ge(1), le(8)), metadata={"help": "ways on followed at each place"})
    rows: int = field(default=64, validator=and_(ge(1), le(256)), metadata={"help": "most guesses in one pass"})
    corpus: str = field(
        default="", metadata={"help": "a text file that `suffix` looks into, beside the conversation", "local": True}
    )
    model: str = field(
        default="", metadata={"help": "model: where the smaller model is; a folder, a file or a name", "local": True}
    )
    backend: str = field(default="", metadata={"help": "model: what runs it; without it as it was saved"})
    head: str = field(
        default="", metadata={"help": "eagle3, block: the head's file, as `andes draft train` wrote it", "local": True}
    )
    matched: int = field(
        default=3,
        validator=and_(ge(0), le(64)),
        metadata={"help": "not suffix: if so many tokens stood there before, the text guesses instead; 0: never"},
    )
    adapt: bool = field(
        default=True, metadata={"help": "propose what pays by measured cost; false: all that is guessed"}
    )
    row_cost: float | None = field(
        default=None,
        validator=optional(and_(ge(0.0), le(10.0))),
        metadata={"help": "time of a further row in a pass, the first being 1; without it: measured"},
    )

    @hookimpl
    def andes_decoder(self, model: VisionLanguageModel) -> Decoder:
        """A decoder around the drafter."""
        from .building import build

        _MADE[self] = made = build(self, model)
        return made

    @hookimpl
    def andes_check(self, plan: Plan) -> list[str]:
        """Files that are not there."""
        from .corpus import problem

        found = [why] if self.corpus and (why := problem(self.corpus)) else []
        if self.corpus and self.drafter != "suffix" and not self.matched:
            found.append("`corpus` has no effect: only `suffix` looks into it, and `matched` is 0")
        if self.drafter == "model" and not self.model:
            found.append("the drafter 'model' needs a smaller model: give the option `model` a path")
        if self.drafter in ("eagle3", "block") and not self.head:
            why = f"the drafter {self.drafter!r} needs a head: give the option `head` a file of `andes draft train`"
            found.append(why)
        return found

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """The drafter, what verifying costs here, and whether guessing pays."""
        made = _MADE.get(self)
        file = {"suffix": "", "model": self.model}.get(self.drafter, self.head)
        both = " and suffix" if self.drafter != "suffix" and self.matched else ""
        files = "".join(f", with {name}" for name in (file, self.corpus) if name)
        said = {"drafter": f"{self.drafter}{both}{files}"}
        return said if made is None else {**said, **made.facts()}


@frozen(eq=False, kw_only=True)
class DraftHeads:
    """Train draft heads, as `andes draft train` does. Shortest use: Pipeline.from_plugins([..., "draft-heads"])."""

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"vocabulary": 64, "unroll": 3, "block": 3}

    rate: float = field(default=3e-4, validator=gt(0.0), metadata={"help": "learning rate of the head"})
    vocabulary: int = field(
        default=8192, validator=and_(ge(2), le(1 << 18)), metadata={"help": "most tokens that the head knows"}
    )
    unroll: int = field(
        default=7, validator=and_(ge(1), le(16)), metadata={"help": "eagle3: tokens that it learns to go ahead"}
    )
    block: int = field(default=5, validator=and_(ge(2), le(16)), metadata={"help": "block: tokens guessed in one pass"})
    layers: int = field(default=1, validator=and_(ge(1), le(16)), metadata={"help": "block: layers of the head"})

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """Two stages, `eagle3` and `block`."""
        from .stage import BlockStage, Eagle3Stage

        return [
            Eagle3Stage(rate=self.rate, vocabulary=self.vocabulary, unroll=self.unroll),
            BlockStage(rate=self.rate, vocabulary=self.vocabulary, block=self.block, layers=self.layers),
        ]
