"""Group-relative policy optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from andes_sdk import hookimpl

from .options import Options

if TYPE_CHECKING:
    from andes_sdk.plan import Plan

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""One red pixel, for the samples of the conformance kit."""


@frozen(eq=False, kw_only=True)
class GRPO(Options):
    """Learn from rewarded answers. Shortest use: Pipeline.from_plugins([..., "verifiers", "grpo"])."""

    contract = "1.1"
    companions: ClassVar[Sequence[Any]] = [{"verifiers": {"length_limit": 12, "length_grace": 1.0}}]
    testing: ClassVar[Mapping[str, object]] = {
        "rewards": {"length": 1.0}, "group": 4, "prompts_per_step": 2, "max_answer": 6,
    }  # fmt: skip
    samples: ClassVar[Sequence[Mapping[str, object]]] = tuple(
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
         "images": [PIXEL], "answer": "no"}
        for text in ("Is it red?", "Is it a box?", "Is it new?")
    )  # fmt: skip

    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        """One stage, `grpo`."""
        from .stage import GroupRelative

        return [GroupRelative(self)]

    @hookimpl
    def andes_check(self, plan: Plan) -> list[str]:
        """Options that do not fit one another or the pipeline."""
        problems = []
        if self.overlong == "penalty" and self.overlong_buffer > self.max_answer:
            problems.append(f"overlong_buffer {self.overlong_buffer} exceeds max_answer {self.max_answer}")
        if plan.backend != "torch":
            problems.append(f"training needs the backend 'torch', whose weights learn; the plan has {plan.backend!r}")
        return problems

    @hookimpl
    def andes_explain(self, plan: Plan) -> dict[str, str]:
        """Where answers come from, and which loss is taken."""
        reference = f"KL {self.kl} from the stage's first weights" if self.kl else "no reference"
        return {
            "answers": self.server or "the model itself, with the pipeline's decoder and cache policy",
            "loss": f"{self.normalise} mean, ratios per {self.level}, clip -{self.clip_low} +{self.clip_high}, "
            f"{reference}",
        }
