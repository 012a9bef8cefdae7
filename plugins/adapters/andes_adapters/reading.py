"""LoRA adapters as peft saves them (Hu et al. 2021): one pair of small matrices per linear layer, never merged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from andes_adapters.contract import FIELD, mark_of
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.files import at_home, regular
from andes_sdk.reading import parse_json
from andes_sdk.types import Adapter, LowRank

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INT8 = "adapter_int8.safetensors"
"""In place of the weights: codes and scales (`andes_adapters.int8`)."""

BASE = "andes_base"
"""Our own field of `adapter_config.json`: the numbers of the model that the adapter was trained on."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that need no scales; floats of fewer bits do."""

_NOTED = frozenset({
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", BASE,
    FIELD,
})  # fmt: skip
"""Fields that are read or checked by value."""

_WITHOUT_EFFECT = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "runtime_config", "ensure_weight_tying", "eva_config",
})  # fmt: skip
"""Fields that say how an adapter was trained or where it belongs; the tensors' names and shapes say the rest."""

_UNCHANGED = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model as it is; others train against changed base weights."""


def read_adapter(name: str, folder: str | Path, language_model: nn.Module) -> Adapter:
    """A peft folder, or one of int8 -> an adapter for a language model; nothing of the model is changed.

    Names may be those of the language model alone (`model.layers.0…`) or of the whole (`language_model.model…`).

    Raises:
        ConfigError: a feature of peft that is not supported. CheckpointError: files that are missing or damaged, names
        that the model lacks, or matrices of other shapes.
    """
    if not isinstance(name, str):
        raise ConfigError(f"expected a text, got {name!r}", who="name", fix="give the name that requests use")
    folder = at_home(folder, "folder")
    config = _config(folder)
    file = weights_file(folder)
    try:
        tensors = load_file(regular(file))
    except (OSError, SafetensorError) as error:
        fix = "give the folder that peft's save_pretrained wrote"
        raise CheckpointError("cannot be read", who=str(file), why=str(error), fix=fix) from None
    mark = mark_of(config, str(folder))
    modules = {n: m for n, m in language_model.named_modules() if isinstance(m, nn.Linear)}
    pairs: dict[str, dict[str, Tensor]] = {}
    problems: list[str] = []
    scales = _scales(tensors, problems) if file.name == INT8 else None
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.default)?\.(?:weight|codes)", key)
        if match is None:
            problems.append(f"{key}: no matrix of a linear layer's LoRA")
        elif scales is not None:
            if tensor.dtype != torch.int8 or (match[1], match[2]) not in scales:
                problems.append(f"{key}: {tensor.dtype}, not int8 with a scale")
            pairs.setdefault(match[1], {})[match[2]] = tensor
        elif tensor.dtype not in _FLOATS:
            problems.append(f"{key}: {tensor.dtype} without scales")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"{key}: numbers that are not finite")
        else:
            pairs.setdefault(match[1], {})[match[2]] = tensor
    layers = {}
    for path, pair in pairs.items():
        module = path.removeprefix("language_model.")
        problems += (found := _problems(path, pair, modules.get(module), config))
        if not found:
            kind = torch.float32 if scales is None else torch.int8
            a, b = (pair[k].to(kind, copy=True) for k in "AB")  # of their own: what was read is mapped
            rows = [None if scales is None else torch.full((len(pair[k]),), scales.get((path, k), 0.0)) for k in "AB"]
            layers[module] = LowRank(a=a, b=b, scale=_scale(path, config), a_scale=rows[0], b_scale=rows[1])
    ranks = {len(low.a) for low in layers.values()}
    if mark is not None and ranks - {mark["rank"]}:
        problems.append(f"rank {sorted(ranks)[-1]}, its contract declares {mark['rank']}")
    if problems or not layers:
        why = "".join(f"\n  - {p}" for p in problems[:20]) or "it holds no matrices"
        raise CheckpointError("does not fit this language model", who=f"adapter {name!r}: {folder}", why=why)
    return Adapter(name=name, layers=layers, base=config.get(BASE, "") or base_of(folder))


def weights_file(folder: Path) -> Path:
    """The file of an adapter's matrices: as peft saves them, or int8.

    Raises:
        CheckpointError: it has both.
    """
    both = [folder / name for name in (WEIGHTS, INT8)]
    if all(path.exists() for path in both):
        fix = f"remove {INT8}, or {WEIGHTS}"
        raise CheckpointError("holds floats and int8", who=str(folder), why="either may be the adapter", fix=fix)
    return both[1] if both[1].exists() else both[0]


def _scales(tensors: dict[str, Tensor], problems: list[str]) -> dict[tuple[str, str], float]:
    """Takes the scales out of an int8 file's tensors -> (layer, "A" or "B") -> scale."""
    found = {}
    for key in [key for key in tensors if key.endswith(".scale")]:
        one, match = tensors.pop(key), re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.scale", key)
        if match is None or one.dtype != torch.float32 or one.numel() != 1 or not 0 < float(one) < math.inf:
            problems.append(f"{key}: no scale above 0 in float32")
        else:
            found[match[1], match[2]] = float(one)
    return found


