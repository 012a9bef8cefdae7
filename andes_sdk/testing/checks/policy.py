"""Cache policies: indices, budgets, and sessions that live on after eviction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor

from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import NotApplicable, require, require_bits, require_close, require_finite
from andes_sdk.types import CachePolicy, Inputs, Layer

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

KIND = "cache_policy"
SIZES = (1, 2, 5, 17, 64, 200)
LONG = 300
"""Rows of a prompt that most budgets make evict."""


@define
class Watched:
    """A policy that looks over another's shoulder."""

    inner: CachePolicy
    highest: int = -1
    damage: str = ""
    name: str = "watched"
    window: int = field(default=0)

    def budget(self, rows: int) -> int | None:
        """As the other says."""
        return self.inner.budget(rows)

    def keep(self, layer: Layer) -> Sequence[Tensor] | None:
        """As the other says; notes which rows it was shown and whether it wrote to them."""
        before = [t.clone() for t in (*layer.keys, *layer.values, *layer.positions)]
        kept = self.inner.keep(layer)
        after = (*layer.keys, *layer.values, *layer.positions)
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            self.damage = "keep writes to the rows it is shown"
        self.highest = max(self.highest, *(int(p.max()) for p in layer.positions if len(p)))
        return kept


def _policy(subject: Subject) -> Any:
    return subject.assembly.slot("cache_policy", model=subject.pipe.model)


def _layer(subject: Subject, rows: int, seed: int = 4) -> Layer:
    spec = subject.pipe.model.text
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    window = min(rows, subject.pipe.policy.window)
    image = torch.zeros(rows, dtype=torch.bool)
    image[rows // 4 : rows // 2] = True
    return Layer(
        0,
        [noise(rows, spec.head_dim) for _ in range(spec.kv_heads)],
        [noise(rows, spec.head_dim) for _ in range(spec.kv_heads)],
        [torch.arange(rows) for _ in range(spec.kv_heads)],
        noise(spec.query_heads, window, spec.head_dim),
        image,
    )


@check(KIND, "has a name, and a window of whole rows")
def _named(subject: Subject) -> None:
    policy = _policy(subject)
    require(isinstance(policy, CachePolicy), f"{type(policy).__name__} is no CachePolicy: name, window, budget, keep")
    require(isinstance(policy.name, str) and policy.name, f"its name is {policy.name!r}")
    require(type(policy.window) is int and policy.window >= 0, f"its window is {policy.window!r}")


@check(KIND, "its budget is a number of rows, or none")
def _budget(subject: Subject) -> None:
    policy = _policy(subject)
    for rows in range(1, 400):
        allowed = policy.budget(rows)
        require(allowed is None or (type(allowed) is int and allowed > 0), f"budget({rows}) is {allowed!r}")


@check(KIND, "keeps ascending, unique indices of rows that exist")
def _indices(subject: Subject) -> None:
    policy = _policy(subject)
    for rows in SIZES:
        kept = policy.keep(_layer(subject, rows))
        if kept is None:
            continue
        heads = subject.pipe.model.text.kv_heads
        require(len(kept) == heads, f"{rows} rows: {len(kept)} lists of indices for {heads} KV heads")
        for head, index in enumerate(kept):
            place = f"{rows} rows, head {head}: "
            require(index.ndim == 1 and index.dtype is torch.int64, f"{place}{index.dtype} of {index.ndim} axes")
            require(bool((index[1:] > index[:-1]).all()), f"{place}indices are not ascending and unique")
            require(not len(index) or (int(index[0]) >= 0 and int(index[-1]) < rows), f"{place}indices out of range")


@check(KIND, "keeps to its budget")
def _within(subject: Subject) -> None:
    policy = _policy(subject)
    for rows in SIZES:
        allowed, kept = policy.budget(rows), policy.keep(_layer(subject, rows))
        counts = [rows] if kept is None else [len(k) for k in kept]
        require(allowed is None or max(counts) <= allowed, f"{rows} rows: keeps {max(counts)}, its budget is {allowed}")


@check(KIND, "the same rows are judged alike")
def _repeatable(subject: Subject) -> None:
    policy = _policy(subject)
    one, two = policy.keep(_layer(subject, 200)), policy.keep(_layer(subject, 200))
    require((one is None) == (two is None), "the same layer shown twice is judged differently")
    for a, b in zip(one or (), two or (), strict=True):
        require_bits(a, b, "indices kept of the same layer shown twice")


@check(KIND, "within its budget it equals full attention")
def _exact(subject: Subject) -> None:
    pipe, policy = subject.pipe, _policy(subject)
    rows = next((n for n in (24, 12, 6, 3) if policy.budget(n + 2) is None or policy.budget(n + 2) >= n + 2), 0)
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
    policy = Watched(_policy(subject), window=pipe.policy.window)
    session = pipe.compiled.session(policy)
    require_finite(session.prefill(plain_inputs(pipe, LONG)), "logits after a long prompt")
    for step in range(1, 6):
        scores, _ = session.extend([step])
        require_finite(scores, "logits after eviction")
        session.commit()
        require(session.length == LONG + step, f"the session's length is {session.length} after {LONG + step} rows")
        allowed, most = policy.budget(session.length), max(max(heads) for heads in session.stats.rows)
        require(allowed is None or most <= allowed, f"{most} rows in a head, the budget is {allowed}")
    session.close()
    require(not policy.damage, policy.damage)


@check(KIND, "is never asked about uncommitted rows")
def _committed(subject: Subject) -> None:
    pipe = subject.pipe
    policy = Watched(_policy(subject), window=pipe.policy.window)
    session = pipe.compiled.session(policy)
    session.prefill(plain_inputs(pipe, 40))
    session.extend([1, 2, 3], [-1, -1, 1])
    require(policy.highest == 39, f"40 rows are committed, keep was shown the row at position {policy.highest}")
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


@check(KIND, "sessions do not disturb one another")
def _sessions(subject: Subject) -> None:
    pipe, policy, answers = subject.pipe, _policy(subject), []
    for other in (None, 11):
        if other is not None:
            disturbing = pipe.compiled.session(policy)
            disturbing.prefill(plain_inputs(pipe, LONG, seed=other))
        session = pipe.compiled.session(policy)
        session.prefill(plain_inputs(pipe, 80))
        answers.append(session.extend([1, 2, 3])[0])
        session.close()
    require_bits(answers[1], answers[0], "logits of a session after another one on the same policy")
