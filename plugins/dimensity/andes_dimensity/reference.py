"""The backend "dimensity" on the CPU: what the chip computes, with whole numbers, to compare a written file with.

Matrices are int8 or int4 codes with one scale per output channel. Products:

- "float": codes times their scales, in float32: a file of weights alone (LiteRT dequantises before it multiplies).
- "a16", "a8": a row x is rounded to x / s, s a trained range or the row's largest magnitude over 32767 or 127. The sum
  of products of codes is exact, and multiplied with s and the channel's scale once, in float32.
- "a16" with the scales of a file of static int16: as that file computes it. Inputs and outputs of every product are
  int16 at the file's scales, and sums are rescaled as LiteRT's kernels do it (`integers.py`).

Keys and values are rounded to int16 or int8 likewise, one scale per row and head. Norms, softmax and activations are
float32. A sum of whole numbers below 2**53 is exact in float64: no bit depends on how many rows are computed together.
The cache is static: a session that needs more rows than it has is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from attrs import define, evolve, field, frozen
from torch import Tensor, nn
from torch.nn.utils import parametrize

from andes_sdk.errors import BackendUnavailable, ConfigError, SessionError
from andes_sdk.runtime.session import TorchSession
from andes_sdk.runtime.torch_backend import CompiledTorch

from .buckets import graph_of, ranges
from .codes import BITS, Codebook, Matrix, ranges_of, refuse_unfit
from .integers import attention_sums, channel_scales, codes_of, divided, matrix_sums, whole_product

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.runtime.tree import Step
    from andes_sdk.types import CachePolicy, Range, VisionEncoder

    from .options import Options

HIGH = {"a16": 32767, "a8": 127}
"""Largest code of an activation."""
MASKED = -100.0
"""What hides a row, as in the graphs."""


def rounded_rows(x: Tensor, high: int, one: Range | None = None) -> tuple[Tensor, Tensor]:
    """(..., d) floats -> whole numbers within +-`high`, and what they are multiplied with (..., 1)."""
    if one is not None:
        step = x.new_full((*x.shape[:-1], 1), one.scale)
    else:
        step = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / high
    return torch.clamp(torch.round(x / step), -high, high), step


class CodedLinear(nn.Linear):
    """A linear layer whose weight is codes; `weight` is what they stand for, float32.

    Attributes:
        codes: (out, in) int8. scales: (out,) float32, or (out, groups) where `group` columns have one.
        mode: "float", "a16" or "a8". range: of the input, as training left it, or None.
        steps: scales of input and output in a file of static int16, or None.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        matrix: Matrix,
        bias: Tensor | None,
        mode: str,
        one: Range | None,
        steps: tuple[float, float] | None = None,
    ) -> None:
        rows, columns = matrix.codes.shape
        super().__init__(columns, rows, bias=bias is not None, device="meta")
        self.weight = nn.Parameter(torch.from_numpy(matrix.weights), requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        self.register_buffer("codes", torch.from_numpy(matrix.codes), persistent=False)
        self.register_buffer("scales", torch.from_numpy(matrix.scales), persistent=False)
        self.mode, self.range, self.steps, self.group = mode, one, steps, matrix.group

    def static(self, x: Tensor, steps: tuple[float, float]) -> Tensor:
        """(..., in) -> (..., out), as a file of static int16 computes it."""
        total = whole_product(codes_of(x, steps[0]), self.codes.T)
        if self.bias is not None:
            total = total + torch.round(self.bias.double() / (float(steps[0]) * self.scales.double())).long()
        return matrix_sums(total, channel_scales(steps[0], self.scales.numpy(), steps[1])).float() * steps[1]

    def grouped(self, whole: Tensor, step: Tensor) -> Tensor:
        """Sums of each group are exact; groups are added one after another, whatever else is computed."""
        y = whole.new_zeros(*whole.shape[:-1], len(self.codes))
        for number in range(self.scales.shape[1]):
            some = slice(number * self.group, (number + 1) * self.group)
            y = y + F.linear(whole[..., some], self.codes[:, some].double()) * self.scales[:, number].double()
        return y * step

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.mode == "float":
            return F.linear(x, self.weight, self.bias)
        if self.steps is not None:
            return self.static(x, self.steps)
        high = HIGH[self.mode] if self.range is None else (1 << self.range.bits - 1) - 1
        whole, step = rounded_rows(x, high, self.range)
        if self.group:
            y = self.grouped(whole.double(), step.double()).float()
        else:
            total = F.linear(whole.double(), self.codes.double())
            y = (total * (step.double() * self.scales.double())).float()
        return y if self.bias is None else y + self.bias


def coded(
    model: VisionLanguageModel,
    options: Options,
    artefact: Any = None,
    steps: Mapping[str, float] | None = None,
    *,
    unit: bool = False,
) -> VisionLanguageModel:
    """A copy of a model in float32, whose linear layers are codes; other weights are shared with the original.

    steps: scales of a file of static int16, by role. unit: take several scales in a row, as `codes.per_channel`.

    Raises:
        ConfigError: codes that the chip cannot take, or ranges that the mode cannot, by name.
    """
    book, ranges = Codebook.of(model, artefact, unit=unit), ranges_of(model, artefact)
    # new parameters on the memory of the old ones: what is float32 is not copied, and nothing changes the original
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach().float(), requires_grad=False) for p in model.parameters()}
    made = copy.deepcopy(model, shared | {id(model.tokenizer): model.tokenizer})
    table: Any = cast("Any", model.language_model).model.embed_tokens.weight if _has_table(model) else None
    tied = table is not None and cast("Any", model.language_model).lm_head.weight.data_ptr() == table.data_ptr()
    for name, module in list(made.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        part = "head" if name.endswith("lm_head") else "weights" if name.startswith("language_model.") else "vision"
        matrix = book.matrix(f"{name}.weight", BITS[getattr(options, part)])
        # the graphs of pictures have float products: LiteRT's runtime keeps them so on the CPU, as embeddings are
        mode = options.activations if part != "vision" else "float"
        if mode != "float" and (one := ranges.get(name)) is not None:
            refuse_unfit(name, one, int(mode[1:]))
        both = steps_of(steps, name) if steps and part != "vision" else None
        made.set_submodule(name, CodedLinear(matrix, module.bias, mode, ranges.get(name), both))
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Conv2d):
            matrix = book.matrix(f"{name}.weight", BITS[options.vision])
            module.weight = nn.Parameter(torch.from_numpy(matrix.weights).reshape(module.weight.shape), False)
    if table is not None:
        head = "language_model.lm_head.weight" if tied else "language_model.model.embed_tokens.weight"
        matrix = book.matrix(head, BITS[options.head])
        embedding = cast("Any", made.language_model.get_submodule("model.embed_tokens"))
        embedding.weight = nn.Parameter(torch.from_numpy(matrix.weights), requires_grad=False)
    return made.float().eval()


