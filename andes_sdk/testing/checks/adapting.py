"""Backends that take adapters: those whose compiled models have `add_adapter` (`AdaptableCompiled`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from andes_sdk.errors import AndesError, ConfigError, DuplicateName, SessionError
from andes_sdk.runtime.lora import adaptable
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.runtime.torch_backend import TorchBackend
from andes_sdk.testing.checks.collections import backends_of
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import NotApplicable, require, require_bits, require_close
from andes_sdk.testing.weights import expect_refusal, randomised
from andes_sdk.types import AdaptableCompiled, Adapter, LowRank, Work

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.testing.subject import Subject

KIND = "backends"
RANKS = {"wide": 5, "narrow": 2}
"""Adapters of the checks; the narrow one leaves out every other layer."""

Shapes = Mapping[str, tuple[int, int]]


def _adapter(name: str, shapes: Shapes) -> Adapter:
    """Changes an output by about half of what it is."""
    rank, random = RANKS[name], torch.Generator().manual_seed(RANKS[name])
    layers = {}
    for layer in list(shapes)[:: 1 if name == "wide" else 2]:
        rows, columns = shapes[layer]
        a = torch.randn(rank, columns, generator=random) / columns**0.5
        b = torch.randn(rows, rank, generator=random) / rank**0.5
        layers[layer] = LowRank(a=a, b=b, scale=0.5)
    return Adapter(name=name, layers=layers)


@frozen
class Case:
    """A compiled model under test, and adapters of the layers that it can adapt."""

    backend: Any
    compiled: Any
    adapters: Sequence[Adapter]

    def with_adapters(self) -> Case:
        """The same, and the adapters are known."""
        for adapter in self.adapters:
            self.compiled.add_adapter(adapter)
        return self

    @property
    def tolerance(self) -> float:
        """What its logits may be off by."""
        return float(getattr(self.backend, "tolerance", 1e-4))

    def opened(self, adapter: str | None) -> Any:
        """An empty session."""
        session = self.compiled.session(KeepAll())
        session.adapter = adapter
        return session

    def named(self, what: str) -> str:
        """For messages."""
        return f"backend {self.backend.name!r}: {what}"


def _model(subject: Subject) -> VisionLanguageModel:
    """The pipeline's model with weights of ordinary size: small ones would hide what an adapter does to them."""
    model = subject.pipeline().model
    randomised(model.language_model)
    return model


def _cases(subject: Subject) -> list[Case]:
    """One for each backend that takes adapters."""
    found = []
    for backend in backends_of(subject):
        model = _model(subject)
        shapes = adaptable(model.language_model)
        if not isinstance(probe := backend.compile(model, device="cpu", dtype="float32"), AdaptableCompiled):
            continue
        taken = {name: shape for name, shape in shapes.items() if _takes(probe, name, shape)}
        require(taken, f"backend {backend.name!r} has add_adapter, and takes no adapter of any linear layer")
        compiled = backend.compile(_model(subject), device="cpu", dtype="float32")
        found.append(Case(backend, compiled, [_adapter(name, taken) for name in RANKS]))
    if not found:
        raise NotApplicable("its compiled models take no adapters")
    return found


def _takes(probe: AdaptableCompiled, layer: str, shape: tuple[int, int]) -> bool:
    try:
        probe.add_adapter(evolve(_adapter("wide", {layer: shape}), name=layer))
    except ConfigError:  # the contract's way of saying that a backend cannot adapt a layer
        return False
    return True


def _talk(subject: Subject, session: Any) -> Tensor:
    """Logits of a prompt with a picture, of a tree, and of a row after one of its paths."""
    first = session.prefill(subject.pipe.prepare(conversation(0)))
    tree = session.extend([1, 2, 3, 4], [-1, 0, 0, -1])[0]
    session.commit([0, 2])
    after = session.extend([5])[0]
    session.close()
    return torch.cat([first[None], tree, after])


# ---------------------------------------------------------------- one session


@check(KIND, "an adapter of zeros changes no bit")
def _zeros(subject: Subject) -> None:
    for case in _cases(subject):
        wide = case.adapters[0]
        wanted = _talk(subject, case.opened(None))
        for part in ("a", "b", "scale"):
            layers = {n: evolve(low, **{part: 0 * getattr(low, part)}) for n, low in wide.layers.items()}
            case.compiled.add_adapter(Adapter(name=part, layers=layers))
            require_bits(
                _talk(subject, case.opened(part)), wanted, case.named(f"logits with an adapter whose {part} is 0")
            )


