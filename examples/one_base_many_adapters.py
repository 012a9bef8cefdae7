"""One packed base, a contract, an adapter for each of two tasks; loaded beside one another, and refused elsewhere.

python examples/one_base_many_adapters.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import torch
from andes_adapters.contract import contract_of
from andes_adapters.loading import load
from andes_adapters.registry import Registry
from andes_compression.compress import recipe_for, write
from andes_qalft.training import train_adapter

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
TASKS = {"sums": [("2 + 2?", "4"), ("3 + 5?", "8")], "colours": [("The sky?", "blue"), ("Grass?", "green")]}


def packed(path: Path, seed: int) -> Path:
    """A base: random weights on a four-bit grid."""
    pipe = Pipeline.from_plugins([*MODEL, {"qat": {"body": "w4_g32"}}], seed=seed)
    made = pipe.compress("qat")
    return write(pipe, made, path, recipe_for(pipe, made, None)).path


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    base = packed(folder / "model.andes", seed=1)
    before = hashlib.sha256(base.read_bytes()).hexdigest()
    pipe = Pipeline.from_pretrained(base, backend="torch")
    contract_of(pipe.artefact, pipe.tokenizer, rank=4).write(folder / "contract.json")

    registry = Registry.beside(base)
    for name, pairs in TASKS.items():
        lines = [
            json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
            for q, a in pairs
        ]
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(lines))
        run = folder / f"run-{name}"
        made = train_adapter(base, folder / "contract.json", [data], run, name=name, steps=60, rate=1e-2)
        registry.add(name, made, pipe)

    for name in registry.entries():
        told = load(registry, pipe, name)
        print(f"{name}: {told.nbytes:,} bytes, loaded in {told.load_ms:.0f} ms, switched in {told.switch_ms:.4f} ms")
    for name, pairs in TASKS.items():
        answers = [pipe.chat(question, adapter=name, max_tokens=8) for question, _ in pairs]
        print(f"{name}: {answers}")
        assert answers == [answer for _, answer in pairs], answers
    assert hashlib.sha256(base.read_bytes()).hexdigest() == before

    other = Pipeline.from_pretrained(packed(folder / "other.andes", seed=2), backend="torch")
    try:
        other.add_adapter("sums", registry.verified("sums"))
    except ConfigError as error:
        print(f"on another base: {error.what}: {error.why}")
    else:
        raise SystemExit("an adapter was taken on another base")


if __name__ == "__main__":
    main()