def steps_of(steps: Mapping[str, float], name: str) -> tuple[float, float]:
    """Scales of the input and output of a layer.

    Raises:
        ConfigError: a file has none of it.
    """
    role = f"{name.removeprefix('language_model.')}.weight"
    try:
        return steps[f"{role}.in"], steps[f"{role}.out"]
    except KeyError:
        raise ConfigError("a file of static int16 has no scales of it", who=name, fix="write the file again") from None


def unpacked(model: VisionLanguageModel, artefact: Any) -> VisionLanguageModel:
    """A copy of modules that read each weight from a packed file, with the weights in memory."""
    made = copy.deepcopy(model, {id(artefact): artefact, id(model.tokenizer): model.tokenizer})
    for name, module in list(made.named_modules()):
        if parametrize.is_parametrized(module):
            for leaf in list(cast("Any", module).parametrizations):
                value = getattr(module, leaf).detach()
                parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
                held = module._parameters if leaf in module._parameters else module._buffers
                held[leaf] = nn.Parameter(value, requires_grad=False) if held is module._parameters else value
        elif hasattr(module, "embedding_dim") and not isinstance(module, nn.Embedding):
            made.set_submodule(name, nn.Embedding.from_pretrained(cast("Any", module).weight))
    return made


def _has_table(model: VisionLanguageModel) -> bool:
    return any(name == "model.embed_tokens" for name, _ in model.language_model.named_modules())


