"""Planted bugs in backends that take adapters: the kit names each of them."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve, frozen

from andes_sdk import hookimpl
from andes_sdk.errors import ConfigError
from andes_sdk.runtime.lora import ModuleAdapters, refuse_double, refuse_unknown
from andes_sdk.runtime.torch_backend import CompiledTorch
from andes_sdk.testing import run_checks
from andes_sdk.testing.reference import ReferenceBackend
from andes_sdk.testing.reference.running import Renamed

ZEROS = "an adapter of zeros changes no bit"
MERGED = "an adapter computes what it does when merged into the weights"
BESIDE = "sessions with different adapters share a pass, and change no bit of one another"
DETACHED = "without an adapter the bits are the base's, whatever was added, used or switched off before"
REFUSED = "adapters that do not fit are refused, as are taken and unknown names, and nothing is lost"
REMOVED = "an adapter is removed when no open session uses it, and the others stay what they are"
INT8 = "int8 matrices with scales compute what their floats do"
CHECKS = [ZEROS, MERGED, BESIDE, DETACHED, REFUSED, REMOVED, INT8]


class Ignores(ModuleAdapters):
    """Knows names, and computes without them."""

    def rows(self, spans):
        return super().rows([(None, count) for _, count in spans])


class LosesScale(ModuleAdapters):
    """Leaves out alpha / rank."""

    def add(self, adapter):
        super().add(evolve(adapter, layers={n: evolve(low, scale=1.0) for n, low in adapter.layers.items()}))


class OneLayerLess(ModuleAdapters):
    """Forgets the last layer of an adapter."""

    def add(self, adapter):
        super().add(adapter)
        self._adapters[adapter.name].layers.popitem()


class RoundsRows(ModuleAdapters):
    """Adds in half precision, to the rows of an adapter."""

    def _hook(self, layer):
        inner = super()._hook(layer)

        def hook(module, inputs, out):
            changed = inner(module, inputs, out)
            return changed if changed is None else changed.half().float()

        return hook


class FirstForAll(ModuleAdapters):
    """Takes the first session's adapter for every row of a pass."""

    def rows(self, spans):
        return super().rows([(spans[0][0], count) for _, count in spans])


class Shifted(ModuleAdapters):
    """Is off by a row where one session ends and the next begins."""

    def rows(self, spans):
        if len(spans) == 2:
            (one, m), (two, n) = spans
            spans = [(one, m + 1), (two, n - 1)] if n > 1 else [(one, m - 1), (two, n + 1)]
        return super().rows(spans)


class Disturbs(ModuleAdapters):
    """Adds rounding errors to rows without an adapter if their neighbours have one."""

    def _hook(self, layer):
        inner = super()._hook(layer)

        def hook(module, inputs, out):
            changed, spans = inner(module, inputs, out), getattr(self._now, "spans", ())
            if changed is not None and len({name for name, _ in spans}) > 1:
                changed *= 1 + 1e-6
            return changed

        return hook


class StaysOn(ModuleAdapters):
    """Goes on with the last adapter when a session has none."""

    last = None

    def rows(self, spans):
        self.last = next((name for name, _ in spans if name), self.last)
        return super().rows([(name or self.last, count) for name, count in spans])


class Merges(ModuleAdapters):
    """Adds the product to the weights for a pass, and subtracts it again: not the weights that were there."""

    def rows(self, spans):
        for name in {name for name, _ in spans if name}:
            for layer, low in self._adapters[name].layers.items():
                weight = self._model.language_model.get_parameter(f"{layer}.weight").data
                product = low.scale * low.b @ low.a
                weight.add_(product).sub_(product)
        return super().rows(spans)


class CutsToFit(ModuleAdapters):
    """Pads and cuts matrices until they fit."""

    def add(self, adapter):
        fitted = {}
        for name, low in adapter.layers.items():
            if name not in dict(self._model.language_model.named_modules()):
                continue
            weight = self._model.language_model.get_parameter(f"{name}.weight")
            a, b = torch.zeros(len(low.a), weight.shape[1]), torch.zeros(weight.shape[0], len(low.a))
            for full, part in ((a, low.a), (b, low.b)):
                rows, columns = (min(sizes) for sizes in zip(full.shape, part.shape, strict=True))
                full[:rows, :columns] = part[:rows, :columns]
            fitted[name] = evolve(low, a=a, b=b)
        super().add(evolve(adapter, layers=fitted))


class CrashesLater(ModuleAdapters):
    """Finds out when it multiplies."""

    def add(self, adapter):
        refuse_double(adapter, self)
        for name in adapter.layers.keys() - self._hooked:
            self._model.language_model.get_submodule(name).register_forward_hook(self._hook(name))
            self._hooked.add(name)
        self._adapters[adapter.name] = adapter


