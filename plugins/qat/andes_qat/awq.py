"""AWQ (Lin et al. 2023, arXiv 2306.00978, section 3.2): our own small implementation, a baseline for reports.

Columns of a matrix that meet large inputs are multiplied with s before they are rounded, and their inputs are divided
by s where they come from: the weight of the norm in front, or the rows of `up` in front of `down`. s = m ** alpha, m
the mean magnitude of each input, made so that the root of its largest times its smallest is 1; alpha is the one of
twenty from 0 to 0.95 with the smallest |Q(W s) (x / s) - W x|^2 over the matrices that share the input. Alpha 0 is
rounding to nearest, and nothing is chosen that loses more than that.
Layers first to last, each given what the compressed ones before it send on. Scales of groups are plain or those of
the format's own search, whichever lose less: that stands in for the paper's clipping. Left out: scales between `v` and
`o`, which heads that share keys and values do not have (the authors' code skips those, too), and anything but the
language model's layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from andes_sparsity.calibration import Calibration
from attrs import frozen
from torch import Tensor, nn

from andes_sdk.types import Codes, Compressed

from .compressors import _give, _matrix, nearest, rotated_targets
from .grids import Choice, Target

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model

GROUPS = ((("q", "k", "v"), "input_layernorm"), (("gate", "up"), "post_attention_layernorm"), (("down",), "up"))
"""Roles that share an input, and what their inputs are divided in: a norm of the layer, or the rows of a role."""
STEPS = 20


@frozen(kw_only=True)
class AWQ:
    """Compressor `awq`."""

    choice: Choice
    data: str
    lines: int
    max_tokens: int
    rotation: str = ""
    name: str = "awq"

    @torch.no_grad()
    def compress(self, model: Model, *, data: str = "", lines: int = 0) -> Compressed:
        """Put a model on its grids, in place; weights of norms change, too.

        Args:
            data, lines: instead of the plugin's.

        Returns:
            A report. matrices, tokens. scaled: groups of matrices with scales, of all that have matrices; a group of
            which one stays in floats, or whose inputs nothing can divide, has none. alpha: mean of what was chosen.
            output_error: of the matrices that were scaled, squared error of outputs ÷ that of rounding to nearest,
            mean over groups.

        Raises:
            ConfigError: no data, or as the plugin's grids.
        """
        targets = rotated_targets(model, self.choice, self.rotation)
        whole = cast("VisionLanguageModel", model)
        calibration = Calibration.of(whole, data or self.data, lines or self.lines, self.max_tokens, self.name)
        layers: dict[int, dict[str, tuple[str, nn.Linear]]] = {}
        for place, (layer, role) in model.llm.linears().items():
            if (name := f"language_model.{place}") in targets:
                layers.setdefault(layer, {})[role] = name, cast("nn.Linear", model.language_model.get_submodule(place))
        made: dict[str, Codes] = {}
        chosen: list[Found] = []
        groups = 0
        for layer, roles in sorted(layers.items()):
            wide = {name: module.weight.float() for name, module in roles.values()}  # folding rounds nothing
            seen: dict[str, Seen] = {}
            clipped: dict[str, bool] = {}

            def see(name: str, rows: Tensor, seen: dict[str, Seen] = seen) -> None:
                seen.setdefault(name, Seen(rows.shape[1])).add(rows)

            groups += sum(any(role in roles for role in group) for group, _ in GROUPS)
            fronts = _fronts(model, calibration, layer, roles)
            if fronts:
                calibration.show(layer, dict(roles[group[0]] for group in fronts), see)
            for group, front in fronts.items():
                names = [roles[role][0] for role in group]
                first, inner = seen[names[0]], group == ("down",)
                found = search(
                    [wide[n] for n in names], [targets[n] for n in names], first.gram, first.mean,
                    held=None if inner else cast("Tensor", front.weight),
                )  # fmt: skip
                chosen.append(found)
                if inner:
                    wide[roles["up"][0]] /= found.scale[:, None].to(wide[roles["up"][0]])
                    if front.bias is not None:
                        _divide(cast("Tensor", front.bias), found.scale)
                else:
                    for part in _parts(front):
                        _divide(part, found.scale)
                for name in names:
                    wide[name] *= found.scale.to(wide[name])
                    clipped[name] = found.clipped
            own = {f"{n}.weight": nearest(w, targets[n], search=clipped.get(n, True)) for n, w in wide.items()}
            _give(model, own)
            made |= own
        rest = {f"{n}.weight": nearest(_matrix(model, n), t) for n, t in targets.items() if f"{n}.weight" not in made}
        _give(model, rest)
        report: dict[str, Any] = {"matrices": len(targets), "tokens": calibration.tokens}
        report["scaled"] = f"{len(chosen)} of {groups} groups"
        if chosen:
            means = (sum(getattr(one, part) for one in chosen) / len(chosen) for part in ("alpha", "error"))
            report |= dict(zip(("alpha", "output_error"), means, strict=True))
        return Compressed(codes={**made, **rest}, report=report)


class Seen:
    """Sums over the inputs of a matrix."""

    def __init__(self, columns: int) -> None:
        self.gram, self._size = (torch.zeros(*shape, dtype=torch.float64) for shape in ((columns, columns), (columns,)))
        self._rows = 0

    def add(self, rows: Tensor) -> None:
        """(T, columns) inputs."""
        wide = rows.double().cpu()
        self.gram += wide.T @ wide
        self._size, self._rows = self._size + wide.abs().sum(0), self._rows + len(wide)

    @property
    def mean(self) -> Tensor:
        """(columns,) mean magnitude of each input."""
        return self._size / max(1, self._rows)


def output_error(weight: Tensor, scale: Tensor, target: Target, gram: Tensor, *, clipped: bool) -> float:
    """|Q(W s) (x / s) - W x|^2 summed over inputs x, whose sum of x x^T is `gram` (columns, columns), in its type.

    Args:
        clipped: scales of groups by the format's search, which may clip; else plain ones.
    """
    own, scale = weight.to("cpu", gram.dtype), scale.to(gram.dtype)
    change = torch.from_numpy(nearest(own * scale, target, search=clipped).weights()).to(gram.dtype) / scale - own
    return float(((change @ gram) * change).sum())


@frozen(eq=False)
class Found:
    """Scales (columns,) and their alpha; whether groups are clipped; error ÷ that of rounding to nearest."""

    scale: Tensor
    alpha: float
    clipped: bool
    error: float


def search(
    weights: Sequence[Tensor], targets: Sequence[Target], gram: Tensor, mean: Tensor, *, held: Tensor | None = None
) -> Found:
    """Scales of the columns of matrices that share an input.

    Alphas are compared with plain scales of groups, as the authors do. The best one with plain and with searched scales
    is then compared with rounding to nearest, in float64.

    Args:
        weights: (rows, columns) each. gram: (columns, columns) sum of x x^T. mean: (columns,) mean |x|.
        held: (columns,) weight of the norm that is divided; scales are what it is divided by once rounded to its type.
    """

    def error(scale: Tensor, gram: Tensor, clipped: bool) -> float:
        return sum(output_error(w, scale, t, gram, clipped=clipped) for w, t in zip(weights, targets, strict=True))

    def of(alpha: float) -> Tensor:
        scale = mean.clamp_min(1e-12).pow(alpha).clamp_min(1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        if held is None:
            return scale
        before = held.to("cpu", scale.dtype)
        after = before.div(scale).to(held.dtype).to(scale.dtype)
        return torch.where(after != 0, before / after, scale)

    rough, wide = gram.float(), gram.double()
    best = min((step / STEPS for step in range(STEPS)), key=lambda alpha: error(of(alpha), rough, False))
    plain = error(of(0.0), wide, True)
    tried = {(0.0, True): plain} | {(best, clipped): error(of(best), wide, clipped) for clipped in (False, True)}
    alpha, clipped = min(tried, key=lambda one: tried[one])
    return Found(of(alpha), alpha, clipped, tried[alpha, clipped] / plain if plain else 1.0)


def _fronts(
    model: Model, calibration: Calibration, layer: int, roles: Mapping[str, tuple[str, nn.Linear]]
) -> dict[tuple[str, ...], nn.Module]:
    """Groups that all have grids -> what gives them their inputs, times a factor of each, and gives them to none else.

    Names say little of that, so it is tried: with scales that are powers of two the layer's output stays as it was,
    to the bit. It does not where a norm adds to its weight, stands elsewhere, or feeds a router, too, or where the
    activation is on `up` itself.
    """
    modules, found = dict(model.named_modules()), dict[tuple[str, ...], nn.Module]()
    before: Tensor | None = None
    for group, source in GROUPS:
        front = modules.get(f"language_model.model.layers.{layer}.{source}")
        if source == "up":
            front = roles["up"][1] if "up" in roles else None
        if front is None or not set(group) <= roles.keys() or not _parts(front):
            continue
        some = [roles[role][1].weight for role in group]
        scale = 2.0 ** (torch.arange(some[0].shape[1]) % 3 - 1)
        changed = [*_parts(front), *some]
        if any(w.shape[1] != len(_parts(front)[0]) for w in some):
            continue
        kept = [part.clone() for part in changed]
        before = calibration.after(layer) if before is None else before
        try:
            for part in _parts(front):
                _divide(part, scale)
            for weight in some:
                weight.mul_(scale.to(weight))
            after = calibration.after(layer)
        finally:
            for part, old in zip(changed, kept, strict=True):
                part.copy_(old)
        if float((after - before).abs().max()) <= 1e-4 * float(before.abs().max()):
            found[group] = front
    return found


def _parts(front: nn.Module) -> list[Tensor]:
    """Weight and bias of a norm or a matrix, as far as it has them."""
    return [part for name in ("weight", "bias") if isinstance(part := getattr(front, name, None), Tensor)]


def _divide(part: Tensor, scale: Tensor) -> None:
    """Divide (features,) numbers, or the rows of a matrix, by (features,) scales; rounded once, to its type."""
    own = scale.to(part.device)
    part.copy_(part.to(own.dtype) / (own[:, None] if part.ndim == 2 else own))