@frozen(eq=False)
class DimensityBackend:
    """The integer reference: an `andes_sdk.types.Backend`.

    Attributes:
        artefact: the packed file whose codes count, or None.
        steps: scales of a file of static int16, by role: computes what that file does. Empty: rounds by row.
        tolerance: what the conformance kit allows between its logits and torch's: rounding of weights, and to int8.
    """

    options: Options
    artefact: Any = None
    steps: Mapping[str, float] = field(factory=dict)
    name: str = "dimensity"

    @property
    def rows(self) -> int:
        """Rows per head of the static cache."""
        return self.options.rows

    @property
    def tolerance(self) -> float:
        """Of the largest logit. Of int8 twice as much: a row's largest value sets the step of all its values, and an
        adapter can make it large (seen: 1 % without one, 5 % with the kit's, which are of random numbers).
        """
        if self.options.weights != "w8" or self.options.head != "w8":
            return 0.5
        return 0.1 if self.options.activations == "a8" else 0.05

    def compile(
        self, model: VisionLanguageModel, *, device: str, dtype: str, taps: Sequence[int] = ()
    ) -> CompiledDimensity:
        """Round the matrices that have no codes of their own.

        Raises:
            BackendUnavailable: another device than the CPU, or a cache of more rows than the model has positions.
            ConfigError: codes that the chip cannot take, by name.
        """
        self._refuse(device)
        return self._compiled(model, taps, unit=False)

    def open(
        self, artefact: Any, model: VisionLanguageModel, *, device: str, dtype: str, taps: Sequence[int] = ()
    ) -> CompiledDimensity:
        """Take the codes of a packed file as they are; formats with several scales in a row as a unit would hand them
        on that decompresses codes to int8. Such a file cannot be written for the chip.

        Raises:
            BackendUnavailable: as `compile`. ConfigError: a format without integer codes, by name.
        """
        self._refuse(device)
        return evolve(self, artefact=artefact)._compiled(unpacked(model, artefact), taps, unit=True)

    def _compiled(self, model: VisionLanguageModel, taps: Sequence[int], *, unit: bool) -> CompiledDimensity:
        made = coded(model.to(device="cpu"), self.options, self.artefact, self.steps, unit=unit)
        if self.options.tokens:
            made.vision_encoder.register_forward_pre_hook(self._fits)
        return CompiledDimensity(made, taps=tuple(taps), options=self.options, steps=self.steps)

    def _refuse(self, device: str) -> None:
        if device != "cpu":
            why = "this backend computes on the CPU what the chip would"
            raise BackendUnavailable(f"no device {device!r}", who="dimensity", why=why, fix="use device='cpu'")

    def _fits(self, encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Refuse pictures that no graph of the bundle holds."""
        block = cast("VisionEncoder", encoder).spec.merge ** 2
        for rows, columns in inputs[1]:
            graph_of(rows * columns // block, self.options.tokens)


@define(eq=False, slots=False)
class CompiledDimensity(CompiledTorch):
    """A model of codes that opens sessions of a static cache."""

    options: Options = None  # type: ignore[assignment]
    steps: Mapping[str, float] = field(factory=dict)

    @property
    def chunk_rows(self) -> int:  # type: ignore[override]
        """Rows of the prompt graph."""
        return self.options.prompt

    def empty(self, policy: CachePolicy, keeper: Mapping[str, Tensor] | None) -> StaticSession:
        """An empty session."""
        return StaticSession(self, policy, keeper)

    def facts(self) -> Mapping[str, str]:
        """What is computed, and in which numbers."""
        o = self.options
        mode = "float32" if o.activations == "float" else f"int{o.activations[1:]} codes, exact sums"
        more = {"pictures": ranges(o.tokens)} if o.tokens else {}
        if count := sum(bool(getattr(module, "group", 0)) for module in self.model.modules()):
            more["only for a unit that decompresses"] = f"{count} matrices with several scales in a row"
        return more | {
            "device": "cpu: a reference, not the chip", "weights": f"{o.weights}, head {o.head}, pictures {o.vision}",
            "products": mode, "cache": f"{o.rows} rows, {'float32' if o.activations == 'float' else o.activations}",
        }  # fmt: skip


class StaticSession(TorchSession):
    """A conversation whose cache has a fixed number of rows."""

    @property
    def _options(self) -> Options:
        return cast("CompiledDimensity", self.compiled).options

    @property
    def precision(self) -> str:
        """Of keys and values."""
        return {"float": "float32", "a16": "int16", "a8": "int8"}[self._options.activations]

    def reserve(self, rows: int) -> None:
        """Refuse rows that the cache has no place for.

        Raises:
            SessionError: saying how many there are.
        """
        held = max((count for layer in self.counts() for count in layer), default=0)
        if held + rows > self._options.rows:
            why, fix = f"{held} are in use, {rows} more are needed", "raise `rows`, or add a cache policy such as okv"
            raise SessionError(f"the static cache has {self._options.rows} rows", who="dimensity", why=why, fix=fix)

    def attend(self, step: Step, reading: bool, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """As torch's session, with keys and values as codes."""
        if steps := cast("CompiledDimensity", self.compiled).steps:
            at = f"model.layers.{layer}."
            own = {name.removeprefix(at): one for name, one in steps.items() if name.startswith(at)}
            return self._static(own, step, reading, layer, q, k, v, scale)
        high = HIGH.get(self._options.activations)
        if high is not None:
            (k, a), (v, b) = rounded_rows(k, high), rounded_rows(v, high)
            k, v = k * a, v * b
        return super().attend(step, reading, layer, q, k, v, scale)

    def _static(
        self,
        at: Mapping[str, float],
        step: Step,
        reading: bool,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
    ) -> Tensor:
        """As `attend`, in the whole numbers of a file: rows of the cache and new rows are summed apart."""
        store, new = self._layers[layer], k.shape[2]
        store.append(k[0], v[0], step.positions)
        if self.keeping.wants_queries:
            self.keeping.note(layer, q[0], lambda: k[0], chain=reading)
        per_head, start, out = q.shape[1] // k.shape[1], 0, []
        for group in store.groups:
            keys, values, _ = group.view()
            asked = q[0, start : start + group.heads * per_head].unflatten(0, (group.heads, per_head)).flatten(1, 2)
            total = whole_product(codes_of(asked * scale, at["query"]), codes_of(keys, at["keys"]).mT)
            scores = attention_sums(total, divided(at["query"], at["keys"], at["scores"])).float() * at["scores"]
            hidden = step.mask(group.count).logical_not().float() * MASKED
            p = codes_of(torch.softmax(scores + hidden.repeat(per_head, 1), -1), at["weights"])
            v_codes, split = codes_of(values, at["values"]), group.count - new
            factor = divided(at["weights"], at["values"], at["mixed"])
            mixed = [
                attention_sums(whole_product(p[..., a:b], v_codes[:, a:b]), factor).float() * at["mixed"]
                for a, b in ((0, split), (split, group.count))
            ]
            out.append((mixed[0] + mixed[1]).unflatten(1, (per_head, new)).flatten(0, 1))
            start += group.heads * per_head
        return torch.cat(out)[None].transpose(1, 2)


__all__ = ["CodedLinear", "DimensityBackend", "coded", "rounded_rows"]