class Complains(ModuleAdapters):
    """Refuses with an error of its own kind."""

    def add(self, adapter):
        try:
            super().add(adapter)
        except ConfigError as error:
            raise ValueError(str(error)) from error


class RemembersRefused(ModuleAdapters):
    """Writes the name down before it looks at the matrices."""

    def add(self, adapter):
        refuse_double(adapter, self)
        self._adapters[adapter.name] = adapter
        known = dict(self._adapters)
        del self._adapters[adapter.name]
        try:
            super().add(adapter)
        except Exception:
            self._adapters = known
            raise


class Replaces(ModuleAdapters):
    """Takes the second adapter of a name for a new version of the first."""

    def add(self, adapter):
        self._adapters.pop(adapter.name, None)
        super().add(adapter)


class KeepsRemoved(ModuleAdapters):
    """Leaves what is removed where it is."""

    def remove(self, name):
        refuse_unknown(name, self)


class NoScales(ModuleAdapters):
    """Takes int8 for the numbers themselves."""

    def add(self, adapter):
        super().add(adapter)
        for name, low in adapter.layers.items():
            plain = evolve(low, a=low.a.float(), b=low.b.float(), a_scale=None, b_scale=None)
            self._adapters[adapter.name].layers[name] = plain


PLANTED = [
    (KeepsRemoved, [REMOVED]),
    (NoScales, [INT8]),
    (Ignores, [MERGED, DETACHED]),
    (LosesScale, [MERGED]),
    (OneLayerLess, [MERGED]),
    (RoundsRows, [ZEROS]),
    (FirstForAll, [BESIDE]),
    (Shifted, [BESIDE]),
    (Disturbs, [BESIDE]),
    (StaysOn, [DETACHED]),
    (Merges, [DETACHED]),
    (CutsToFit, [REFUSED]),
    (CrashesLater, [REFUSED]),
    (Complains, [REFUSED]),
    (RemembersRefused, [REFUSED]),
    (Replaces, [REFUSED]),
]


def checked(compile_with):
    """Check -> its result, for the reference backend with something else compiled."""

    @frozen
    class Planted(Renamed):
        def compile(self, model, *, device, dtype, taps=()):
            return compile_with(super().compile(model, device=device, dtype=dtype, taps=taps))

    @frozen(eq=False, kw_only=True)
    class Backends(ReferenceBackend):
        @hookimpl
        def andes_backends(self):
            return [Planted()]

    results = run_checks(Backends, kinds=["backends"])
    return {r.id.removeprefix("backends: "): r for r in results}


@pytest.mark.parametrize(("adapters", "checks"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_a_planted_bug_fails_the_checks_that_name_it(adapters, checks):
    results = checked(lambda compiled: CompiledTorch(compiled.model, adapters(compiled.model), compiled.taps))
    failed = {name: r.reason for name, r in results.items() if r.status == "failed"}
    assert set(checks) <= set(failed), failed
    assert set(failed) < set(CHECKS), f"the bug is not singled out: {failed}"


class NoLayer(ModuleAdapters):
    """Refuses whatever it gets."""

    def add(self, adapter):
        super().add(evolve(adapter, layers={"nowhere": next(iter(adapter.layers.values()))}))


def test_a_backend_that_refuses_every_layer_has_no_adapters():
    results = checked(lambda compiled: CompiledTorch(compiled.model, NoLayer(compiled.model), compiled.taps))
    assert all("takes no adapter of any linear layer" in results[name].reason for name in CHECKS)


class OnlyDown(ModuleAdapters):
    """Can adapt some layers, and says so of the others."""

    def add(self, adapter):
        strange = {n: low for n, low in adapter.layers.items() if not n.endswith("down")}
        super().add(
            evolve(adapter, layers={f"{n} is not adapted": low for n, low in strange.items()} or adapter.layers)
        )


def test_a_backend_need_not_adapt_every_layer():
    results = checked(lambda compiled: CompiledTorch(compiled.model, OnlyDown(compiled.model), compiled.taps))
    assert {name: r.reason for name, r in results.items() if r.status != "passed"} == {}


class Plain:
    """A compiled model without `add_adapter`."""

    def __init__(self, compiled):
        self.session, self.restore = compiled.session, compiled.restore
        self.step, self.facts = compiled.step, compiled.facts


def test_a_backend_without_adapters_is_not_asked_for_them():
    results = checked(Plain)
    assert {name for name, r in results.items() if r.status == "not applicable"} == set(CHECKS)
    assert {r.status for name, r in results.items() if name not in CHECKS} == {"passed"}
