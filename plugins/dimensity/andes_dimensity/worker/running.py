"""Graphs on arrays, and conversations through LiteRT-LM."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def run(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Each of `calls` ({file, signature, inputs, outputs}) on the arrays of its .npz; `outputs` is what is written.

    Values of a call's `link` ({input: output}) are taken from what the call before it gave.
    """
    from ai_edge_litert.interpreter import Interpreter

    open_: dict[str, Any] = {}
    before: dict[str, np.ndarray] = {}
    for call in job["calls"]:
        if call["file"] not in open_:
            open_[call["file"]] = Interpreter(call["file"], num_threads=1)
        runner = open_[call["file"]].get_signature_runner(call["signature"])
        with np.load(folder / call["inputs"]) as stored:
            arrays = {name: stored[name] for name in stored.files}
        arrays |= {name: before[other] for name, other in call.get("link", {}).items()}
        for name, facts in runner.get_input_details().items():
            if facts["dtype"] == np.int16 and arrays[name].dtype != np.int16:
                step = facts["quantization_parameters"]["scales"][0]
                arrays[name] = np.clip(np.rint(arrays[name] / step), -32768, 32767).astype(np.int16)
        before = runner(**arrays)
        details, out = runner.get_output_details(), {}
        for name in call.get("keep") or before:
            value, facts = before[name], details[name]
            if facts["dtype"] == np.int16:
                value = value.astype(np.float32) * facts["quantization_parameters"]["scales"][0]
            out[name] = value
        np.savez(folder / call["outputs"], **out)  # type: ignore[arg-type]
    return {"calls": len(job["calls"])}


def chat(folder: Path, job: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Each of `conversations` (a list of messages; the last is answered) greedily -> `texts`."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    cpu, texts = litert_lm.Backend.CPU(thread_count=1), []
    pictures = any(p.get("type") == "image" for c in job["conversations"] for m in c for p in m["content"])
    rank, lora = job.get("rank", 0), None
    if rank:  # graphs that take adapters need one in every conversation
        lora = litert_lm.LoraConfig(lora_path=job["adapter"])
    with litert_lm.Engine(
        job["file"],
        backend=cpu,
        vision_backend=cpu if pictures else None,
        cache_dir=str(folder),
        lora_rank_config=litert_lm.LoraRankConfig(lora_rank=rank) if rank else None,
    ) as engine:
        greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=1)
        for number, messages in enumerate(job["conversations"]):
            with engine.create_conversation(
                messages=messages[:-1] or None, sampler_config=greedy, lora_config=lora
            ) as one:
                if job.get("budget"):
                    budgeted(one, job["budget"])
                texts.append(text_of(one.send_message(messages[-1])))
            tell(f"{number + 1} of {len(job['conversations'])} conversations")  # silence is taken for hanging
            (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    return {"texts": texts}


def budgeted(one: Any, tokens: int) -> None:
    """Give each picture of a conversation so many tokens at most. The library can; its Python has no word for it."""
    library, made = one._lib, one._create_optional_args
    cap = library.litert_lm_conversation_optional_args_set_visual_token_budget
    cap.argtypes, cap.restype = [ctypes.c_void_p, ctypes.c_int], None

    def with_budget(*rest: Any, **named: Any) -> Any:
        told = made(*rest, **named) or library.litert_lm_conversation_optional_args_create()
        cap(told, tokens)
        return told

    one._create_optional_args = with_budget


def text_of(answer: Any) -> str:
    """The text of an answer, whether it is a message, a dictionary or a list of parts."""
    if not isinstance(answer, dict):
        return str(answer)
    content = answer.get("content", "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
