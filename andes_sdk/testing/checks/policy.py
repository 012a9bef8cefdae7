"""Cache policies: indices, budgets, and sessions that live on after eviction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor

from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import NotApplicable, require, require_bits, require_close, require_finite
from andes_sdk.types import Cache, CachePolicy, Inputs, Keeper, Layer, Look

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

KIND = "cache_policy"
SIZES = (1, 2, 5, 17, 64, 200)
LONG = 300
"""Rows of a prompt that most budgets make evict."""


@define(eq=False)
class Watched:
    """A policy that looks over another's shoulder.

    Attributes:
        highest: position of the newest row that `keep` was shown.
        asked, replayed: how often it was asked what to keep, and how many rows it replayed.
        faults: what it did that it must not.
    """

    inner: CachePolicy
    highest: int = -1
    asked: int = 0
    replayed: int = 0
    faults: list[str] = field(factory=list)
    name: str = "watched"
    window: int = 0
    taps: Sequence[int] = ()
    replays: bool = False

    @classmethod
    def over(cls, inner: CachePolicy) -> Watched:
        """Asks for what the other asks for."""
        return cls(inner, window=inner.window, taps=inner.taps, replays=inner.replays)

    def budget(self, seen: int) -> int | None:
        """As the other says."""
        return self.inner.budget(seen)

    def open(self, state: Mapping[str, Tensor] | None = None) -> WatchedKeeper:
        """A keeper of the other's, watched."""
        return WatchedKeeper(self, self.inner.open(state))


@define(eq=False)
class WatchedKeeper:
    """A keeper that notes which rows another is shown, whether it writes to them, and whether the newest stays."""

    policy: Watched
    inner: Keeper

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """As the other says."""
        return self.inner.score(layer, hidden)

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """As the other says."""
        return self.inner.due(seen, held, reading)

    def state(self) -> Mapping[str, Tensor]:
        """The other's."""
        return self.inner.state()

    def keep(self, cache: Cache) -> Sequence[Sequence[Tensor] | None]:
        """As the other says."""
        layers = list(cache.layers)
        rows = [t for x in layers for t in (*x.keys, *x.values, *x.positions, *(x.scores or ()), x.queries)]
        shown = rows if cache.embeds is None else [*rows, cache.embeds]
        before = [t.clone() for t in shown]

        def replay(embeds: Tensor, look: Look) -> Tensor:
            self.policy.replayed += len(embeds)
            return cache.replay(embeds, look)

        self.policy.asked += 1
        kept = self.inner.keep(Cache(seen=cache.seen, layers=layers, embeds=cache.embeds, replay=replay))
        if not all(torch.equal(a, b) for a, b in zip(before, shown, strict=True)):
            self.policy.faults.append("keep writes to the rows it is shown")
        self.policy.highest = max([self.policy.highest, *(int(p.max()) for x in layers for p in x.positions if len(p))])
        if not any(_newest_stays(layer, index) for layer, index in zip(layers, kept, strict=False)):
            self.policy.faults.append(f"the newest of {cache.seen} rows is dropped in every layer and head")
        return kept


def _newest_stays(layer: Layer, kept: Sequence[Tensor] | None) -> bool:
    if kept is None:
        return True
    return any(len(i) and int(i[-1]) == len(p) - 1 for i, p in zip(kept, layer.positions, strict=False))


def _policy(subject: Subject) -> Any:
    """A new one."""
    return subject.assembly.slot("cache_policy", model=subject.pipe.model, rows=None)


