"""What the numbers of the numba backend's vision cost in accuracy, on the trained first-light model.

    python benchmarks/vision_accuracy.py --json

Features of the encoder against torch in float32 (root of the mean square of the error over that of the truth), and how
many answers stay the same. "outliers" is the same function written with large activations: four channels of every norm
times 50, the columns that read them divided by 50.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from andes_numba.encoder import Vision
from andes_numba.machine import choose_kernels
from andes_numba.team import Team

from andes_sdk import Pipeline
from andes_sdk.inputs.messages import user_message
from andes_sdk.runtime.generation import GenerationOptions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "first_light"))
from prepare import DIGIT_QUESTIONS, digits, easy_vqa_questions  # noqa: E402

Encode = Callable[..., torch.Tensor]


def questions(each: int) -> list[Any]:
    """Messages from both test sets, at even distances."""
    vqa = [(path, q) for path, pairs in easy_vqa_questions("test") for q, _ in pairs]
    held_out = [(image, DIGIT_QUESTIONS[0]) for image, _ in digits("test")]
    chosen = [items[i * len(items) // each] for items in (vqa, held_out) for i in range(each)]
    return [[user_message(question, [image])] for image, question in chosen]


def answers(pipe: Pipeline, messages: list[Any]) -> list[str]:
    """Texts of all answers."""
    return [answer.text for answer in pipe.generate_batch(messages, GenerationOptions(max_tokens=8))]


def off(encode: Encode, inputs: list[Any], truth: list[torch.Tensor]) -> float:
    """Relative error of features over all pictures."""
    with torch.inference_mode():
        wrong = [encode(i.data, i.sizes).float() - t for i, t in zip(inputs, truth, strict=True)]
    return float((sum(w.square().sum() for w in wrong) / sum(t.square().sum() for t in truth)).sqrt())


def outliers(encoder: Any) -> None:
    """The same function with four large channels after every norm; in place."""
    torch.manual_seed(0)
    with torch.no_grad():
        for block in encoder.trunk.blocks:
            for norm, readers in ((block.norm_1, [block.attn.qkv]), (block.norm_2, [block.mlp.fc1, block.mlp.fc3])):
                large = torch.randperm(norm.weight.numel())[:4]
                norm.weight[large] *= 50
                for layer in readers:
                    layer.weight[:, large] /= 50


def measure(folder: Path, each: int) -> dict[str, dict[str, Any]]:
    """Figures of each kind of numbers."""
    pipe, kernels = Pipeline.from_pretrained(folder, dtype="float32"), choose_kernels("auto")[0]
    messages, model = questions(each), pipe.model.eval()
    wanted, inputs = answers(pipe, messages), [pipe.prepare(m).media["image"] for m in messages[::2]]
    with torch.inference_mode():
        truth = [model.vision_encoder(i.data, i.sizes) for i in inputs]
    found: dict[str, dict[str, Any]] = {}
    plain = model.vision_encoder.forward, model.mlp.forward
    for numbers in ("f32", "bf16", "w8"):
        vision = Vision(model, numbers, kernels, Team(1))
        model.vision_encoder.forward, model.mlp.forward = vision.encode, vision.project
        same = sum(a == b for a, b in zip(answers(pipe, messages), wanted, strict=True))
        model.vision_encoder.forward, model.mlp.forward = plain
        found[numbers] = {"error": off(vision.encode, inputs, truth), "same_answers": same, "answers": len(wanted)}
    found["torch bf16"] = {"error": off(_half(model.vision_encoder), inputs, truth)}
    outliers(model.vision_encoder)
    for numbers in ("f32", "bf16", "w8"):
        found[numbers]["error_with_outliers"] = off(Vision(model, numbers, kernels, Team(1)).encode, inputs, truth)
    found["torch bf16"]["error_with_outliers"] = off(_half(model.vision_encoder), inputs, truth)
    return found


def _half(encoder: Any) -> Encode:
    half = copy.deepcopy(encoder).bfloat16()
    return lambda patches, grids: half(patches.bfloat16(), grids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "first_light" / "model")
    parser.add_argument("--each", type=int, default=32, help="questions of each data set")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    found = measure(given.model, given.each)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        for numbers, figures in found.items():
            print(
                f"{numbers:12}", *(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
            )


if __name__ == "__main__":
    main()
