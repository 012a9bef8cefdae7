"""The options of the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, in_, optional


def _named(_: object, attribute: Attribute[Any], value: Mapping[str, float]) -> None:
    if not value:
        raise ValueError(f"{attribute.name} must name at least one reward")


def _option(default: Any, help: str, *validators: Any) -> Any:
    return field(default=default, validator=list(validators), metadata={"help": help})


@frozen(eq=False, kw_only=True)
class Options:
    """What is sampled, how it is scored, and which loss is taken."""

    rate: float = _option(1e-6, "learning rate of the language model", gt(0.0))
    projector_rate: float | None = _option(None, "of the projector; None: the same, 0 freezes it", optional(ge(0.0)))
    encoder_rate: float | None = _option(0.0, "of the vision encoder; None: the same, 0 freezes it", optional(ge(0.0)))

    rewards: Mapping[str, float] = field(
        factory=lambda: {"exact": 1.0}, validator=_named, metadata={"help": "reward of the pipeline -> weight"}
    )
    group: int = _option(8, "answers per prompt", ge(2))
    prompts_per_step: int = _option(8, "prompts per optimizer step, over all processes", ge(1))
    minibatches: int = _option(1, "optimizer steps that one rollout is divided into", ge(1))
    epochs: int = _option(1, "how often a rollout is gone through (mu)", ge(1))
    resample: int = _option(0, "rounds of new prompts for groups whose rewards are all equal (DAPO)", ge(0))
    order: str = _option("shuffle", "order of prompts: shuffle, or file (a curriculum)", in_(("shuffle", "file")))

    max_answer: int = _option(512, "longest answer in tokens", ge(1))
    temperature: float = _option(1.0, "of sampling, and of the policy that learns", gt(0.0))
    concurrency: int = _option(64, "answers decoded at the same time", ge(1))
    server: str = _option("", "base URL of a vLLM server that samples, such as http://host:8000/v1; empty: the model")
    server_model: str = _option("", "name of the model there; empty: the only one it has")
    server_timeout: float = _option(600.0, "seconds that one answer of the server may take", gt(0.0))

    scale: str = _option("group", "divide advantages by their group's deviation: group or none", in_(("group", "none")))
    normalise: str = _option(
        "token",
        "the loss is a mean over tokens (DAPO), over answers' means (sequence), or over answers of max_answer tokens "
        "(constant, Dr. GRPO)",
        in_(("token", "sequence", "constant")),
    )
    level: str = _option("token", "importance ratios per token, or per sequence (GSPO)", in_(("token", "sequence")))
    clip_low: float = _option(0.2, "ratios are clipped at 1 - this", gt(0.0))
    clip_high: float = _option(0.28, "and at 1 + this (DAPO: higher)", gt(0.0))
    kl: float = _option(0.0, "weight of the KL divergence from the stage's first weights; 0: none", ge(0.0))
    kl_correction: bool = _option(True, "weigh the KL estimate by the importance ratio, which unbiases its gradient")
    mismatch_cap: float | None = _option(
        2.0, "largest weight that corrects sampler against model; None: no correction", optional(gt(0.0))
    )
    overlong: str = _option(
        "keep", "answers cut at max_answer: keep, mask (no loss), penalty (DAPO)", in_(("keep", "mask", "penalty"))
    )
    overlong_buffer: int = _option(64, "penalty: tokens before max_answer over which it grows from 0 to -1", ge(1))
