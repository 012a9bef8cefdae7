"""Adapters as LiteRT-LM takes them: a file beside the bundle, released on its own.

LiteRT-LM gives A and B to the graphs as inputs: of the attention's q, k, v and o, at rank 16 or 32. Smaller ranks are
filled with zeros. Everything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from andes_adapters.attaching import add_adapter, remove_adapter
from andes_adapters.contract import contract_of, differing, read_contract
from andes_adapters.reading import contract_mark, read_adapter
from attrs import evolve
from safetensors.numpy import save_file

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.files import appearing_file, at_home
from andes_sdk.types import Adapter, LowRank

from .bundle import identity, opened
from .environment import Tell, _quiet, python, work, workplace

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from andes_sdk.pipeline import Pipeline

ROLES = "qkvo"
TRIED = "andes deploy adapter"
"""Name of an adapter while its base is compared."""


def shapes(pipeline: Pipeline, rank: int) -> dict[str, tuple[int, int]]:
    """Inputs of a graph that takes adapters of this rank, and their shapes."""
    text, out = pipeline.model.text, {}
    inner, outer = text.query_heads * text.head_dim, text.kv_heads * text.head_dim
    sizes = {"q": (text.width, inner), "k": (text.width, outer), "v": (text.width, outer), "o": (inner, text.width)}
    for n in range(text.layers):
        for role, (rows, columns) in sizes.items():
            out[f"lora_atten_{role}_a_prime_weight_{n}"] = (rows, rank)
            out[f"lora_atten_{role}_b_prime_weight_{n}"] = (rank, columns)
    return out


def tables(pipeline: Pipeline, adapter: Adapter | None, rank: int) -> dict[str, NDArray[np.float32]]:
    """A and B by name of the graph's input, the adapter's scale in B; all zeros without an adapter.

    Raises:
        ConfigError: a layer that LiteRT-LM gives no adapter, or a rank above `rank`.
    """
    out = {name: np.zeros(shape, np.float32) for name, shape in shapes(pipeline, rank).items()}
    for layer, low in ({} if adapter is None else adapter.layers).items():
        _, _, number, where, role = (*layer.split("."), "", "", "")[:5]
        if where != "self_attn" or role not in {f"{r}_proj" for r in ROLES}:
            why = "LiteRT-LM gives adapters to q_proj, k_proj, v_proj and o_proj of the attention alone"
            fix = "train the adapter with these targets, or merge it into a float model and deploy that"
            raise ConfigError("cannot be adapted on the device", who=layer, why=why, fix=fix)
        a, b = low.matrices()
        if len(a) > rank:
            fix = "deploy the base with --lora 32" if len(a) <= 32 else "train it with rank 32 or less"
            raise ConfigError(f"rank {len(a)}", who=layer, why=f"the bundle's graphs take rank {rank}", fix=fix)
        at = f"lora_atten_{role[0]}_{{}}_prime_weight_{number}"
        out[at.format("a")][:, : len(a)] = a.T.numpy()
        out[at.format("b")][: len(a)] = b.T.numpy() * low.scale
    return out


def made_up(pipeline: Pipeline, rank: int, name: str = "made up") -> tuple[Adapter, dict[str, NDArray[np.float32]]]:
    """An adapter of random numbers, and its tables: for checks."""
    rng, layers = np.random.default_rng(3), {}
    for n in range(pipeline.model.text.layers):
        for role in ROLES:
            layer = f"model.layers.{n}.self_attn.{role}_proj"
            linear = cast("nn.Linear", pipeline.model.language_model.get_submodule(layer))
            rows, columns = linear.weight.shape
            a, b = (rng.normal(0, 0.05, size).astype(np.float32) for size in ((rank, columns), (rows, rank)))
            layers[layer] = LowRank(a=torch.from_numpy(a), b=torch.from_numpy(b), scale=1.0)
    adapter = Adapter(name=name, layers=layers)
    return adapter, tables(pipeline, adapter, rank)


def promised(pipeline: Pipeline, path: Path, rank: int) -> dict[str, str]:
    """What a bundle says of its contract: its hash.

    Raises:
        ConfigError: the contract is of another base, the base has none, or its adapters are wider than the graphs take.
    """
    contract = read_contract(path)
    if pipeline.artefact is None:
        fix = "deploy the packed file that the contract was made of"
        raise ConfigError("a contract belongs to a packed base", who=str(path), why="this model is none", fix=fix)
    own = contract_of(pipeline.artefact, pipeline.tokenizer, contract.rank).mark
    if found := differing(contract.mark, own):
        raise ConfigError("is the contract of another base", who=str(path), why=f"other {', '.join(found)}")
    if contract.rank > rank:
        why = f"its adapters have rank {contract.rank}, the graphs take {rank}"
        raise ConfigError("adapters of this contract do not fit", who=str(path), why=why, fix="--lora 16 or 32")
    return {"contract": contract.hash}


def refuse_other(pipeline: Pipeline, folder: Path, said: Mapping[str, Any], bundle: Path) -> None:
    """Refuse an adapter whose contract, or whose base, is not the bundle's.

    Raises:
        ConfigError: saying which.
    """
    own = identity(pipeline)["numbers"]
    if said["numbers"] != own:
        why = f"the bundle has {said['numbers'][:24]}…, the model {own[:24]}…"
        fix = "open the model that the bundle was written from"
        raise ConfigError("the bundle is of another base", who=str(bundle), why=why, fix=fix)
    mark = contract_mark(folder)
    theirs, ours = ("" if mark is None else str(mark["hash"])), str(said.get("contract", ""))
    if ours and theirs != ours:
        why = f"the bundle has {ours[:12]}…, the adapter {theirs[:12] + '…' if theirs else 'none'}"
        fix = "train the adapter with the bundle's contract: andes qalft train"
        raise ConfigError("the adapter has another contract", who=str(folder), why=why, fix=fix)


def fitting(pipeline: Pipeline, folder: Path, name: str, told: Mapping[str, Any], bundle: Path) -> Adapter:
    """An adapter that peft saved, if an opened bundle can take it.

    Raises:
        ConfigError: another base or contract, a layer or rank that LiteRT-LM does not take, a bundle without adapters.
        CheckpointError: files that are damaged.
    """
    rank = rank_of(told, bundle)
    refuse_other(pipeline, folder, told["said"], bundle)
    adapter = evolve(read_adapter(name, folder, pipeline.model.language_model), name=name)
    add_adapter(pipeline, TRIED, folder)  # refuses what was trained on another base
    remove_adapter(pipeline, TRIED)
    tables(pipeline, adapter, rank)
    return adapter


def rank_of(told: Mapping[str, Any], bundle: Path) -> int:
    """Rank of the adapters that an opened bundle takes.

    Raises:
        ConfigError: it takes none.
    """
    if rank := int(told["options"].get("lora", 0)):
        return rank
    fix = "deploy the base with --lora 16 or --lora 32"
    raise ConfigError("the bundle takes no adapters", who=str(bundle), why="its graphs have no inputs", fix=fix)


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """A name for each folder of an adapter: its own, or the whole path where several have the same.

    Raises:
        ConfigError: a folder that is given twice.
    """
    whole = [folder.absolute() for folder in folders]
    for folder in whole:
        if whole.count(folder) > 1:
            raise ConfigError("is given twice", who=f"adapter {folder}", fix="name it once")
    names = [folder.name for folder in whole]
    return {str(f) if names.count(f.name) > 1 else f.name: f for f in whole}


def adapter_file(
    pipeline: Pipeline, folder: Path | None, bundle: Path, path: Path, tell: Tell = _quiet
) -> dict[str, Any]:
    """Write an adapter that peft saved as LiteRT-LM's file for a bundle -> facts. No folder: zeros, the base's answers.

    Raises:
        ConfigError: another base or contract, a layer or rank that LiteRT-LM does not take, a bundle without adapters.
        CheckpointError: files that are damaged. BackendUnavailable: LiteRT is not here.
    """
    python()
    path = at_home(path)
    with workplace() as place:
        tell("opening the bundle")
        told = opened(bundle, place)
        rank, said = rank_of(told, bundle), told["said"]
        adapter = None if folder is None else fitting(pipeline, folder, folder.name, told, bundle)
        facts = {
            "numbers": said["numbers"], "contract": said.get("contract", ""), "rank": rank,
            "name": "none" if folder is None else folder.name,
        }  # fmt: skip
        write(pipeline, adapter, rank, facts, place)
        try:
            with appearing_file(path) as whole:
                whole.write_bytes((place / "lora.tflite").read_bytes())
        except OSError as error:
            raise CheckpointError("cannot be written", who=str(path), why=str(error), fix="choose another") from None
    return {"path": str(path), "bytes": path.stat().st_size, **facts}


def write(pipeline: Pipeline, adapter: Adapter | None, rank: int, facts: Mapping[str, Any], place: Path) -> Path:
    """An adapter's file in the worker's folder, `lora.tflite`."""
    save_file(tables(pipeline, adapter, rank), place / "lora.safetensors")
    work(place, {"do": "lora", "rank": rank, "said": dict(facts)})
    return place / "lora.tflite"