@check(KIND, "an adapter computes what it does when merged into the weights")
def _merged(subject: Subject) -> None:
    for case in _cases(subject):
        case.with_adapters()
        base = _talk(subject, case.opened(None))
        for adapter in case.adapters:
            model = _model(subject)
            with torch.no_grad():
                for name, low in adapter.layers.items():
                    weight = model.language_model.get_parameter(f"{name}.weight")
                    weight.add_(low.scale * low.b @ low.a)
            merged = TorchBackend().compile(model, device="cpu", dtype="float32").session(KeepAll())
            got = _talk(subject, case.opened(adapter.name))
            require(not torch.equal(got, base), case.named(f"adapter {adapter.name!r} changes nothing"))
            message = case.named(f"logits with adapter {adapter.name!r} against merged weights")
            require_close(got, _talk(subject, merged), case.tolerance, message)


# ---------------------------------------------------------------- sessions beside one another


def _together(subject: Subject, case: Case, names: Sequence[str | None], *, alone: bool = False) -> list[Tensor]:
    """Two sessions, two steps of both in one pass each (or alone) -> logits of each session."""
    sessions = [case.opened(name) for name in names]
    for number, session in enumerate(sessions):
        session.prefill(plain_inputs(subject.pipe, 5 + number))
    found: list[list[Tensor]] = [[] for _ in names]
    for tokens in ([[1], [2, 3]], [[4, 5], [6]]):
        if alone:
            steps = [session.extend(new)[0] for session, new in zip(sessions, tokens, strict=True)]
        else:
            work = [Work(session=session, tokens=new) for session, new in zip(sessions, tokens, strict=True)]
            steps = [rows.logits for rows in case.compiled.step(work)]
        for session, mine, logits in zip(sessions, found, steps, strict=True):
            mine.append(logits)
            session.commit()
    return [torch.cat(mine) for mine in found]


@check(KIND, "sessions with different adapters share a pass, and change no bit of one another")
def _beside(subject: Subject) -> None:
    for case in _cases(subject):
        case.with_adapters()
        runs = {names: _together(subject, case, names) for names in
                (("wide", "narrow"), ("wide", None), (None, "narrow"), ("wide", "wide"))}  # fmt: skip
        both = runs["wide", "narrow"]
        # equal shapes, so that even a backend whose sums depend on them has no excuse
        for other, place in ((("wide", None), 0), (("wide", "wide"), 0), ((None, "narrow"), 1)):
            message = case.named(f"logits with adapter {other[place]!r} beside one with {other[1 - place]!r}")
            require_bits(runs[other][place], both[place], message)
        for names, got in runs.items():
            wanted = _together(subject, case, names, alone=True)
            for name, mine, own in zip(names, got, wanted, strict=True):
                message = case.named(f"adapter {name!r} in one pass with another against the session alone")
                require_close(mine, own, case.tolerance, message)


@check(KIND, "without an adapter the bits are the base's, whatever was added, used or switched off before")
def _detached(subject: Subject) -> None:
    for case in _cases(subject):
        early, waiting = case.opened(None), case.opened(None)
        base = _talk(subject, case.opened(None))
        waiting.prefill(plain_inputs(subject.pipe, 5))
        case.with_adapters()
        early.adapter = "wide"  # open before there was one
        wide = _talk(subject, early)
        require(not torch.equal(wide, base), case.named("adapter 'wide' changes nothing in a session opened before it"))
        require_bits(_talk(subject, case.opened("wide")), wide, case.named("logits of a session opened later"))
        require_bits(_talk(subject, case.opened(None)), base, case.named("logits after adapters were used"))
        off = case.opened("wide")
        off.adapter = None
        require_bits(_talk(subject, off), base, case.named("logits of a session whose adapter was switched off"))
        fresh = case.opened(None)
        fresh.prefill(plain_inputs(subject.pipe, 5))
        got, wanted = (session.extend([1, 2])[0] for session in (waiting, fresh))
        require_bits(got, wanted, case.named("logits of a session that waited while another used an adapter"))


