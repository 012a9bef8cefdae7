"""What a pipeline computes, as values that can be compared: a picture and a question, a short answer, a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.testing.material import answer_to_everything, conversation
from andes_sdk.testing.registry import DataLines, measures

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def probe(pipe: Pipeline, number: int = 0, samples: DataLines = ()) -> dict[str, object]:
    """Logits of a prompt, the tokens of an answer, and what `measure`d functions add, such as the loss of every stage.

    Equal pipelines give equal values.
    """
    messages = conversation(number)
    logits = answer_to_everything(pipe.model, pipe.prepare(messages))
    found: dict[str, object] = {
        "the logits of a prompt": logits.tolist(),
        "the answer to a prompt": pipe.generate(messages, GenerationOptions(max_tokens=4)).tokens,
    }
    for measured in measures():
        found |= measured(pipe, samples)
    return found


@torch.no_grad()
def changed(pipe: Pipeline) -> None:
    """Other weights, as after training."""
    for weight in pipe.model.parameters():
        weight.mul_(0.5).add_(0.01)
