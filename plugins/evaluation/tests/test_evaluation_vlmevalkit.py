"""Messages in VLMEvalKit's format, answered by a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from andes_evaluation.vlmevalkit import Answers, model_class, turn
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, BackendUnavailable, InputError
from andes_sdk.runtime.options import GenerationOptions

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def test_a_message_is_answered_as_the_pipeline_answers_its_parts(tmp_path: Path) -> None:
    pipeline = Pipeline.from_plugins(MODEL, image={"min_size": 28})
    folder = str(pipeline.save_pretrained(tmp_path / "model"))
    path = str(tmp_path / "a.png")
    Image.new("RGB", (56, 28), "red").save(path)
    message = [{"type": "image", "value": path}, {"type": "text", "value": "What?"}]
    model = Answers(folder, max_tokens=5, finals=False)
    parts = [{"type": "image", "image": path}, {"type": "text", "text": "\n"}, {"type": "text", "text": "What?"}]
    first = pipeline.generate([{"role": "user", "content": parts}], GenerationOptions(max_tokens=5)).text
    assert model.generate_inner(message, dataset="MMBench") == first
    talk = [{"role": "user", "content": message}, {"role": "assistant", "content": [{"type": "text", "value": first}]},
            {"role": "user", "content": [{"type": "text", "value": "Why?"}]}]  # fmt: skip
    ours = [{"role": "user", "content": parts}, {"role": "assistant", "content": first},
            {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]  # fmt: skip
    assert model.chat_inner(talk) == pipeline.generate(ours, GenerationOptions(max_tokens=5)).text
    assert not model.use_custom_prompt("MMBench")
    with pytest.raises(AssemblyError) as caught:
        Answers(folder, max_token=5)
    assert "did you mean 'max_tokens'?" in str(caught.value.problems[0])


def test_parts_of_other_types_are_refused() -> None:
    with pytest.raises(InputError, match="a part of type 'video'"):
        turn([{"type": "video", "value": "a.mp4"}])


def test_without_vlmevalkit_the_class_says_what_is_missing() -> None:
    import importlib.util

    if importlib.util.find_spec("vlmeval") is None:
        with pytest.raises(BackendUnavailable, match="VLMEvalKit is not installed"):
            model_class()
    else:
        assert issubclass(model_class(), Answers)
