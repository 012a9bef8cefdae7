"""Adapters on a frozen quantised base: QALFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt, matches_re

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.plan import Plan
    from andes_sdk.types import Model

NAME = r"[A-Za-z][\w.-]{0,63}"
"""Of an adapter, as registries take it."""


@frozen(eq=False, kw_only=True)
class QALFT:
    """Train adapters on a packed base. Shortest use: Pipeline.from_plugins([..., {"qalft": {"file": "c.json"}}]).

    The base is opened with Pipeline.from_pretrained("model.andes", backend="torch", plugins=[...]).
    """

    contract = "1.1"

    file: str = field(
        default="", metadata={"help": "the base's contract; empty: the base is not compared", "local": True}
    )
    rank: int = field(
        default=16, validator=ge(1), metadata={"help": "of adapters, without a contract; else the contract's"}
    )
    alpha: int = field(default=32, validator=ge(1), metadata={"help": "the update is scaled by alpha / rank"})
    dropout: float = field(
        default=0.0, validator=and_(ge(0.0), lt(1.0)), metadata={"help": "of what adapters are given"}
    )
    rate: float = field(default=3e-4, validator=and_(gt(0.0), lt(1e3)), metadata={"help": "learning rate"})
    targets: list[str] = field(
        factory=lambda: ["attention", "mlp"],
        metadata={"help": "kinds of module that get an adapter: attention, mlp, vision, projector"},
    )
    recovery: str = field(
        default="", metadata={"help": "folder of an adapter of the same contract to start from", "local": True}
    )
    adapter: str = field(
        default="qalft", validator=matches_re(NAME), metadata={"help": "name of the adapter's folder, adapters/NAME"}
    )
    ranges: bool = field(
        default=True, metadata={"help": "round activations by the contract's ranges; false: QLoRA-like"}
    )
    inference: bool = field(
        default=False, metadata={"help": "round them when the model answers, too: backend torch alone"}
    )

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `qalft`."""
        from .stage import QALFTStage

        return [
            QALFTStage(
                file=self.file, rank=self.rank, alpha=self.alpha, dropout=self.dropout, rate=self.rate,
                targets=list(self.targets), recovery=self.recovery, adapter=self.adapter, ranges=self.ranges,
            )
        ]  # fmt: skip

    @hookimpl
    def andes_modules(self, model: Model) -> list[str]:
        """With `inference`: inputs of layers are rounded by the contract's ranges whenever the model computes.

        Raises:
            TrainingError: a range with a zero point. CheckpointError: a contract that cannot be read.
        """
        if self.inference and self.file:
            from andes_adapters.contract import read_contract

            from .stage import round_inputs

            round_inputs(model, read_contract(self.file).ranges)
        return []

    @hookimpl
    def andes_check(self, plan: Plan) -> list[str]:
        """Ranges that would be passed by, or would hold where they are not to."""
        if not self.inference:
            return []
        if not self.ranges:
            why = "answers would be rounded, and training with them"
            return [
                f"qalft.ranges: false beside inference: {why}: train without `inference`, then open the base with it"
            ]
        if not self.file:
            return ["qalft.inference: no contract says the ranges: give `file`"]
        if plan.backend != "torch":
            return [f"qalft.inference: backend {plan.backend!r} does not round inputs by ranges: use backend='torch'"]
        return []

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """The contract, where adapters start, and whether ranges hold when the model answers."""
        where = [place for place, on in (("training", self.ranges), ("answers", self.inference)) if on and self.file]
        return {
            "contract": self.file or "none: the base is not compared",
            "starts from": self.recovery or "zero",
            "inputs": f"rounded by the contract's ranges in {' and '.join(where)} only" if where else "not rounded",
        }
