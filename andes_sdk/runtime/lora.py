"""Adapters on torch modules: a forward hook adds `scale * B (A x)` to the rows that asked for it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from torch import Tensor, nn

from andes_sdk.config import suggestion
from andes_sdk.errors import ConfigError, DuplicateName, SessionError
from andes_sdk.numbers import numbers_of, weights_of

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Adapter, LowRank

Span = tuple[str | None, int]
"""An adapter's name, or None, and how many rows in a run it is for."""


class ModuleAdapters(Mapping[str, "Adapter"]):
    """The adapters of one compiled model. Base weights are not touched; without `rows` the hooks do nothing.

    Hooks stay on the modules; what they add is chosen per thread, so that sessions may run side by side.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model = model
        self._adapters: dict[str, Adapter] = {}
        self._hooked: set[str] = set()
        self._now = threading.local()

    def __getitem__(self, name: str) -> Adapter:
        return self._adapters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def add(self, adapter: Adapter) -> None:
        """Make an adapter known; its matrices go to the model's device.

        Raises:
            DuplicateName: there is one of that name. ConfigError: it does not fit the language model, or its base is
                another.
        """
        refuse_double(adapter, self)
        refuse_other_base(adapter, self._model)
        refuse_misfit(adapter, adaptable(self._model.language_model))
        device = self._model.device
        parts = ("a", "b", "a_scale", "b_scale")
        layers = {
            n: evolve(low, **{p: m.to(device) for p in parts if (m := getattr(low, p)) is not None})
            for n, low in adapter.layers.items()
        }
        for name in layers.keys() - self._hooked:
            self._model.language_model.get_submodule(name).register_forward_hook(self._hook(name))
            self._hooked.add(name)
        self._adapters[adapter.name] = evolve(adapter, layers=layers)

    def remove(self, name: str) -> None:
        """Forget an adapter and free its matrices. Hooks stay where they are: without rows to add to they do nothing.

        Raises:
            ConfigError: there is none of that name.
        """
        refuse_unknown(name, self)
        del self._adapters[name]

    @contextmanager
    def rows(self, spans: Sequence[Span]) -> Iterator[None]:
        """Within: the rows of every pass through the model belong to these adapters, in this order."""
        self._now.spans = spans if any(name is not None for name, _ in spans) else ()
        try:
            yield
        finally:
            self._now.spans = ()

    def _hook(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
            spans: Sequence[Span] = getattr(self._now, "spans", ())
            if not spans:
                return None
            out, start = out.clone(), 0
            for name, count in spans:
                low = None if name is None else self._adapters[name].layers.get(layer)
                if low is not None:
                    rows = (..., slice(start, start + count), slice(None))
                    out[rows] = (out[rows].float() + delta(low, inputs[0][rows])).to(out.dtype)
                start += count
            return out

        return hook


def delta(low: LowRank, x: Tensor) -> Tensor:
    """(..., in) -> (..., out) float32: what an adapter adds to a linear layer's output."""
    a, b = low.matrices()
    return x.float() @ a.T @ b.T * low.scale


def refuse_double(adapter: Adapter, known: Mapping[str, object]) -> None:
    """Refuse a second adapter of one name: sessions hold names, and would change under their rows.

    Raises:
        DuplicateName: there is one already.
    """
    if adapter.name in known:
        raise DuplicateName("there is an adapter of this name", who=adapter.name, fix="choose another name")


def refuse_unknown(name: str, known: Mapping[str, object]) -> None:
    """Refuse a name that no adapter has.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in known:
        fix = suggestion(name, known) if known else "no adapter was added"
        raise ConfigError(f"no adapter {name!r}", who="remove_adapter", fix=fix)


def refuse_used(name: str, sessions: Callable[[], Iterable[Any]]) -> None:
    """Refuse to take away what open sessions use.

    Raises:
        SessionError: how many sessions use it.
    """
    if name not in _used(sessions()):
        return
    gc.collect()  # a session that nobody holds may be part of a circle
    if count := _used(sessions()).count(name):
        fix = "close them, or set their adapter to None, and remove it then"
        raise SessionError(f"{count} open sessions use it", who=f"adapter {name!r}", fix=fix)


def _used(sessions: Iterable[Any]) -> list[str | None]:
    return [session.adapter for session in sessions if session.is_open]


def refuse_other_base(adapter: Adapter, model: VisionLanguageModel) -> None:
    """Refuse an adapter that was trained on other numbers than this model's.

    Raises:
        ConfigError: naming both.
    """
    if not adapter.base:
        return
    own = model.numbers or numbers_of(model)
    if adapter.base.startswith("weights:"):
        own = own or weights_of(model) or adapter.base  # modules without memory cannot be compared
    if adapter.base != own:
        why = f"it was trained on numbers {adapter.base}, this model " + (f"has {own}" if own else "was not compressed")
        fix = "open the model that it was trained on, or pass any_base=True to add_adapter"
        raise ConfigError("belongs to another base", who=f"adapter {adapter.name!r}", why=why, fix=fix)


def adaptable(language_model: nn.Module) -> dict[str, tuple[int, int]]:
    """Linear layers inside numbered decoder layers -> (outputs, inputs); the head runs outside a pass over rows."""
    modules = ((n, m) for n, m in language_model.named_modules() if isinstance(m, nn.Linear))
    return {n: (m.out_features, m.in_features) for n, m in modules if any(part.isdigit() for part in n.split("."))}


def _scale_problem(matrix: Tensor, scale: Tensor | None) -> str:
    """What is wrong with the type of a matrix and its scales, or nothing."""
    if matrix.is_floating_point():
        return "" if scale is None else "is of floats, and has scales"
    if matrix.dtype != torch.int8:
        return f"is {matrix.dtype}, neither floats nor int8"
    if scale is None:
        return "is int8 without scales"
    if tuple(scale.shape) != (len(matrix),):
        return f"has scales {list(scale.shape)}, not one for each of {len(matrix)} rows"
    return "" if bool(torch.isfinite(scale).all()) else "has scales that are not finite"


def refuse_misfit(adapter: Adapter, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse pairs for layers that are not there, or that are of other shapes than (outputs, inputs) ask for.

    Raises:
        ConfigError: names twenty of them, and says how many more there are.
    """
    wrong = []
    for name, low in adapter.layers.items():
        if name not in shapes:
            wrong.append(f"{name}: no linear layer that can be adapted")
            continue
        rank, (rows, columns) = len(low.a), shapes[name]
        for part, matrix, wanted in (("a", low.a, (rank, columns)), ("b", low.b, (rows, rank))):
            if tuple(matrix.shape) != wanted:
                wrong.append(f"{name}: {part} is {list(matrix.shape)}, not {list(wanted)}")
            elif why := _scale_problem(matrix, low.a_scale if part == "a" else low.b_scale):
                wrong.append(f"{name}: {part} {why}")
    if wrong:
        fix = "use an adapter of this language model"
        why = "".join(f"\n  - {line}" for line in wrong[:20])
        why += f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise ConfigError("does not fit", who=f"adapter {adapter.name!r}", why=why, fix=fix)
