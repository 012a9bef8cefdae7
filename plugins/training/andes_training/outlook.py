"""What a recipe would do, without doing it: steps, tokens, what trains, and the memory of one process.

Activations are not guessed from a formula: a pack of the largest size runs through the real modules on tensors without
storage (torch's fake tensors), and what autograd would keep is added up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.storage.checkpoint import check_weights
from andes_sdk.types import Media
from andes_training.changes import put_in_changes
from andes_training.loss import CHUNK_LOGITS
from andes_training.processes import blocks_of
from andes_training.reading import check_stages, stage_samples
from andes_training.recipe import Recipe, StageRecipe, check_start
from andes_training.recompute import recomputed
from andes_training.step import freeze

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline


def outlook(recipe: Recipe, pipeline: Pipeline) -> dict[str, Any]:
    """What a recipe would do, stage by stage, as plain data. Reads data files, no weights.

    Raises:
        TrainingError: data that cannot be read, or rates that name nothing. CheckpointError: weights that do not fit.
    """
    check_stages(pipeline, recipe)
    check_start(recipe, pipeline)
    hollow = pipeline.meta_model()
    total = hollow.parameter_count()
    if pipeline.weights is not None:
        check_weights(hollow, pipeline.weights)
    return {"recipe": recipe.name, "parameters": total, "stages": [_stage(s, recipe, pipeline) for s in recipe.stages]}


def _stage(stage: StageRecipe, recipe: Recipe, pipeline: Pipeline) -> dict[str, Any]:
    model = pipeline.meta_model()
    _, rates = put_in_changes(model, pipeline.pick("training_stages", stage.stage), stage)
    freeze(model, rates)
    trainable = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in model.parts().items()
    }
    lora = None if stage.lora is None else {"rank": stage.lora.rank, "rate": stage.lora.rate, **stage.rates}
    memory = memory_of(model, stage, recipe.precision)
    return {
        "stage": stage.stage,
        "steps": stage.steps or None,
        "epochs": stage.epochs or None,
        "samples": len(stage_samples(stage.data, recipe.folder)),
        "tokens_per_step": stage.accumulate * stage.max_tokens,
        "tokens": stage.steps * stage.accumulate * stage.max_tokens or None,
        "rates": rates if lora is None else lora,
        "trainable": trainable,
        "memory_bytes": {**memory, "total": sum(memory.values())},
    }


def memory_of(model: VisionLanguageModel, stage: StageRecipe, precision: str) -> dict[str, int]:
    """Bytes that one process needs for a stage, by what they are for; whatever of the model trains must be thawed.

    Activations are those of one pack at its budget of tokens and patches; logits those of one piece, with its gradient.
    """
    weights = sum(p.nbytes for p in model.parameters())
    learnt = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logits = 4 * min(CHUNK_LOGITS, stage.max_tokens * model.text.vocab_size)
    # what is about as large at the same time: logits, their float32 copy or softmax, and the gradient
    found = {"weights": weights, "gradients": learnt, "optimizer": 2 * learnt, "logits": 3 * logits}
    if stage.ema:
        found["average"] = 4 * numbers
    return {**found, "activations": _activations(model, stage, precision)}


def _activations(model: VisionLanguageModel, stage: StageRecipe, precision: str) -> int:
    """What autograd keeps of one pack; with `recompute` also what one layer needs when its turn comes."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        _without_storage(model.train())
        whole = _kept(model, stage, precision)
        if not stage.recompute:
            return whole
        with recomputed(model):
            kept = _kept(model, stage, precision)
    return kept + (whole - kept) // max(1, len(blocks_of(model)))


def _without_storage(model: nn.Module) -> None:
    """Turn tensors of the meta device into fake ones of the CPU, in place; tied ones stay tied."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    made[tensor] = nn.Parameter(empty, tensor.requires_grad) if store is module._parameters else empty
                store[name] = made[tensor]  # type: ignore[assignment]


def _kept(model: VisionLanguageModel, stage: StageRecipe, precision: str) -> int:
    """Bytes of the distinct storages that autograd saves in a forward pass, parameters left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no storage is freed and its address given to another

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    merge, patch = model.vision.merge, model.vision.patch_size
    side = max(merge, math.isqrt(stage.max_patches) // merge * merge)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        media = Media(data=torch.zeros(side * side, 3 * patch**2), sizes=((side, side),), rows=(side**2 // merge**2,))
        images = model.encode({"image": media})["image"]
        rows = model.llm.embed(torch.zeros(stage.max_tokens, dtype=torch.int64))
        attend = PackedAttention([Segment(stage.max_tokens)])
        # every row depends on the pictures, as rows after them do
        model.hidden_states(rows + images.sum(), torch.arange(stage.max_tokens), attend)
    return sum(t.untyped_storage().nbytes() for t in kept.values())
