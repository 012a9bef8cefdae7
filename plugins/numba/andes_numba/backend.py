"""The backend named "numba"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import define, frozen
from torch import Tensor

from andes_sdk.errors import BackendUnavailable
from andes_sdk.formats import find

from .machine import choose_kernels, choose_threads, threading_layer
from .session import NumbaSession, run
from .simd import Tag
from .weights import PackedModel, Rotary, pack_model

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy, Session

    from . import Numba


@frozen(eq=False)
class NumbaBackend:
    """Packs a Qwen3 into a low-bit format and decodes it with compiled kernels."""

    options: Numba
    name: str = "numba"

    @property
    def tolerance(self) -> float:
        """What the conformance kit allows between its logits and torch's: mostly the rounding of weights."""
        return {"f16": 1e-3, "w8": 0.02}.get(self.options.format, 0.5)

    def compile(self, model: VisionLanguageModel, *, device: str, dtype: str) -> CompiledNumba:
        """Pack the language model; the encoder, the projector and the embedding stay on torch in `dtype`.

        Raises:
            BackendUnavailable: another device than the CPU, a kernel set or a number of threads this machine does not
                have, a model that is no Qwen3, or no threading layer but workqueue.
        """
        if device != "cpu":
            raise BackendUnavailable(f"no device {device!r}", who="numba", fix="use device='cpu'")
        options = self.options
        choose_kernels(options.kernels)  # refuse before the long part
        choose_threads(options.threads)
        model = model.to(device=device, dtype=getattr(torch, dtype)).eval()
        packed = pack_model(model, find(options.format), find(options.head or options.format))
        return compile_packed(model, packed, options, dtype=dtype)


def compile_packed(model: VisionLanguageModel, packed: PackedModel, options: Numba, *, dtype: str) -> CompiledNumba:
    """Matrices that are packed already, in the options' formats; of `model` only what stays on torch is used.

    Raises:
        BackendUnavailable: a kernel set, a threading layer or a number of threads that this machine does not have.
    """
    kernels, why = choose_kernels(options.kernels)
    threads, layer = choose_threads(options.threads), threading_layer()
    head = options.head or options.format
    facts = {
        "kernels": f"{kernels}: {why}",
        "threads": f"{threads}, {layer}",
        "format": f"{options.format}, head {head}: {packed.nbytes:,} bytes",
        "activations": options.activations,
        "kv": options.kv,
        "on torch": f"vision encoder, projector and embedding, in {dtype}",
    }
    named = [("isa", kernels), ("format", options.format), ("format", head), ("mode", options.activations)]
    tags = tuple(Tag(kind, value) for kind, value in [*named, ("kv", options.kv)])
    return CompiledNumba(model, packed, tags, options.kv, threads, facts)


@define(eq=False, slots=False)
class CompiledNumba:
    """A packed model that opens sessions."""

    model: VisionLanguageModel
    packed: PackedModel
    tags: tuple[Any, ...]
    kv: str
    threads: int
    _facts: Mapping[str, str]

    @cached_property
    def rotary(self) -> Rotary:
        """Tables of positions, shared by all sessions."""
        return Rotary(self.model)

    def session(self, policy: CachePolicy) -> NumbaSession:
        """An empty session."""
        return NumbaSession(self, policy)

    @torch.inference_mode()
    def extend_many(self, sessions: Sequence[Session], tokens: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Extend several sessions by a chain each in one pass over the weights, to the bits of `extend` on each."""
        lengths = [len(new) for new in tokens]
        own = [cast("NumbaSession", session) for session in sessions]
        for session, length in zip(own, lengths, strict=True):
            session.check(length, pending=True)
        with own[0].timed("decode"):
            steps = [session.step(length, None) for session, length in zip(own, lengths, strict=True)]
            ids = torch.tensor([token for new in tokens for token in new])
            logits, hidden = run(self, own, steps, self.model.llm.embed(ids).float(), last=False)
        for session, length in zip(own, lengths, strict=True):
            session.proposed += length
        return list(zip(logits.split(lengths), hidden.split(lengths), strict=True))

    def facts(self) -> Mapping[str, str]:
        """Kernel set and why, threads and their layer, formats, precisions, what stays on torch."""
        return self._facts
