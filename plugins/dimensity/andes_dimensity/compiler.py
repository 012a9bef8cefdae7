"""LiteRT's compiler plugin for MediaTek, over a stand-in for the vendor's library: which operators the plugin takes.

The stand-in accepts everything. So this shows the plugin's own list and its translation of each operator, and says
nothing of the vendor's compiler. Where `$ANDES_NEURON_SDK` names the folder of the vendor's libraries, those are used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from andes_sdk.errors import BackendUnavailable, ConfigError

from .environment import HERE, _clean, folder, python, work

SOC = "mt6993"
"""Dimensity 9500."""

LIBRARIES = ("libneuron_adapter.so", "libneuronusdk_adapter.mtk.so")
_TAKEN = re.compile(r"Partitioned subgraph<(\d+)>, selected (\d+) ops, from a total of (\d+) ops")


SDK = "ANDES_NEURON_SDK"


def vendor() -> Path | None:
    """The folder of the vendor's libraries, or None where `$ANDES_NEURON_SDK` is not set.

    Raises:
        ConfigError: it is set, and there is no such folder, or no library in it.
    """
    place = os.environ.get(SDK)
    if not place:
        return None
    fix = f"name the folder that holds {LIBRARIES[0]}, or unset {SDK}: then a stand-in is used"
    if not Path(place).is_dir():
        raise ConfigError("no such folder", who=SDK, why=f"it is {place}", fix=fix)
    for name in LIBRARIES:
        if (file := Path(place, name)).is_file() and file.stat().st_size:
            return Path(place)
    raise ConfigError(
        "the vendor's SDK is empty", who=SDK, why=f"{place} holds none of {', '.join(LIBRARIES)}", fix=fix
    )


def stand_in(place: Path) -> Path:
    """Build the stand-in into a folder -> the folder.

    Raises:
        BackendUnavailable: there is no C compiler, or it refuses.
    """
    found = compiler()
    if found is None:
        raise BackendUnavailable("no C compiler", who="dimensity", why="the stand-in is compiled", fix="install gcc")
    for name in LIBRARIES:
        built = subprocess.run(
            [found, "-shared", "-fPIC", "-O1", "-o", str(place / name), str(HERE / "standin.c")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if built.returncode:
            raise BackendUnavailable("the stand-in cannot be compiled", who=found, why=built.stderr.strip()[-300:])
    return place


def compiler() -> str | None:
    """The C compiler that is here, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def taken(file: Path, place: Path, *, limit: float = 300) -> dict[str, Any]:
    """Ask the plugin which operators of a .tflite it takes.

    Returns:
        `taken` and `operators` over all graphs, and `refused`: those that are left over, by kind and layer, counted.

    Raises:
        BackendUnavailable: LiteRT or a C compiler is not here, or the plugin failed. ConfigError: as `vendor`.
    """
    python()
    own = vendor()
    libraries = own or stand_in(place)
    root = next((folder() / "lib").glob("python*/site-packages/ai_edge_litert"))
    command = [
        str(root / "tools" / "apply_plugin_main"), "--cmd=apply", f"--model={file.absolute()}",
        f"--o={place / 'applied.tflite'}", f"--libs={root / 'vendors' / 'mediatek' / 'compiler'}",
        "--soc_manufacturer=MediaTek", f"--soc_model={SOC}", "--mediatek_sdk_version_type=version9",
    ]  # fmt: skip
    if own is None:  # the stand-in would say yes to everything: the plugin's own list decides
        command.append("--mediatek_use_get_supported_operations=false")
    surroundings: Mapping[str, str] = _clean() | {
        "LD_LIBRARY_PATH": str(libraries), "ANDES_STANDIN_LOG": str(place / "standin.log"),
    }  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise BackendUnavailable("MediaTek's plugin hangs", who=str(file), why=f"it had {limit:.0f} s") from None
    told = done.stdout + done.stderr
    graphs = [(int(a), int(b)) for _, a, b in _TAKEN.findall(told)]
    if done.returncode or not graphs:
        why = " · ".join(told.strip().splitlines()[-3:])
        raise BackendUnavailable("MediaTek's plugin failed", who=str(file), why=f"exit {done.returncode}: {why}")
    job = {"do": "left", "source": str(file.absolute()), "file": str(place / "applied.tflite"), "graphs": len(graphs)}
    refused = work(place, job)["left"]
    return {"taken": sum(a for a, _ in graphs), "operators": sum(b for _, b in graphs), "refused": refused}


def words(refused: Sequence[Mapping[str, Any]]) -> str:
    """Operators that are left over in one line: each kind once, with the layers that caused it."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for one in refused:
        kinds.setdefault(one["operator"], []).append(one)
    parts = []
    for kind, some in kinds.items():
        where = list(dict.fromkeys(one["where"] for one in some if one["where"]))
        shown = ", ".join(where[:4]) + (f" and {len(where) - 4} more places" if len(where) > 4 else "")
        parts.append(f"{sum(one['count'] for one in some)} {kind}" + (f" ({shown})" if shown else ""))
    return "; ".join(parts)