def contract_mark(folder: str | Path) -> Mapping[str, Any] | None:
    """The contract that a saved adapter carries, or None.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    return mark_of(_config(at_home(folder, "folder")), str(folder))


def base_of(folder: Path) -> str:
    """What the tensors of an adapter say that it was trained on (`andes_sdk.numbers.weights_of`); "" for nothing."""
    with safe_open(weights_file(folder), "pt") as file:
        return str((file.metadata() or {}).get(BASE, ""))


def _config(folder: Path) -> Mapping[str, Any]:
    """The fields of `adapter_config.json`.

    Raises:
        CheckpointError: no such file, or no JSON object. ConfigError: features that would be left out, all of them.
    """
    path = folder / CONFIG
    try:
        config = parse_json(regular(path).read_bytes())
    except (OSError, ValueError) as error:
        fix = "give the folder that peft's save_pretrained wrote"
        raise CheckpointError("cannot be read", who=str(path), why=str(error), fix=fix) from None
    if not isinstance(config, dict):
        raise CheckpointError("is no JSON object", who=str(path), fix="save the adapter again with peft")
    why = [f"{n} is {v!r}" for n, v in config.items() if n not in _NOTED | _WITHOUT_EFFECT and v]
    if not isinstance(config.get(BASE, ""), str):
        why.append(f"{BASE} is {config[BASE]!r}, not a text")
    if config.get("peft_type") != "LORA":
        why.append(f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    if config.get("bias", "none") != "none":
        why.append(f"bias is {config['bias']!r}: changed biases belong to no low-rank pair")
    if config.get("init_lora_weights", True) not in _UNCHANGED:
        why.append(f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base weights")
    for name, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        given = {} if config.get(patterns) is None else config[patterns]
        if not isinstance(given, dict):
            why.append(f"{patterns} is no table of names and numbers")
            continue
        values = {name: config.get(name), **{f"{patterns}.{key[:80]}": value for key, value in given.items()}}
        wrong = [n for n, v in values.items() if not _positive(v) or (name == "r" and v != int(v))]
        why += [f"{n} is {str(values[n])[:80]}, not a {'whole ' * (name == 'r')}number above 0" for n in wrong[:20]]
        why += [f"{patterns}: {key[:80]!r} is no name of modules" for key in given if not _NAME.fullmatch(key)][:20]
    if why:
        fix = "merge it into the checkpoint with peft, or train a plain LoRA (rsLoRA and patterns of ranks are fine)"
        raise ConfigError("uses what this runtime does not compute", who=str(path), why="; ".join(why), fix=fix)
    return config


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 31


_NAME = re.compile(r"\^?[\w-]+(\.[\w-]+)*")
"""What is taken of peft's patterns, which are regular expressions: names, and `^` where one starts a whole path."""


def _pattern(path: str, patterns: Mapping[str, Any] | None, default: float) -> float:
    """peft's rule: the first pattern that is the end of a module's path."""
    steps = path.split(".")
    ends = {f"^{path}", *(".".join(steps[start:]) for start in range(len(steps)))}
    hits = (v for key, v in (patterns or {}).items() if key in ends)
    return float(next(hits, default))


def _scale(path: str, config: Mapping[str, Any]) -> float:
    rank = _pattern(path, config.get("rank_pattern"), config["r"])
    alpha = _pattern(path, config.get("alpha_pattern"), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _problems(path: str, pair: Mapping[str, Tensor], module: nn.Linear | None, config: Mapping[str, Any]) -> list[str]:
    if module is None:
        return [f"{path}: the language model has no such linear layer"]
    if not any(part.isdigit() for part in path.split(".")):  # the head runs outside a pass over rows
        return [f"{path}: only linear layers inside a numbered decoder layer can be adapted"]
    if set(pair) != {"A", "B"}:
        return [f"{path}: only lora_{next(iter(pair))} is there"]
    rank = int(_pattern(path, config.get("rank_pattern"), config["r"]))
    wanted = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
    wrong = [k for k in "AB" if tuple(pair[k].shape) != wanted[k]]
    return [f"{path}: lora_{k} is {list(pair[k].shape)}, not {list(wanted[k])}" for k in wrong]
