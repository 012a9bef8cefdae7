"""The core's own backend: torch on cpu, cuda or mps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from attrs import field, frozen
from torch import Tensor

from andes_sdk.assembling.building import device_error
from andes_sdk.runtime.lora import ModuleAdapters
from andes_sdk.runtime.session import TorchSession

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Adapter, CachePolicy, Session


@frozen
class TorchBackend:
    """Runs the modules as they are."""

    name: str = "torch"

    def compile(self, model: VisionLanguageModel, *, device: str, dtype: str) -> CompiledTorch:
        """Move the model to a device.

        Raises:
            BackendUnavailable: the machine has no such device.
        """
        error = device_error(device)
        if error is not None:
            raise error
        return CompiledTorch(model.to(device=device, dtype=getattr(torch, dtype)).eval())


@frozen(eq=False)
class CompiledTorch:
    """A model that opens sessions."""

    model: VisionLanguageModel
    adapters: ModuleAdapters = field()

    @adapters.default
    def _none_yet(self) -> ModuleAdapters:
        return ModuleAdapters(self.model)

    def session(self, policy: CachePolicy) -> TorchSession:
        """An empty session."""
        return TorchSession(self.model, policy, self.adapters)

    def add_adapter(self, adapter: Adapter) -> None:
        """Make an adapter known to all sessions.

        Raises:
            DuplicateName: there is one of that name. ConfigError: it does not fit the language model.
        """
        self.adapters.add(adapter)

    @torch.inference_mode()
    def extend_many(self, sessions: Sequence[Session], tokens: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Extend several sessions by a chain each in one pass over the weights; only attention runs one by one.

        Equal to `extend` on each up to rounding: torch's matrix product may add in another order for more rows.
        """
        lengths = [len(t) for t in tokens]
        own = [cast("TorchSession", s) for s in sessions]
        for session, new in zip(own, tokens, strict=True):
            session.check(new, pending=True)
        steps = [s.step(n, None) for s, n in zip(own, lengths, strict=True)]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            each = zip(own, steps, *(torch.split(x, lengths, dim=2) for x in (q, k, v)), strict=True)
            return torch.cat([s.attend(step, layer, qi, ki, vi, scale) for s, step, qi, ki, vi in each], dim=1)

        ids = torch.tensor([t for one in tokens for t in one], device=self.model.device)
        positions = torch.cat([step.positions for step in steps])
        spans = [(s.adapter, n) for s, n in zip(own, lengths, strict=True)]
        with own[0].timed("decode"), self.adapters.rows(spans):
            hidden = self.model.hidden_states(self.model.llm.embed(ids), positions, attend)
            logits = self.model.logits(hidden)
        for session, length in zip(own, lengths, strict=True):
            session.passed(length)
        return list(zip(torch.split(logits, lengths), torch.split(hidden, lengths), strict=True))

    def facts(self) -> Mapping[str, str]:
        """Device, precision, attention."""
        return {
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "threads": str(torch.get_num_threads()),
            "attention": "torch scaled_dot_product_attention, per sequence",
        }