@check(KIND, "int8 matrices with scales compute what their floats do")
def _int8(subject: Subject) -> None:
    for case in _cases(subject):
        whole, floats = {}, {}
        for name, low in case.adapters[0].layers.items():
            parts: dict[str, Tensor] = {}
            for part, matrix in (("a", low.a), ("b", low.b)):
                scale = matrix.abs().amax(1) / 127
                parts |= {part: (matrix / scale[:, None]).round().to(torch.int8), f"{part}_scale": scale}
            whole[name] = LowRank(scale=low.scale, **parts)
            a, b = whole[name].matrices()
            floats[name] = LowRank(a=a, b=b, scale=low.scale)
        for name, layers in (("int8", whole), ("floats", floats)):
            case.compiled.add_adapter(Adapter(name=name, layers=layers))
        got, wanted = (_talk(subject, case.opened(name)) for name in ("int8", "floats"))
        require_close(got, wanted, 1e-4, case.named("logits with int8 matrices against the same in floats"))


@check(KIND, "an adapter is removed when no open session uses it, and the others stay what they are")
def _removed(subject: Subject) -> None:
    for case in _cases(subject):
        case.with_adapters()
        base, wide, narrow = (_talk(subject, case.opened(name)) for name in (None, *RANKS))
        user = case.opened("wide")
        message = case.named("removes an adapter that an open session uses")
        expect_refusal(lambda c=case: c.compiled.remove_adapter("wide"), message, (SessionError,))  # type: ignore[misc]
        require_bits(_talk(subject, user), wide, case.named("logits of a session whose adapter was to be removed"))
        case.compiled.remove_adapter("wide")
        message = case.named("removes an adapter that is not there")
        expect_refusal(lambda c=case: c.compiled.remove_adapter("wide"), message, (ConfigError,))  # type: ignore[misc]
        message = case.named("a session takes the name of an adapter that was removed")
        expect_refusal(lambda c=case: c.opened("wide"), message, (SessionError,))  # type: ignore[misc]
        for name, bits in ((None, base), ("narrow", narrow)):
            require_bits(_talk(subject, case.opened(name)), bits, case.named(f"logits of {name!r} after a removal"))
        case.compiled.add_adapter(case.adapters[0])
        require_bits(_talk(subject, case.opened("wide")), wide, case.named("logits of an adapter that was added again"))


# ---------------------------------------------------------------- refusals


def _misfits(adapter: Adapter) -> dict[str, Mapping[str, LowRank]]:
    """Layers of an adapter with one thing wrong in the last of them."""
    name, low = list(adapter.layers.items())[-1]
    wrong = {
        "a column too few": {name: evolve(low, a=low.a[:, 1:])},
        "a column too many": {name: evolve(low, a=torch.cat([low.a, low.a[:, :1]], 1))},
        "an output too few": {name: evolve(low, b=low.b[1:])},
        "an output too many": {name: evolve(low, b=torch.cat([low.b, low.b[:1]]))},
        "two ranks": {name: evolve(low, b=low.b[:, 1:])},
        "a layer that is not there": {f"{name}.more": low},
        "int8 without scales": {name: evolve(low, a=low.a.to(torch.int8))},
        "scales of another number": {name: evolve(low, a=low.a.to(torch.int8), a_scale=torch.ones(len(low.a) + 1))},
    }
    return {what: {**adapter.layers, **layer} for what, layer in wrong.items()}


@check(KIND, "adapters that do not fit are refused, as are taken and unknown names, and nothing is lost")
def _refused(subject: Subject) -> None:
    for case in _cases(subject):
        case.with_adapters()
        wanted = [_talk(subject, case.opened(name)) for name in (None, *RANKS)]
        for what, layers in _misfits(case.adapters[0]).items():
            new = Adapter(name=what, layers=layers)
            expect_refusal(
                lambda c=case, n=new: c.compiled.add_adapter(n),  # type: ignore[misc]
                case.named(f"takes an adapter with {what}"),
                (AndesError,),
            )
            message = case.named(f"a session takes the name of an adapter that was refused for {what}")
            expect_refusal(lambda c=case, n=what: c.opened(n), message, (SessionError,))  # type: ignore[misc]
        taken = evolve(case.adapters[1], name="wide")
        message = case.named("takes a second adapter of one name")
        expect_refusal(lambda c=case, n=taken: c.compiled.add_adapter(n), message, (DuplicateName,))  # type: ignore[misc]
        for name, bits in zip((None, *RANKS), wanted, strict=True):
            require_bits(_talk(subject, case.opened(name)), bits, case.named(f"logits of {name!r} after refusals"))
