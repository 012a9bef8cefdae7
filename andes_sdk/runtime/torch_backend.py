"""The core's own backend: torch on cpu, cuda or mps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.assembling.building import device_error
from andes_sdk.runtime.compiled import BaseCompiled, Pass
from andes_sdk.runtime.lora import ModuleAdapters, refuse_used
from andes_sdk.runtime.session import TorchSession
from andes_sdk.types import Rows, Tap

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Adapter, CachePolicy


@frozen
class TorchBackend:
    """Runs the modules as they are."""

    name: str = "torch"
    rows: int | None = None

    def compile(
        self, model: VisionLanguageModel, *, device: str, dtype: str, taps: Sequence[int] = ()
    ) -> CompiledTorch:
        """Move the model to a device.

        Raises:
            BackendUnavailable: the machine has no such device.
        """
        error = device_error(device)
        if error is not None:
            raise error
        return CompiledTorch(model.to(device=device, dtype=getattr(torch, dtype)).eval(), taps=tuple(taps))


@define(eq=False, slots=False)
class CompiledTorch(BaseCompiled):
    """A model that opens sessions. Passes are shared over the weights; attention runs for each session alone.

    A row's values do not depend on its company, up to rounding: torch's matrix product may add in another order for
    more rows.
    """

    model: VisionLanguageModel
    adapters: ModuleAdapters = field()
    taps: Sequence[int] = ()

    @adapters.default
    def _none_yet(self) -> ModuleAdapters:
        return ModuleAdapters(self.model)

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def empty(self, policy: CachePolicy, keeper: Mapping[str, Tensor] | None) -> TorchSession:
        """An empty session."""
        return TorchSession(self, policy, keeper)

    def add_adapter(self, adapter: Adapter) -> None:
        """Make an adapter known to all sessions.

        Raises:
            DuplicateName: there is one of that name. ConfigError: it does not fit the language model.
        """
        self.adapters.add(adapter)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ConfigError: there is none of that name. SessionError: open sessions use it.
        """
        refuse_used(name, lambda: self.sessions)
        self.adapters.remove(name)

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D)."""
        return self.model.llm.embed(ids)

    def run(self, passes: Sequence[Pass], embeds: Sequence[Tensor]) -> list[Rows]:
        """One pass over the weights for all of them."""
        lengths = [len(work.tokens) for _, work, _ in passes]
        steps = [step for _, _, step in passes]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            if len(passes) == 1:
                (session, work, step), *_ = passes
                return session.attend(step, work.reading, layer, q, k, v, scale)  # type: ignore[no-any-return]
            each = zip(passes, *(torch.split(x, lengths, dim=2) for x in (q, k, v)), strict=True)
            return torch.cat(
                [s.attend(step, w.reading, layer, qi, ki, vi, scale) for (s, w, step), qi, ki, vi in each], dim=1
            )

        rows = embeds[0] if len(embeds) == 1 else torch.cat(list(embeds))
        positions = steps[0].positions if len(steps) == 1 else torch.cat([step.positions for step in steps])
        seen: dict[int, Tensor] = {}
        with self.adapters.rows([(session.adapter, n) for (session, _, _), n in zip(passes, lengths, strict=True)]):
            hidden = self.model.hidden_states(rows, positions, attend, self._tap(seen))
        entering = [seen[t] for t in self.taps]
        features = torch.stack(entering, dim=1) if entering else hidden.new_empty(len(rows), 0, hidden.shape[1])
        logits = self._logits(passes, hidden, lengths)
        parts = zip(logits, *(x.split(lengths) for x in (hidden, rows, features)), strict=True)
        return [Rows(logits=a, hidden=b, embeds=c, features=d) for a, b, c, d in parts]

    def _tap(self, seen: dict[int, Tensor]) -> Tap | None:
        wanted = frozenset(self.taps)

        def tap(layer: int, hidden: Tensor) -> None:
            if layer in wanted:
                seen[layer] = hidden

        return tap if wanted else None

    def _logits(self, passes: Sequence[Pass], hidden: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Per pass the logits of the last rows that its work asks for."""
        counts = [n if w.logits is None else min(n, w.logits) for (_, w, _), n in zip(passes, lengths, strict=True)]
        if sum(counts) == len(hidden):
            return list(self.model.logits(hidden).split(counts))
        parts = [h[len(h) - n :] for h, n in zip(hidden.split(list(lengths)), counts, strict=True)]
        return list(self.model.logits(torch.cat(parts)).split(counts))

    def facts(self) -> Mapping[str, str]:
        """Device, precision, attention."""
        return {
            "device": str(self.model.device), "dtype": str(self.model.dtype).removeprefix("torch."),
            "threads": str(torch.get_num_threads()), "attention": "torch scaled_dot_product_attention, per sequence",
        }  # fmt: skip
