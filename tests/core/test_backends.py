"""Backends with device names of their own."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import frozen

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import AssemblyError, BackendUnavailable
from andes_sdk.runtime.torch_backend import TorchBackend

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@frozen
class Board:
    """Runs on torch and notes what it was asked for."""

    asked: list[str]
    name: str = "board"
    rows: int | None = None
    devices: tuple[str, ...] = ("npu", "npu:1")

    def compile(self, model: Any, *, device: str, dtype: str, taps: Any = ()) -> Any:
        self.asked.append(device)
        if device == "npu:1":
            raise BackendUnavailable("there is one board only", who="board")
        return TorchBackend().compile(model, device=str(model.device), dtype=dtype, taps=taps)


@frozen(eq=False, kw_only=True)
class Boards:
    """A backend with devices. Shortest use: `Pipeline.from_plugins([..., Boards()])`."""

    contract = "1.1"
    backend = Board([])

    @hookimpl
    def andes_backends(self) -> list[Board]:
        return [self.backend]


def test_a_device_name_of_the_backend_reaches_it_and_weights_are_made_on_the_cpu() -> None:
    Boards.backend.asked.clear()
    pipe = Pipeline.from_plugins([*TINY, Boards()], backend="board", device="npu")
    assert len(pipe.chat("hello", max_tokens=2)) >= 0
    assert Boards.backend.asked == ["npu"]
    assert str(pipe.model.device) == "cpu"
    assert "board on npu" in str(pipe.explain())


def test_a_backend_says_itself_that_its_device_is_absent() -> None:
    pipe = Pipeline.from_plugins([*TINY, Boards()], backend="board", device="npu:1")
    with pytest.raises(BackendUnavailable, match="one board"):
        _ = pipe.compiled


@pytest.mark.parametrize(("backend", "device"), [("board", "tpu"), ("torch", "npu:7"), ("torch", "board")])
def test_a_device_name_that_neither_torch_nor_the_backend_knows_is_refused_at_once(backend: str, device: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins([*TINY, Boards()], backend=backend, device=device)
    assert device in str(caught.value.exceptions[0])
