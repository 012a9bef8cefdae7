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

from .compressors import _give, _matrix, _once, nearest
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
    name: str = "awq"

    @torch.no_grad()
    def compress(self, model: Model, *, data: str = "", lines: int = 0) -> Compressed:
        """Put a model on its grids, in place; weights of norms change, too.

        Args:
            data, lines: instead of the plugin's.

        Returns:
            A report. matrices, tokens. scaled: groups of matrices with scales, of all that have matrices; layers
            without the norms of a Llama or Qwen have none. alpha: mean of what was chosen. output_error: of the
            matrices that were scaled, squared error of outputs ÷ that of rounding to nearest, mean over groups.

        Raises:
            ConfigError: no data, or as the plugin's grids.
        """
        targets = _once(model, self.choice)
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
            seen: dict[str, Seen] = {}
            clipped: dict[str, bool] = {}

            def see(name: str, rows: Tensor, seen: dict[str, Seen] = seen) -> None:
                seen.setdefault(name, Seen(rows.shape[1])).add(rows)

            calibration.show(layer, dict(roles.values()), see)
            for group, source in GROUPS:
                some = [roles[role] for role in group if role in roles]
                if not some:
                    continue
                groups += 1
                front = _front(model, layer, source, roles)
                if front is None:
                    continue
                first = seen[some[0][0]]
                found = search([m.weight for _, m in some], [targets[n] for n, _ in some], first.gram, first.mean)
                chosen.append(found)
                _divide(front, found.scale)
                for name, module in some:
                    module.weight.mul_(found.scale.to(module.weight))
                    clipped[name] = found.clipped
            own = {
                f"{name}.weight": nearest(module.weight, targets[name], search=clipped.get(name, True))
                for name, module in roles.values()
            }
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


def search(weights: Sequence[Tensor], targets: Sequence[Target], gram: Tensor, mean: Tensor) -> Found:
    """Scales of the columns of matrices that share an input.

    Alphas are compared with plain scales of groups, as the authors do. The best one with plain and with searched scales
    is then compared with rounding to nearest, in float64.

    Args:
        weights: (rows, columns) each. gram: (columns, columns) sum of x x^T. mean: (columns,) mean |x|.
    """

    def error(scale: Tensor, gram: Tensor, clipped: bool) -> float:
        return sum(output_error(w, scale, t, gram, clipped=clipped) for w, t in zip(weights, targets, strict=True))

    def of(alpha: float) -> Tensor:
        scale = mean.clamp_min(1e-12).pow(alpha).clamp_min(1e-4)
        return scale / (scale.max() * scale.min()).sqrt()

    rough, wide = gram.float(), gram.double()
    best = min((step / STEPS for step in range(STEPS)), key=lambda alpha: error(of(alpha), rough, False))
    plain = error(of(0.0), wide, True)
    tried = {(0.0, True): plain} | {(best, clipped): error(of(best), wide, clipped) for clipped in (False, True)}
    alpha, clipped = min(tried, key=lambda one: tried[one])
    return Found(of(alpha), alpha, clipped, tried[alpha, clipped] / plain if plain else 1.0)


def _front(model: Model, layer: int, source: str, roles: Mapping[str, tuple[str, nn.Linear]]) -> nn.Module | None:
    """What gives a group its inputs, times a factor of each; None in layers that are not those of a Llama or Qwen."""
    modules = dict(model.named_modules())
    norms = [modules.get(f"language_model.model.layers.{layer}.{one}") for _, one in GROUPS[:2]]
    if any(norm is None for norm in norms):  # without them, nothing says that `up` is multiplied with a gate
        return None
    if source == "up":
        return roles["up"][1] if {"gate", "up"} <= set(roles) else None
    return norms[0] if source == GROUPS[0][1] else norms[1]


def _divide(front: nn.Module, scale: Tensor) -> None:
    """Divide what a norm, or the rows of a matrix, gives by (features,) scales."""
    for part in (front.weight, getattr(front, "bias", None)):
        if part is not None:
            part = cast("Tensor", part)
            own = scale.to(part)
            part.div_(own[:, None] if part.ndim == 2 else own)
