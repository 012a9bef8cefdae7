"""The backend named "numba"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from andes_packing.formats import find
from attrs import define, frozen
from torch import Tensor

from andes_sdk.errors import BackendUnavailable
from andes_sdk.runtime.compiled import BaseCompiled, Pass
from andes_sdk.runtime.lora import refuse_used

from .affinity import tell_cpus
from .cold import Waiting
from .draft import CompiledHead
from .encoder import Vision, choose_vision
from .few import forward_few
from .lookup import look_up
from .lora import Adapters
from .machine import choose_kernels, code_origin, tell_of_compiling, threading_layer
from .passes import run_passes
from .session import NumbaSession
from .simd import Tag
from .step import forward
from .team import Team, gather
from .vision import forward as encode
from .vision import project
from .weights import PackedModel, Rotary, map_model, pack_model

if TYPE_CHECKING:
    from andes_packing import Artefact

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Adapter, CachePolicy, Rows

    from .draft import HeadPlan
    from .options import Options


@frozen(eq=False)
class NumbaBackend:
    """Packs a decoder into a low-bit format and decodes it with compiled kernels."""

    options: Options
    name: str = "numba"
    rows: int | None = None

    @property
    def tolerance(self) -> float:
        """What the conformance kit allows between its logits and torch's: mostly the rounding of weights."""
        return {"f16": 1e-3, "w8": 0.02}.get(self.options.format, 0.5)

    def compile(
        self, model: VisionLanguageModel, *, device: str, dtype: str, taps: Sequence[int] = ()
    ) -> CompiledNumba:
        """Pack the language model; encoder and projector follow with the first picture, the embedding stays on torch.

        Raises:
            BackendUnavailable: another device than the CPU, a kernel set, a number of threads or CPUs this machine does
                not have, a model without a blueprint or of another make, or no threading layer but workqueue.
        """
        self._check(device)
        options = self.options
        model = model.to(device=device, dtype=getattr(torch, dtype)).eval()
        packed = pack_model(model, find(options.format), find(options.head or options.format))
        return compiled(model, packed, options, f"embedding, in {dtype}", taps)

    def open(
        self, artefact: Artefact, model: VisionLanguageModel, *, device: str, dtype: str, taps: Sequence[int] = ()
    ) -> CompiledNumba:
        """Run the matrices of an artefact where they lie in the file; the artefact's formats, not the options', count.

        Raises:
            BackendUnavailable: as `compile`, or formats that no kernel runs.
        """
        self._check(device)
        packed = map_model(model, artefact, dtype=dtype)
        kept = "what the other rows do not name" if packed.table else "embedding, and what the other rows do not name"
        return compiled(model, packed, self.options, f"{kept}: dequantised in {dtype} when it is used", taps)

    def _check(self, device: str) -> None:
        """Refuse what this machine lacks before the long part."""
        if device != "cpu":
            raise BackendUnavailable(f"no device {device!r}", who="numba", fix="use device='cpu'")
        choose_kernels(self.options.kernels)
        gather(self.options.threads, self.options.affinity)


def compiled(
    model: VisionLanguageModel, packed: PackedModel, options: Options, on_torch: str, taps: Sequence[int]
) -> CompiledNumba:
    """A packed model with the kernels for it; of `model` only what stays on torch is used.

    Raises:
        BackendUnavailable: a kernel set, a threading layer, a number of threads or CPUs this machine does not have.
    """
    tell_of_compiling()
    kernels, why = choose_kernels(options.kernels)
    team = gather(options.threads, options.affinity)
    vision = Vision(model, choose_vision(options.vision, options.activations, kernels), kernels, team)
    facts = {
        "kernels": f"{kernels}: {why}",
        "threads": f"{team.threads}, {threading_layer()}",
        "affinity": tell_cpus(team.cpus),
        "format": f"{_told(packed.formats)}: {packed.nbytes:,} bytes",
        "activations": options.activations,
        "kv": options.kv,
        **vision.facts,
        "on torch": on_torch,
    }
    formats = tuple(Tag("format", name) for name in packed.formats)
    tags = (Tag("isa", kernels), formats, Tag("mode", options.activations), Tag("kv", options.kv))
    whole = Waiting(forward, options.compiling == "first")
    return CompiledNumba(model, packed, tags, options.kv, team, facts, vision, whole, tuple(taps))


def _told(formats: Sequence[str]) -> str:
    """`body, head other`; formats of the body one by one where they differ."""
    *body, head = formats
    names = ("q-k-v", "output", "gate-up", "down")
    told = [body[0]] if len(set(body)) == 1 else [f"{n} {f}" for n, f in zip(names, body, strict=True)]
    return ", ".join([*told, f"head {head}"])


@define(eq=False, slots=False)
class CompiledNumba(BaseCompiled):
    """A packed model that opens sessions."""

    model: VisionLanguageModel
    packed: PackedModel
    tags: tuple[Any, ...]
    kv: str
    team: Team
    _facts: Mapping[str, str]
    vision: Vision
    whole: Waiting
    taps: Sequence[int] = ()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def threads(self) -> int:
        """Threads of a pass."""
        return self.team.threads

    @cached_property
    def adapters(self) -> Adapters:
        """Adapters by name."""
        return Adapters(self.packed.sizes, self.model, exact=self.tags[2].value == "exact")

    def add_adapter(self, adapter: Adapter) -> None:
        """Make an adapter known to all sessions.

        Raises:
            DuplicateName: there is one of that name. ConfigError: it adapts what is no linear layer of a decoder layer.
        """
        self.adapters.add(adapter)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ConfigError: there is none of that name. SessionError: open sessions use it.
        """
        refuse_used(name, lambda: self.sessions)
        self.adapters.remove(name)

    def compile_head(self, plan: HeadPlan) -> CompiledHead:
        """A draft head, packed in int8, that runs on the threads of this model.

        Raises:
            BackendUnavailable: the step cannot run it.
        """
        return CompiledHead(self, plan)

    @cached_property
    def rotary(self) -> Rotary:
        """Tables of positions, shared by all sessions."""
        return Rotary(self.model)

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D) float32."""
        if self.packed.table is None:
            return self.model.llm.embed(ids).float()
        self.packed.check()
        rows = np.empty((len(ids), self.packed.sizes.width), np.float32)
        look_up(*self.packed.table, ids.numpy(), rows)
        return torch.from_numpy(rows)

    def empty(self, policy: CachePolicy, keeper: Mapping[str, Tensor] | None) -> NumbaSession:
        """An empty session."""
        return NumbaSession(self, policy, keeper)

    def run(self, passes: Sequence[Pass], embeds: Sequence[Tensor]) -> list[Rows]:
        """Rows of all sessions, to the bits of each alone.

        Raises:
            CheckpointError: the packed file was changed.
        """
        self.packed.check()
        return run_passes(self, passes, embeds)

    def facts(self) -> Mapping[str, str]:
        """Kernel set and why, threads, layer and CPUs, formats, precisions, what stays on torch, where code is from."""
        return {**self._facts, "machine code": code_origin(forward, forward_few, encode, project)}
