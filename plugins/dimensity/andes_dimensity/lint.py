"""What of a model will not run, or not well, on the NPU: told before anything is exported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import frozen
from torch import nn

from andes_sdk.errors import ConfigError
from andes_sdk.runtime.attention import PackedAttention, Segment

from .buckets import ranges
from .codes import ranges_of
from .export import lower

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

    from .export import Lowered
    from .options import Options

SURVIVES = 512.0
"""Largest magnitude over the median one: beyond it int16, which the largest fills, leaves the median under six bits."""

LEVELS = ("error", "warning", "note")


@frozen(kw_only=True)
class Finding:
    """One thing to know before exporting.

    Attributes:
        level: "error" (it cannot be exported), "warning" (it will lose) or "note".
        layer: where. what: one sentence. fix: what to change.
    """

    level: str
    layer: str
    what: str
    fix: str


@frozen(eq=False)
class Linted:
    """Findings, errors first, and the tables that were made on the way (None if they cannot be)."""

    findings: list[Finding]
    lowered: Lowered | None

    @property
    def fine(self) -> bool:
        """Whether it can be exported."""
        return all(one.level != "error" for one in self.findings)


def lint(pipeline: Pipeline, options: Options) -> Linted:
    """Look at every module and matrix, and run a text and a picture through the float model for its outliers."""
    findings = []
    lowered: Lowered | None = None
    try:
        lowered = lower(pipeline, options)
    except ConfigError as error:
        fix = error.fix or "see the page of the plugin dimensity"
        findings.append(Finding(level="error", layer=error.who, what=f"{error.what}: {error.why}", fix=fix))
    findings += [*_activations(pipeline), *_ranges(pipeline), *_layout(pipeline, options, lowered)]
    if lowered is not None:
        findings += [*_errors(pipeline, lowered), *_outliers(pipeline)]
    findings.sort(key=lambda one: LEVELS.index(one.level))
    return Linted(findings, lowered)


def _activations(pipeline: Pipeline) -> Iterator[Finding]:
    model = pipeline.model
    for part, module in (("vision_encoder", model.vision_encoder), ("mlp", model.projector)):
        plan = cast("Any", module).blueprint() if hasattr(module, "blueprint") else {}
        if plan.get("activation") == "gelu":
            what = "exact GELU: the NPU approximates it"
            yield Finding(
                level="warning", layer=part, what=what, fix="compare scores on the device, or train gelu_tanh"
            )


def _ranges(pipeline: Pipeline) -> Iterator[Finding]:
    wanted = len(pipeline.model.llm.linears())
    have = sum(name.startswith("language_model.") for name in ranges_of(pipeline.model, pipeline.artefact))
    if have < wanted:
        what = f"{wanted - have} of {wanted} matrices have no trained input range"
        fix = "train with fake quantisation, or let a16 take ranges from prompts"
        yield Finding(level="note", layer="language_model", what=what, fix=fix)


def _layout(pipeline: Pipeline, options: Options, lowered: Lowered | None) -> Iterator[Finding]:
    if lowered is not None and lowered.buckets:
        what = f"pictures keep their shape: {ranges(lowered.buckets)}"
        fix = "let the app set visual_token_budget; without it every picture fills the largest"
        yield Finding(level="note", layer="vision_encoder", what=what, fix=fix)
        own = pipeline.processor.preprocessor
        least = max(own.min_size // own.block, 1) ** 2
        if lowered.buckets[0] < least:
            what = f"a graph of {lowered.buckets[0]} tokens: the preprocessor makes no picture of fewer than {least}"
            yield Finding(level="warning", layer="vision_encoder", what=what, fix=f"--buckets from {least} on")
    if lowered is not None and lowered.grids:
        spec, (rows, columns) = pipeline.model.vision, lowered.grids[0]
        size = f"{rows * spec.patch_size} x {columns * spec.patch_size}"
        what = f"pictures are {size} pixels: LiteRT-LM stretches others to it"
        yield Finding(level="note", layer="vision_encoder", what=what, fix="resize in the app, keeping the aspect")
    if options.prompt >= options.rows:
        what, fix = f"a prompt graph of {options.prompt} rows in a cache of {options.rows}", "raise --rows"
        yield Finding(level="warning", layer="cache", what=what, fix=fix)
    what = "embedding lookup runs on the CPU: MediaTek's plugin rejects it"
    yield Finding(level="note", layer="embed_tokens", what=what, fix="nothing: it is a graph of its own")


def errors_of(pipeline: Pipeline, lowered: Lowered) -> dict[str, float]:
    """Relative error of each rounded matrix: root mean square of what rounding changed over that of the weights."""
    state, out = pipeline.model.state_dict(), {}
    for name, one in lowered.parts["text"].matrices.items():
        if one.source == "rounded":
            weight = state[f"language_model.{name}"].detach().float()
            out[name] = float((torch.from_numpy(one.weights) - weight).norm() / weight.norm().clamp_min(1e-12))
    return out


def _errors(pipeline: Pipeline, lowered: Lowered) -> Iterator[Finding]:
    for name, error in errors_of(pipeline, lowered).items():
        if error > 0.15:
            what = f"rounding loses {error:.0%} of its magnitude"
            yield Finding(level="warning", layer=name, what=what, fix="use w8 there, or train with fake quantisation")


def inputs_seen(pipeline: Pipeline, rows: int = 64) -> dict[str, float]:
    """Largest magnitude over the median one of what enters each linear layer, on random tokens and one picture."""
    model, seen = pipeline.model, dict[str, float]()
    hooks = []

    def hook(name: str) -> Any:
        def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().float().abs()
            ratio = float(x.max() / x.median().clamp_min(1e-12))
            seen[name] = max(seen.get(name, 0.0), ratio)

        return look

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(hook(name)))
    try:
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(model.text.vocab_size, (rows,), generator=generator)
            hidden = model.hidden_states(model.llm.embed(ids), torch.arange(rows), PackedAttention([Segment(rows)]))
            model.logits(hidden)
            side = 4 * model.vision.merge
            patches = torch.randn(side * side, 3 * model.vision.patch_size**2, generator=generator)
            model.projector(model.vision_encoder(patches.to(model.dtype), [(side, side)]))
    finally:
        for one in hooks:
            one.remove()
    return seen


def _outliers(pipeline: Pipeline) -> Iterator[Finding]:
    for name, ratio in inputs_seen(pipeline).items():
        if ratio > SURVIVES:
            what = f"its input has a value {ratio:,.0f} times the median one"
            yield Finding(level="warning", layer=name, what=what, fix="keep norms and the residual in float there")
