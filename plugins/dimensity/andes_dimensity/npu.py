"""Logits of graphs of the layout "npu" beside the reference's: prompts of random tokens, read and one token more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import evolve
from safetensors.numpy import save_file

from andes_sdk.runtime.policy import KeepAll

from .adapters import made_up
from .environment import Tell, _quiet, work, workplace
from .export import lower
from .options import Options
from .reference import DimensityBackend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_sdk.pipeline import Pipeline


def logits(
    pipeline: Pipeline, file: Path, options: Options, count: int = 100, tell: Tell = _quiet
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of the last row of each prompt (count, V): LiteRT's and the reference's; graphs with adapters get random ones.

    Raises:
        BackendUnavailable: LiteRT is not here. ConfigError: the file is not of these options.
    """
    rng, prompts = np.random.default_rng(2), dict[str, Any]()
    longest, asked = min(49, options.prompt + 1, options.rows), []
    with workplace() as place, torch.inference_mode():
        job: Mapping[str, Any] = lower(pipeline, options, pictures=False).write(place, "npu", options.activations)
        plain = evolve(options, prompt=min(options.prompt, options.rows), activations="float")
        table = DimensityBackend(plain, pipeline.artefact).compile(pipeline.model, device="cpu", dtype="float32").model
        for number in range(count):
            ids = torch.from_numpy(rng.integers(0, pipeline.model.text.vocab_size, int(rng.integers(2, longest))))
            prompts[f"{number:03d}"] = table.llm.embed(ids).numpy()
            asked.append(ids.tolist())
        save_file(prompts, place / "prompts.safetensors")
        adapter, arrays = made_up(pipeline, options.lora) if options.lora else (None, {})
        if arrays:
            save_file(arrays, place / "lora.safetensors")
        told = work(place, {**job, "do": "logits", "file": str(file.absolute())}, tell)
        reference = DimensityBackend(evolve(plain, activations=options.activations), pipeline.artefact, told["scales"])
        compiled = reference.compile(pipeline.model, device="cpu", dtype="float32")
        if adapter is not None:
            compiled.add_adapter(adapter)
        wanted = []
        for tokens in asked:  # in two passes, as the file computes it
            session = compiled.session(KeepAll())
            session.adapter = None if adapter is None else adapter.name
            session.extend(tokens[:-1])
            session.commit()
            wanted.append(session.extend(tokens[-1:])[0][-1].numpy())
        return np.load(place / "logits.npy"), np.stack(wanted)
