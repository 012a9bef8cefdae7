"""N:M sparsity: of every M neighbouring weights of a row N stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, gt, le, lt

from andes_sdk import hookimpl
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_sdk.plan import Plan


def _share(default: float, of: str, *, least: Any) -> Any:
    return field(default=default, validator=and_(least, lt(1.0)), metadata={"help": f"share of the steps {of}"})


def _rate(default: float, of: str) -> Any:
    return field(default=default, validator=and_(ge(0.0), lt(1e3)), metadata={"help": f"learning rate of {of}"})


@frozen(eq=False, kw_only=True)
class Sparsity:
    """Prune to N:M, or train with it. Shortest use: Pipeline.from_plugins([..., {"sparsity": {"n": 1, "m": 4}}]).

    Raises:
        ConfigError: on construction, for a pattern that cannot be, or shares of more than all steps.
    """

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"data": str(Path(__file__).parent / "data" / "tiny.jsonl")}

    n: int = field(default=1, validator=ge(1), metadata={"help": "weights that stay"})
    m: int = field(default=4, validator=and_(ge(2), le(64)), metadata={"help": "of so many neighbours in a row"})
    roles: list[str] = field(
        factory=list, metadata={"help": "matrices of the language model: q, k, v, o, gate, up, down; empty: all"}
    )
    data: str = field(
        default="", metadata={"help": "wanda, sparsegpt: lines of conversations to calibrate with", "local": True}
    )
    lines: int = field(default=128, validator=ge(1), metadata={"help": "wanda, sparsegpt: at most so many lines"})
    max_tokens: int = field(default=2048, validator=ge(1), metadata={"help": "wanda, sparsegpt: of one pack of lines"})
    damping: float = field(
        default=0.01, validator=and_(gt(0.0), lt(1e3)), metadata={"help": "sparsegpt: share of the mean diagonal added"}
    )
    rate: float = field(default=1e-5, validator=gt(0.0), metadata={"help": "sparse: rate of the language model"})
    projector_rate: float = _rate(1e-5, "the projector; 0 freezes it")
    encoder_rate: float = _rate(0.0, "the vision encoder; 0 freezes it")
    every: int = field(default=10, validator=ge(1), metadata={"help": "sparse: steps between two changes of the masks"})
    ramp: float = _share(0.25, "over which survivors fall from M to N; 0: N from the start", least=ge(0.0))
    hold: float = _share(0.25, "at the end in which masks stay", least=gt(0.0))
    decay: float = field(
        default=2e-4, validator=and_(ge(0.0), lt(1e3)), metadata={"help": "sparse: pull of pruned weights towards zero"}
    )
    teacher: str = field(
        default="", metadata={"help": "sparse: a model to learn from beside the data; empty: none", "local": True}
    )
    kl: float = field(default=1.0, validator=and_(ge(0.0), lt(1e6)), metadata={"help": "teacher: weight of its KL"})
    ce: float = field(
        default=0.5, validator=and_(ge(0.0), lt(1e6)), metadata={"help": "teacher: weight of the data's answers"}
    )
    k: int = field(default=64, validator=ge(1), metadata={"help": "teacher: its tokens that count one by one"})
    temperature: float = field(
        default=1.0, validator=and_(gt(0.0), lt(1e3)), metadata={"help": "teacher: what logits are divided by"}
    )

    def __attrs_post_init__(self) -> None:
        if self.n >= self.m:
            what = f"{self.n} of {self.m} weights are all of them"
            raise ConfigError(what, who="sparsity", fix="give n below m, such as n = 1 and m = 4")
        if self.ramp + self.hold > 1:
            why = f"ramp {self.ramp:g} and hold {self.hold:g} are more than all steps"
            raise ConfigError("the masks never come to rest", who="sparsity", why=why, fix="lower one of them")

    @hookimpl
    def andes_compressors(self) -> list[Any]:
        """Three compressors: `magnitude`, `wanda`, `sparsegpt`."""
        from .pruning import METHODS, Pruner

        return [
            Pruner(
                name=name, n=self.n, m=self.m, roles=tuple(self.roles), data=self.data, lines=self.lines,
                max_tokens=self.max_tokens, damping=self.damping,
            )
            for name in METHODS
        ]  # fmt: skip

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `sparse`."""
        from .stage import SparseStage, learning_from

        rates = {"language_model": self.rate, "mlp": self.projector_rate, "vision_encoder": self.encoder_rate}
        return [
            SparseStage(
                module_rates=rates, n=self.n, m=self.m, roles=tuple(self.roles), every=self.every, ramp=self.ramp,
                hold=self.hold, decay=self.decay,
                inner=learning_from(self.teacher, self.kl, self.ce, self.k, self.temperature),
            )
        ]  # fmt: skip

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """The pattern, and where it goes."""
        where = ", ".join(self.roles) if self.roles else "all matrices"
        return {"pattern": f"{self.n}:{self.m} in {where} of the language model's layers"}
