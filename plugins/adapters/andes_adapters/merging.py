"""An adapter added to the weights of its base: W + scale * B A, as peft's `merge_and_unload` has it, through peft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from andes_adapters.reading import INT8, WEIGHTS, base_of, contract_mark
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.numbers import numbers_of, weights_of

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel


def merge_adapter(model: VisionLanguageModel, folder: Path, *, any_base: bool = False) -> bool:
    """Merge a saved adapter into a model, in place -> whether the adapter names its base.

    Args:
        any_base: merge it into other weights than it was trained on, too.

    Raises:
        CheckpointError: it cannot be read, or does not fit. ConfigError: peft is not installed, or the model is not
            its base, or is compressed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        fix = "pip install 'andes-adapters[merge]'"
        raise ConfigError("merging needs peft", who="adapters", why=str(error), fix=fix) from None
    if model.numbers or numbers_of(model):
        fix = "attach it with --adapter, or merge into the model that was compressed"
        raise ConfigError("a compressed model cannot take an adapter in", who=str(folder), fix=fix)
    if contract_mark(folder) is not None:
        why = "it was trained for the codes of a quantised base, and codes take nothing in"
        fix = "attach it to its base: `andes chat -m BASE --adapter NAME=FOLDER`"
        raise ConfigError("an adapter of a contract is never merged", who=str(folder), why=why, fix=fix)
    if (folder / INT8).exists():
        fix = "merge the floats that it was made from"
        raise ConfigError("an int8 adapter is not merged", who=str(folder), why="peft reads no codes", fix=fix)
    try:
        base = base_of(folder)
    except Exception as error:  # a file that is not there, or whatever is in it
        fix = "give the folder that peft's save_pretrained wrote"
        raise CheckpointError("cannot be read", who=str(folder / WEIGHTS), why=str(error), fix=fix) from None
    if base and base != (own := weights_of(model)) and not any_base:
        why, fix = f"it was trained on {base}, this model has {own}", "open its base, or say --any-base"
        raise ConfigError("belongs to another base", who=str(folder), why=why, fix=fix)
    try:
        read = PeftModel.from_pretrained(model, str(folder))
        wanted = {name.replace(".default.", ".") for name, _ in read.named_parameters() if ".lora_" in name}
        if missing := sorted(wanted - _saved(folder)):
            raise ValueError(f"it lacks {missing[0]}, and {len(missing) - 1} more")
        read.merge_and_unload(safe_merge=True)
    except Exception as error:
        why, fix = f"{type(error).__name__}: {error}", "use an adapter of this model"
        raise CheckpointError("does not fit this model", who=str(folder), why=why, fix=fix) from error
    return bool(base)


def _saved(folder: Path) -> set[str]:
    """Names of an adapter's tensors."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        return set(file.keys())