def _noise(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _layer(subject: Subject, policy: Any, keeper: Any, index: int, rows: int) -> Layer:
    spec, noise = subject.pipe.model.text, _noise(4 + index)
    image = torch.zeros(rows, dtype=torch.bool)
    image[rows // 4 : rows // 2] = True
    scores = keeper.score(index, noise(rows, spec.width)) if index in policy.taps else None
    return Layer(
        index=index,
        keys=[noise(rows, spec.head_dim) for _ in range(spec.kv_heads)],
        values=[noise(rows, spec.head_dim) for _ in range(spec.kv_heads)],
        positions=[torch.arange(rows) for _ in range(spec.kv_heads)],
        queries=noise(spec.query_heads, min(rows, policy.window), spec.head_dim),
        image=image,
        scores=None if scores is None else list(scores),
    )


def _kept(subject: Subject, policy: Any, rows: int) -> Sequence[Sequence[Tensor] | None]:
    """What a new keeper keeps of so many rows of noise in every layer and head."""
    spec, keeper = subject.pipe.model.text, policy.open()

    def replay(embeds: Tensor, look: Look) -> Tensor:
        noise = _noise(len(embeds))
        for index in range(spec.layers):
            shapes = ((heads, len(embeds), spec.head_dim) for heads in (spec.query_heads, spec.kv_heads))
            look(index, *(noise(*shape) for shape in shapes))
        return noise(len(embeds), len(policy.taps), spec.width)

    layers = [_layer(subject, policy, keeper, index, rows) for index in range(spec.layers)]
    embeds = _noise(3)(rows, spec.width) if policy.replays else None
    if not keeper.due(rows, rows * _heads(subject), False):
        return [None] * spec.layers
    kept: Sequence[Sequence[Tensor] | None] = keeper.keep(Cache(seen=rows, layers=layers, embeds=embeds, replay=replay))
    require(len(kept) == spec.layers, f"{rows} rows: keep answers for {len(kept)} layers of {spec.layers}")
    return kept


def _heads(subject: Subject) -> int:
    """KV heads of all layers together."""
    spec = subject.pipe.model.text
    return int(spec.layers * spec.kv_heads)


@check(KIND, "has a name, a window of whole rows, and taps of layers that exist")
def _named(subject: Subject) -> None:
    policy = _policy(subject)
    what = f"{type(policy).__name__} is no CachePolicy: name, window, taps, replays, budget, open"
    require(isinstance(policy, CachePolicy), what)
    require(isinstance(policy.name, str) and policy.name, f"its name is {policy.name!r}")
    require(type(policy.window) is int and policy.window >= 0, f"its window is {policy.window!r}")
    known = range(subject.pipe.model.text.layers + 1)
    require(all(tap in known for tap in policy.taps), f"it taps layers {list(policy.taps)} of 0 to {known[-1]}")
    require(type(policy.replays) is bool, f"its replays is {policy.replays!r}")


@check(KIND, "keeps ascending, unique indices of rows that exist")
def _indices(subject: Subject) -> None:
    policy, heads = _policy(subject), subject.pipe.model.text.kv_heads
    for rows in SIZES:
        for layer, kept in enumerate(_kept(subject, policy, rows)):
            if kept is None:
                continue
            require(
                len(kept) == heads, f"{rows} rows, layer {layer}: {len(kept)} lists of indices for {heads} KV heads"
            )
            for head, index in enumerate(kept):
                place = f"{rows} rows, layer {layer}, head {head}: "
                require(index.ndim == 1 and index.dtype is torch.int64, f"{place}{index.dtype} of {index.ndim} axes")
                require(bool((index[1:] > index[:-1]).all()), f"{place}indices are not ascending and unique")
                there = not len(index) or (int(index[0]) >= 0 and int(index[-1]) < rows)
                require(there, f"{place}indices out of range")


@check(KIND, "its budget is a number of rows, or none, and it keeps to it")
def _within(subject: Subject) -> None:
    policy, each = _policy(subject), subject.pipe.model.text.kv_heads
    for rows in range(1, 400):
        allowed = policy.budget(rows)
        require(allowed is None or (type(allowed) is int and allowed > 0), f"budget({rows}) is {allowed!r}")
    for rows in SIZES:
        allowed, kept = policy.budget(rows), _kept(subject, policy, rows)
        held = sum(rows * each if k is None else sum(len(i) for i in k) for k in kept)
        what = f"{rows} rows: keeps {held} in all layers and heads, its budget is {allowed}"
        require(allowed is None or held <= allowed, what)
        few = allowed is not None and held < rows * _heads(subject) and 2 * held < allowed
        require(not few, f"{what}: state what it keeps")


@check(KIND, "the same rows are judged alike")
def _repeatable(subject: Subject) -> None:
    policy = _policy(subject)
    one, two = _kept(subject, policy, 200), _kept(subject, policy, 200)
    for a, b in zip(one, two, strict=True):
        require((a is None) == (b is None), "the same layer shown twice is judged differently")
        for x, y in zip(a or (), b or (), strict=True):
            require_bits(x, y, "indices kept of the same layer shown twice")


@check(KIND, "scores are finite, one for each KV head and row, and those of dropped rows leave no trace")
def _scores(subject: Subject) -> None:
    policy, spec = _policy(subject), subject.pipe.model.text
    if not policy.taps:
        raise NotApplicable("it scores no rows")
    keeper = policy.open()
    for rows in (1, 5, 64):
        for layer in policy.taps:
            scores = keeper.score(layer, _noise(rows)(rows, spec.width))
            if scores is None:
                continue
            shape, wanted = tuple(scores.shape), (spec.kv_heads, rows)
            require(shape == wanted, f"scores of {rows} rows entering layer {layer} have shape {shape}, not {wanted}")
            require_finite(scores, f"scores of rows entering layer {layer}")
    answers = []
    for dropped in ([], [7, 8, 9]):
        session = subject.pipe.compiled.session(_policy(subject))
        session.prefill(plain_inputs(subject.pipe, 80))
        if dropped:
            session.extend(dropped)
            session.rollback()
        answers.append(_talk(session, 40))
        session.close()
    require_bits(answers[1], answers[0], "logits after rows that were scored and dropped, against none")


@check(KIND, "replays if it says so, and only then")
def _replays(subject: Subject) -> None:
    policy = Watched.over(_policy(subject))
    session = subject.pipe.compiled.session(policy)
    session.prefill(plain_inputs(subject.pipe, LONG))
    _talk(session)
    session.close()
    if not policy.asked:
        raise NotApplicable("it is never asked what to keep")
    what = f"its replays is {policy.replays}, it replays {policy.replayed} rows"
    require(bool(policy.replayed) == policy.replays, f"{what}; inputs of all rows are stored for those that replay")


@check(KIND, "within its budget it equals full attention")
def _exact(subject: Subject) -> None:
    pipe, policy, heads = subject.pipe, _policy(subject), _heads(subject)

    def fits(rows: int) -> bool:
        allowed = policy.budget(rows)
        return allowed is None or allowed >= rows * heads

    rows = next((n for n in (24, 12, 6, 3) if fits(n + 2)), 0)
    if not rows:
        raise NotApplicable("it evicts even from the shortest prompts")
    inputs, answers = plain_inputs(pipe, rows + 2), []
    for choice in (policy, KeepAll()):
        session = pipe.compiled.session(choice)
        session.prefill(Inputs(ids=inputs.ids[:rows]))
        answers.append(session.extend(inputs.ids[rows:].tolist())[0])
        session.close()
    require_close(answers[0], answers[1], 1e-5, f"logits after {rows} rows, all within the budget, against keep-all")


@check(KIND, "a session decodes on after eviction, within the budget")
def _lives_on(subject: Subject) -> None:
    pipe = subject.pipe
    policy = Watched.over(_policy(subject))
    session = pipe.compiled.session(policy)
    require_finite(session.prefill(plain_inputs(pipe, LONG)), "logits after a long prompt")
    for step in range(1, 6):
        scores, _ = session.extend([step])
        require_finite(scores, "logits after eviction")
        session.commit()
        require(session.length == LONG + step, f"the session's length is {session.length} after {LONG + step} rows")
        allowed, held = policy.budget(session.length), sum(sum(heads) for heads in session.stats.rows)
        require(allowed is None or held <= allowed, f"{held} rows in all layers and heads, the budget is {allowed}")
    session.close()
    require(not policy.faults, "; ".join(policy.faults[:1]))


@check(KIND, "is never asked about uncommitted rows")
def _committed(subject: Subject) -> None:
    pipe = subject.pipe
    policy = Watched.over(_policy(subject))
    session = pipe.compiled.session(policy)
    session.prefill(plain_inputs(pipe, 40))
    session.extend([1, 2, 3], [-1, -1, 1])
    require(policy.highest <= 39, f"40 rows are committed, keep was shown the row at position {policy.highest}")
    session.commit([1, 2])
    require(policy.highest <= 41, f"42 rows are committed, keep was shown the row at position {policy.highest}")
    session.extend([4])
    session.rollback()
    scores, _ = session.extend([5])
    require_finite(scores, "logits after a rollback")
    require(session.length == 42, f"after a rollback the length is {session.length}, not 42")
    session.close()


@check(KIND, "takes prompts with pictures")
def _pictures(subject: Subject) -> None:
    pipe = subject.pipe
    session = pipe.compiled.session(_policy(subject))
    require_finite(session.prefill(pipe.prepare(conversation(0))), "logits after a prompt with a picture")
    require_finite(session.extend([1, 2])[0], "logits after a prompt with a picture")
    session.close()


def _talk(session: Any, steps: int = 6) -> Tensor:
    """Logits of a few steps after what a session has read."""
    found = []
    for step in range(steps):
        found.append(session.extend([step + 1, step + 2])[0])
        session.commit()
    return torch.cat(found)


@check(KIND, "sessions do not disturb one another, and a used policy equals a new one")
def _sessions(subject: Subject) -> None:
    pipe, policy, answers = subject.pipe, _policy(subject), []
    for other in (None, 11):
        session = pipe.compiled.session(policy)
        if other is not None:
            disturbing = pipe.compiled.session(policy)
            disturbing.prefill(plain_inputs(pipe, LONG, seed=other))
        session.prefill(plain_inputs(pipe, 80))
        if other is not None:
            _talk(disturbing)
            disturbing.close()
        answers.append(_talk(session))
        session.close()
    require_bits(answers[1], answers[0], "logits of a session beside another one on the same policy")
    new, used = (pipe.compiled.session(p) for p in (_policy(subject), policy))
    for session in (new, used):
        session.prefill(plain_inputs(pipe, 80))
    require_bits(_talk(used), _talk(new), "logits under a policy that was used before, against a new one")


@check(KIND, "a fork and a restored session keep the same rows as the original")
def _restored(subject: Subject) -> None:
    pipe, policy = subject.pipe, _policy(subject)
    original = pipe.compiled.session(policy)
    original.prefill(plain_inputs(pipe, 80))
    _talk(original)
    restored = pipe.compiled.restore(original.state(), _policy(subject))
    fork = original.fork()
    later = pipe.compiled.session(policy)
    later.prefill(plain_inputs(pipe, LONG))  # what one session does is nothing to the others
    wanted = _talk(original, 40)
    rows = original.stats.rows
    for session, what in ((fork, "a fork"), (restored, "a restored session")):
        require_bits(_talk(session, 40), wanted, f"logits of {what}, against the original's")
        require(session.stats.rows == rows, f"{what} keeps {session.stats.rows} rows, the original {rows}")
        session.close()
