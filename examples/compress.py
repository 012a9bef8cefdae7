"""A model whose layers are trained on the grid ternary34_g128, and packed as they were trained.

python examples/compress.py [FOLDER]      # a temporary folder without one; seconds on one core

It shows the steps on a tiny model of random weights and two lines of data. What a real model keeps is for
`benchmarks/compression.py` to say.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from andes_compression.bpw import of_artefact
from andes_compression.compress import recipe_for, write
from andes_training.recipe import Recipe

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.storage.checkpoint import stored_tensors

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
PAIRS = {"2 + 2?": "4", "The sky?": "blue"}
STEPS = 60


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    lines = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in PAIRS.items()]
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps({"messages": line}) for line in lines))
    stage = {"stage": "qat", "steps": STEPS, "max_tokens": 200, "data": [{"path": str(data)}]}
    options = {"body": "ternary34_g128", "scales": "seq", "rate": 5e-3}
    pipe = Pipeline.from_plugins([*MODEL, {"qat": options}], seed=1)
    pipe.train(structure(Recipe, {"name": "small", "stages": [stage]}, "recipe"), folder / "run")

    trained = Pipeline.from_pretrained(folder / "run" / "model")
    made = trained.compress("qat", codes=str(folder / "run" / "qat"))
    artefact = write(trained, made, folder / "model.andes", recipe_for(trained, made, None))
    packed = Pipeline.from_pretrained(artefact.path, backend="torch")
    own, other = stored_tensors(trained.model), stored_tensors(packed.model)
    assert all(torch.equal(own[name].float(), other[name].float()) for name in made.codes)
    size = of_artefact(artefact).to_dict()["language_model"]
    print(f"{len(made.codes)} matrices hold the weights that were trained, to the bit")
    print(f"language model: {size['type_bpw']['disk']:.2f} bits per weight; its embedding, most of it, stays in f16")
    answers = {question: packed.chat(question, max_tokens=8) for question in PAIRS}
    print(answers)
    assert answers == PAIRS, answers


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
