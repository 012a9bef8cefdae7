"""Low-rank adapters as an option of every stage (LoRA, arXiv 2106.09685), through peft.

The layers are peft's, and so is the folder that is written: `adapter_config.json` and `adapter_model.safetensors`, as
`peft.PeftModel.from_pretrained(pipeline.model, folder)` reads them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from andes_adapters.reading import BASE, CONFIG, WEIGHTS
from attrs import define, field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from andes_sdk.errors import TrainingError
from andes_sdk.files import appearing
from andes_sdk.numbers import numbers_of, weights_of
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    from andes_sdk.types import Model
    from andes_training.recipe import LoraRecipe

ADAPTER = "default"


@define(eq=False)
class Lora:
    """The adapter of one stage; a `types.ModelChange`.

    Attributes:
        folder: where it is saved, relative to the run's.
    """

    recipe: LoraRecipe
    folder: str
    targets: tuple[str, ...] = field(default=(), init=False)
    tuner: Any = field(default=None, init=False)

    def put_in(self, model: Model) -> None:
        """Add the adapter to a model, in place; B is zero, so nothing changes yet.

        Raises:
            TrainingError: peft is not installed, or the model has no matrix of the kinds asked for.
        """
        try:
            from peft import LoraConfig, LoraModel
        except ImportError as error:
            raise TrainingError(
                "LoRA needs peft", who="stages.lora", why=str(error), fix="pip install 'andes-training[lora]'"
            ) from None
        recipe = self.recipe
        self.targets = targets_of(model, recipe.targets)
        if not self.targets:
            raise TrainingError(
                f"the model has no matrix of the kinds {recipe.targets}",
                who="stages.lora.targets",
                fix="name other kinds: attention, mlp, vision, projector",
            )
        config = LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=sorted(self.targets)
        )
        self.tuner = LoraModel(model, config, ADAPTER)

    def rates(self, model: Model) -> dict[str, float]:
        """Module prefix -> learning rate: A and B learn, the matrices that they are added to do not."""
        rate, found = self.recipe.rate, dict[str, float]()
        for name in self.targets:
            found |= {f"{name}.base_layer": 0.0, f"{name}.lora_A": rate, f"{name}.lora_B": rate}
        return found

    def save(self, model: Model, folder: Path, fields: Mapping[str, Any] | None = None) -> None:
        """Write the adapter as peft does; the folder appears whole or not at all.

        It names the model as it is now, without the adapter: what else learnt beside it is part of its base.

        Args:
            fields: further ones of `adapter_config.json`.

        Raises:
            TrainingError: files in the folder are no part of an adapter, and would be lost.
        """
        strange = sorted(p.name for p in folder.iterdir() if p.name not in (WEIGHTS, CONFIG)) if folder.is_dir() else []
        if strange:
            what, why = "holds what is no part of an adapter", f"it would be lost: {', '.join(strange[:5])}"
            fix = "move it away; the same command goes on from the last state"
            raise TrainingError(what, who=str(folder), why=why, fix=fix)
        weights = cast("nn.Module", model)
        with self.beside(model):
            base = model.numbers or numbers_of(weights) or weights_of(weights)
        tensors = {
            f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": p.detach().contiguous()
            for name, p in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
        config = self.tuner.peft_config[ADAPTER]
        config.inference_mode = True
        with appearing(folder) as temporary:
            # peft warns of fields that it does not know, so weights, which it can use, are named beside the tensors
            named = {BASE: base} if base.startswith("weights:") else {}
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt", **named})
            config.save_pretrained(str(temporary))
            more = dict(fields or {}) | ({BASE: base} if base and not named else {})
            if more:
                path = temporary / CONFIG
                path.write_text(
                    json.dumps(parse_json(path.read_bytes()) | more, indent=2, sort_keys=True), encoding="utf-8"
                )

    @contextlib.contextmanager
    def beside(self, model: Model) -> Iterator[None]:
        """Within this, a model has its own layers under their own names, and no adapter."""
        weights = cast("nn.Module", model)
        layers = {name: weights.get_submodule(name) for name in self.targets}
        for name, layer in layers.items():
            weights.set_submodule(name, cast("nn.Module", layer.base_layer))
        try:
            yield
        finally:
            for name, layer in layers.items():
                weights.set_submodule(name, layer)

    def load(self, model: Model, folder: Path) -> None:
        """Go on with a saved adapter.

        Raises:
            TrainingError: there is none, or it is of other matrices.
        """
        own = {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}
        try:
            tensors = load_file(folder / WEIGHTS)
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(tensors[f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}"])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            fix = "restore the run's folder, or leave out lora.chain"
            raise TrainingError("the adapter cannot go on", who=str(folder), why=str(error), fix=fix) from None

    def take_out(self, model: Model) -> None:
        """Give the model its own layers back, with the adapter added to their weights or without it."""
        if self.recipe.merge:
            self.tuner.merge_and_unload()
        else:
            self.tuner.unload()


def targets_of(model: Model, kinds: list[str]) -> tuple[str, ...]:
    """Names of the matrices of these kinds: 'attention', 'mlp', 'vision', 'projector'; never the LM head."""
    found = []
    # what has as many rows as the vocabulary has ids may still be a matrix of a layer
    layers, vocabulary = {f"language_model.{name}" for name in model.llm.linears()}, model.text.vocab_size
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or _kind(name) not in kinds:
            continue
        head = name.startswith("language_model.") and module.out_features == vocabulary and name not in layers
        if not head:
            found.append(name)
    return tuple(found)


def _kind(name: str) -> str:
    part, _, rest = name.partition(".")
    if part != "language_model":
        return {"vision_encoder": "vision", "mlp": "projector"}.get(part, "")
    return "attention" if any("attn" in step or "attention" in step for step in rest.split(".")) else "mlp"
