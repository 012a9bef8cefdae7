"""Quantisation-aware training: codes, scales and ranges that are packed as they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, lt

from andes_sdk import hookimpl
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_sdk.plan import Plan


def _share(default: float, of: str, *, least: Any) -> Any:
    return field(default=default, validator=and_(least, lt(1.0)), metadata={"help": f"share of the steps {of}"})


def _rate(default: float, of: str) -> Any:
    return field(default=default, validator=and_(ge(0.0), lt(1e3)), metadata={"help": f"learning rate of {of}"})


def _grid(default: str, of: str) -> Any:
    return field(default=default, metadata={"help": f"grid of {of}; empty: floats"})


@frozen(eq=False, kw_only=True)
class QAT:
    """Train on a grid. Shortest use: Pipeline.from_plugins([..., {"qat": {"body": "w4_g128"}}]).

    Raises:
        ConfigError: on construction, for scales that do not go with a grid, or shares of more than all steps.
    """

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {
        "data": str(Path(__file__).parent / "data" / "tiny.jsonl"),
        "calibrate": 1,
        "bits": 99.0,
    }

    body: str = _grid("w4_g128", "the matrices of the language model's layers")
    roles: dict[str, str] = field(
        factory=dict,
        metadata={"help": "others for some, by role (q, k, v, o, gate, up, down), or layer and role (0.q)"},
    )
    embedding: str = _grid("", "the embedding")
    head: str = _grid("", "the head; as the embedding where they are one matrix")
    vision: str = _grid("", "the encoder's linear layers")
    projector: str = _grid("", "the projector's linear layers")
    bits: float = field(
        default=0.0, validator=and_(ge(0.0), lt(1e3)),
        metadata={"help": "most bits per weight of those layers, refused before training; 0: any"},
    )  # fmt: skip
    rotate: str = field(
        default="", validator=in_(("", "heads", "all")),
        metadata={"help": "Hadamard rotations folded into the weights first: of values by head, or of the stream too"},
    )  # fmt: skip
    candidates: list[str] = field(
        factory=lambda: ["ternary34_g128", "ternary_g128", "w4_g128", "w4_g32", "w8"],
        metadata={"help": "mixed: grids that it chooses from, within `bits`"},
    )
    units: str = field(
        default="kinds", validator=in_(("kinds", "matrices")),
        metadata={"help": "mixed: kinds: a grid for q, k and v, for o, for gate and up, for down; or matrices"},
    )  # fmt: skip
    scales: str = field(
        default="lsq", validator=in_(("absmean", "lsq", "seq")),
        metadata={"help": "from the weights (absmean), learned (lsq), or stretched too where a grid is coarse (seq)"},
    )  # fmt: skip
    activations: int = field(
        default=0, validator=in_((0, 8, 16)), metadata={"help": "bits of the inputs of those layers; 0: floats"}
    )
    ranges: str = field(
        default="learned", validator=in_(("learned", "calibrated")),
        metadata={"help": "whether ranges of inputs go on learning after calibration"},
    )  # fmt: skip
    kv: int = field(
        default=0, validator=in_((0, 8, 16)), metadata={"help": "bits of keys and values, by row and head; 0: floats"}
    )
    calibrate: int = field(default=10, validator=ge(1), metadata={"help": "steps over which ranges are measured first"})
    every: int = field(
        default=10, validator=ge(1), metadata={"help": "sparse grids: steps between choices of survivors"}
    )
    ramp: float = _share(0.25, "over which survivors fall to the grid's", least=ge(0.0))
    hold: float = _share(0.25, "at the end in which survivors stay", least=gt(0.0))
    rate: float = field(default=1e-5, validator=gt(0.0), metadata={"help": "learning rate of the language model"})
    projector_rate: float = _rate(1e-5, "the projector; 0 freezes it")
    encoder_rate: float = _rate(0.0, "the vision encoder; 0 freezes it")
    scale_rate: float = field(
        default=10.0,
        validator=and_(gt(0.0), lt(1e4)),
        metadata={"help": "rate of scales, which change by shares, times that of their module"},
    )
    teacher: str = field(
        default="", metadata={"help": "a model to learn from beside the data; empty: none", "local": True}
    )
    kl: float = field(default=1.0, validator=and_(ge(0.0), lt(1e6)), metadata={"help": "teacher: weight of its KL"})
    ce: float = field(
        default=0.5, validator=and_(ge(0.0), lt(1e6)), metadata={"help": "teacher: weight of the data's answers"}
    )
    k: int = field(default=64, validator=ge(1), metadata={"help": "teacher: its tokens that count one by one"})
    temperature: float = field(
        default=1.0, validator=and_(gt(0.0), lt(1e3)), metadata={"help": "teacher: what logits are divided by"}
    )
    blockwise: int = field(
        default=0, validator=ge(0),
        metadata={"help": "steps in which each layer learns to send on what the float one does, before the first"},
    )  # fmt: skip
    block_rate: float = field(
        default=1e-3, validator=and_(gt(0.0), lt(1e3)), metadata={"help": "learning rate of those steps"}
    )
    codes: str = field(
        default="", metadata={"help": "compressor qat: folder `qat` of a run; empty: round to nearest", "local": True}
    )
    data: str = field(
        default="",
        metadata={"help": "gptq, awq, blockwise, mixed: lines of conversations to calibrate with", "local": True},
    )
    lines: int = field(default=128, validator=ge(1), metadata={"help": "those: at most so many lines"})
    max_tokens: int = field(
        default=2048, validator=ge(1), metadata={"help": "gptq, awq, blockwise: of one pack of lines"}
    )
    damping: float = field(
        default=0.01, validator=and_(gt(0.0), lt(1e3)), metadata={"help": "gptq: share of the mean diagonal added"}
    )

    def __attrs_post_init__(self) -> None:
        if self.ramp + self.hold > 1:
            why = f"ramp {self.ramp:g} and hold {self.hold:g} are more than all steps"
            raise ConfigError("survivors never come to rest", who="qat", why=why, fix="lower one of them")

    def _choice(self) -> Any:
        from .grids import Choice

        choice = Choice(
            body=self.body, roles=dict(self.roles), embedding=self.embedding, head=self.head, vision=self.vision,
            projector=self.projector, bits=self.bits,
        )  # fmt: skip
        grids = {kind: target for kind, target in choice.grids().items() if target is not None}
        if self.scales == "seq" and grids and not any(target.coarse for target in grids.values()):
            kind, target = next(iter(grids.items()))
            fix = "use scales = 'lsq', or a grid of up to four balanced levels, such as ternary_g128 or nm14_w2"
            raise ConfigError(f"{target.name} has more levels than seq is for", who=f"qat.{kind}", fix=fix)
        return choice

    @hookimpl
    def andes_check(self, plan: Plan) -> list[str]:
        """Grids that do not exist, or that `scales` does not go with."""
        try:
            self._choice()
        except ConfigError as error:
            return [" ".join(str(error).split())]
        return []

    @hookimpl
    def andes_compressors(self) -> list[Any]:
        """Five compressors: `qat`, `gptq`, `awq`, `blockwise` and `mixed`."""
        from .awq import AWQ
        from .blockwise import Blockwise
        from .compressors import GPTQ, Grids
        from .mixed import Mixed

        choice = self._choice()
        own: dict[str, Any] = {
            "choice": choice, "rotation": self.rotate, "data": self.data, "lines": self.lines,
            "max_tokens": self.max_tokens,
        }  # fmt: skip
        return [
            Grids(choice=choice, rotation=self.rotate, codes=self.codes),
            GPTQ(damping=self.damping, **own),
            AWQ(**own),
            Blockwise(
                rule=self.scales, steps=self.blockwise or 64, rate=self.block_rate, scale_rate=self.scale_rate, **own
            ),
            Mixed(candidates=tuple(self.candidates), units=self.units, **own),
        ]  # fmt: skip

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `qat`."""
        from andes_sparsity.stage import learning_from

        from .stage import QATStage

        rates = {"language_model": self.rate, "mlp": self.projector_rate, "vision_encoder": self.encoder_rate}
        return [
            QATStage(
                module_rates=rates, scale_rate=self.scale_rate, choice=self._choice(), rotation=self.rotate,
                rule=self.scales, bits=self.activations, kv=self.kv, inputs=self.ranges, calibrate=self.calibrate,
                every=self.every, ramp=self.ramp, hold=self.hold, blockwise=self.blockwise, block_rate=self.block_rate,
                inner=learning_from(self.teacher, self.kl, self.ce, self.k, self.temperature),
            )
        ]  # fmt: skip

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """The grids, and how scales come about."""
        kinds = {n: getattr(self, n) for n in ("body", "embedding", "head", "vision", "projector")} | self.roles
        inputs = "floats"
        if self.activations:
            inputs = f"{self.activations} bits, {self.ranges}; a packed file's answers on torch and numba do not round"
        grids = ", ".join(f"{kind} {name}" for kind, name in kinds.items() if name)
        rows = f"{self.kv} bits by row and head; numba has kv = 'int8'" if self.kv else "floats"
        grids += {"": "", "heads": "; values rotated", "all": "; rotated"}[self.rotate]
        return {"grids": grids or "none", "scales": self.scales, "inputs": inputs, "keys and values": rows}
