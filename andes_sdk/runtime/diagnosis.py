"""Where numbers stop being finite: looked for once an answer has failed, in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from andes_sdk.errors import NotFinite
from andes_sdk.runtime.attention import PackedAttention, Segment

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Inputs


@torch.no_grad()
def explained(error: NotFinite, model: VisionLanguageModel, inputs: Inputs) -> NotFinite:
    """The same error, with the first part of the model whose output is not finite for these inputs."""
    dtype = str(model.dtype).removeprefix("torch.")
    for name, weight in model.named_parameters():
        if weight.numel() and not weight.isfinite().all():
            fix = "check the checkpoint, or train from an earlier state"
            return NotFinite(error.what, who=name, why="the weight itself holds NaN or infinities", fix=fix)
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        rows = model.encode(inputs.media)
        embeds = model.embed(inputs.ids.to(model.device), rows)
        attend = PackedAttention([Segment(len(embeds))])
        hidden = model.hidden_states(embeds, torch.arange(len(embeds), device=embeds.device), attend)
        model.logits(hidden[-1:])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        why = f"every part gives finite numbers in torch's {dtype}: the backend's own arithmetic does not"
        return NotFinite(error.what, who=error.who, why=why, fix='compare with backend="torch"')
    why = f"the output of {found[0]} is the first that is not, in {dtype}"
    wider = "check its weights" if dtype == "float32" else "use dtype='bfloat16' or 'float32'"
    return NotFinite(error.what, who=found[0], why=why, fix=wider)
