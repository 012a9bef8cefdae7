"""Block-wise training: each layer learns to send on what the float layer does, first to last.

As the first phase of EfficientQAT (arXiv 2407.11062, section 3.2, "Block-AP"), our own small implementation: a layer is
given what the rounded ones before it send on, and its target is what the float layer at its place sends on in the float
model. All of its weights, scales and norms learn, by AdamW with a linear fall of the rate, on the squared error of each
row ÷ its squares (ours: the first token's rows are a hundred times the others' in many models, and would be all that is
learned). One layer at a time costs about a pass through the model for each pass over the data, and no logits. Survivors
of sparse grids are chosen anew in each step of the first half.
Left out: what is outside of the language model's layers, ranges of inputs, learned zero points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from andes_sparsity.calibration import Calibration, layer_module, output_of
from attrs import frozen
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from andes_sdk.types import Compressed

from .compressors import _give, _matrix, nearest, rotated_targets
from .fake import codes_of
from .grids import Choice, Target
from .layers import Rounding, in_float32, put_in, take_out

if TYPE_CHECKING:
    from andes_training.packing import Batch

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model


def train_layers(
    model: VisionLanguageModel, packs: Sequence[Batch], *, steps: int, rate: float, scale_rate: float,
    console: Console | None = None,
) -> list[float]:  # fmt: skip
    """Train the layers that round, one after the other, in place -> the error of each after it.

    Args:
        packs: what is read; a step takes one of them. steps: of each layer. rate: of weights; of scales, times
            scale_rate, their logarithm. console: where progress is shown.

    Raises:
        ConfigError: as `andes_sparsity.calibration.layer_module`.
    """
    floats, rounded = Calibration(model, packs), Calibration(model, packs)
    errors = []
    with _floats(model):
        floats.calls(0)
    rounded.calls(0)
    for layer in track(range(model.text.layers), "block-wise", console=console, disable=console is None):
        module = layer_module(model, layer)
        own = [m for m in module.modules() if isinstance(m, Rounding)]
        with _floats(module), torch.no_grad():  # with the weights as they were
            targets = [output_of(module, call) for call in floats.calls(layer)]
        floats.take(layer + 1, targets)
        calls = rounded.calls(layer)
        if own:
            _train(module, own, calls, targets, steps, rate, scale_rate)
        with _settled(own), torch.no_grad():
            made = [output_of(module, call) for call in calls]
        rounded.take(layer + 1, made)
        errors.append(_error(made, targets))
    return errors


@contextmanager
def _floats(module: nn.Module) -> Iterator[None]:
    """Nothing in it rounds while this lasts."""
    own = [m for m in module.modules() if isinstance(m, Rounding)]
    for one in own:
        one.off = True
    try:
        yield
    finally:
        for one in own:
            one.off = False


@contextmanager
def _settled(own: Sequence[Rounding]) -> Iterator[None]:
    """Weights are rounded once while this lasts, and not in each pass; of layers whose inputs stay floats."""
    own = [one for one in own if one.input_base is None]
    kept = [one.weight.data for one in own]
    for one in own:
        codes, scales = codes_of(one.weight, one.scales, one.weight_mask, one.target)
        scales = scales.float().repeat_interleave(one.target.group, 1)[:, : codes.shape[1]]
        one.weight.data, one.off = codes.float() * scales, True
    try:
        yield
    finally:
        for one, weight in zip(own, kept, strict=True):
            one.weight.data, one.off = weight, False


def _error(made: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """Mean over all rows of what `_off` says of each."""
    return float(torch.cat([_off(m, t).flatten() for m, t in zip(made, targets, strict=True)]).mean())


def _off(made: Tensor, target: Tensor) -> Tensor:
    """(1, T, D) twice -> (1, T) squared error of each row ÷ its squares."""
    return (made - target).float().square().sum(-1) / target.float().square().sum(-1).clamp_min(1e-30)


def _train(
    module: nn.Module, own: Sequence[Rounding], calls: Sequence[Any], targets: Sequence[Tensor], steps: int,
    rate: float, scale_rate: float,
) -> None:  # fmt: skip
    kinds: dict[str, list[nn.Parameter]] = {"weight_scale": [], "input_scale": [], "": []}
    for name, parameter in module.named_parameters():
        kinds.get(name.rpartition(".")[2], kinds[""]).append(parameter)
    scales, rest = kinds["weight_scale"], kinds[""]
    wanted = [(p, p.requires_grad) for p in module.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(True)
    groups = [{"params": rest, "base": rate}, {"params": scales, "base": rate * scale_rate}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * min(1.0, (step + 1) / 5) * (1 - step / steps)
            if step < max(1, steps // 2):
                for one in own:
                    one.choose(one.target.n)
            call, target = calls[step % len(calls)], targets[step % len(calls)]
            loss = _off(output_of(module, call), target).mean()
            loss.backward()
            nn.utils.clip_grad_norm_([*rest, *scales], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for parameter, before in wanted:
        parameter.grad = None
        parameter.requires_grad_(before)


@frozen(kw_only=True)
class Blockwise:
    """Compressor `blockwise`."""

    choice: Choice
    rule: str
    data: str
    lines: int
    max_tokens: int
    steps: int
    rate: float
    scale_rate: float
    rotation: str = ""
    name: str = "blockwise"

    def compress(self, model: Model, *, data: str = "", lines: int = 0, steps: int = 0) -> Compressed:
        """Put a model on its grids, in place; norms of its layers change, too. It is computed in float32.

        Args:
            data, lines, steps: instead of the plugin's.

        Returns:
            A report. matrices, tokens, steps of each layer. error: squared error of what the last layer sends on ÷ the
            squares of what the float one does, mean over rows.

        Raises:
            ConfigError: no data, or as the plugin's grids. TrainingError: data that cannot be read.
        """
        whole = cast("VisionLanguageModel", model)
        targets = rotated_targets(model, self.choice, self.rotation)
        with in_float32(whole):
            return self._compress(whole, targets, data, lines, steps or self.steps)

    def _compress(
        self, model: VisionLanguageModel, targets: Mapping[str, Target], data: str, lines: int, steps: int
    ) -> Compressed:
        read = Calibration.of(model, data or self.data, lines or self.lines, self.max_tokens, self.name)
        inner = {f"language_model.{place}" for place in model.llm.linears()}
        modules = dict(model.named_modules())
        for name, target in targets.items():
            if name in inner:
                put_in(modules[name], target, self.rule, 0, "calibrated", None)
        errors = train_layers(
            model, read.packs, steps=steps, rate=self.rate, scale_rate=self.scale_rate, console=Console(stderr=True)
        )
        made = {f"{n}.weight": cast("Rounding", modules[n]).codes() for n in targets if n in inner}
        take_out(model)
        rest = {f"{n}.weight": nearest(_matrix(model, n), t) for n, t in targets.items() if n not in inner}
        with torch.no_grad():
            _give(model, rest)
        report = {"matrices": len(targets), "tokens": read.tokens, "steps": steps, "error": errors[-1]}
        return Compressed(codes={**made, **rest}, report=report)
