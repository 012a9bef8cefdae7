"""The decoder: a drafter guesses, the cost of verifying chooses. The engine of the core verifies.

It is lossless, since a decoder only proposes: the token at a position is sampled from the model's own logits with noise
keyed by seed and position, and a guess is accepted where it is that token (Leviathan et al. 2023, arXiv 2211.17192,
with common random numbers instead of rejection).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field

from andes_sdk.types import Inputs, Proposal, Rows, Session

from .choice import NOTHING, choose, deepest, proposal
from .cost import ASSUMED, Cost, cost_of
from .drafter import Drafter

RETRY = 32
"""Passes after which a drafter that did not pay, and costs something, is tried again."""


@define(eq=False)
class Draft:
    """The memory of one conversation, and what came of its guesses.

    Attributes:
        session: what the rows belong to, if the engine told. rate: chance of a guess whose predecessors were right.
        passes, proposed, accepted: passes that verified, guesses in them, and guesses that were right. What the last
            pass of an answer verified is not told, and not counted.
        idle: passes in a row for which nothing was proposed although something could have been.
        waited: passes since a drafter that costs something was last asked.
    """

    memory: Any
    session: Any = None
    rate: float = 0.6
    passes: int = 0
    proposed: int = 0
    accepted: int = 0
    idle: int = 0
    waited: int = 0
    asked: Proposal | None = None
    seconds: float = 0.0

    def join(self, session: Session, inputs: Inputs) -> None:
        """The session and the prompt of the conversation."""
        self.session = session
        if hasattr(self.memory, "join"):
            self.memory.join(session, inputs)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed."""
        asked, self.asked = self.asked, None
        if asked is not None:
            right = len(tokens) - 1
            self.passes, self.proposed = self.passes + 1, self.proposed + len(asked.tokens)
            self.accepted += right
            if asked.tokens:
                deep = depth_of(asked)
                for level in range(min(right + 1, deep)):
                    self.rate += 0.05 * ((level < right) - self.rate)
            self._tell()
        self.memory.read(tokens, rows)

    def fork(self) -> Draft:
        """A copy that has counted nothing yet."""
        return Draft(self.memory.fork(), rate=self.rate)

    def _tell(self) -> None:
        notes = getattr(self.session, "notes", None)
        if notes is not None:
            notes |= self.notes()

    def notes(self) -> dict[str, float]:
        """What `Session.stats` shows."""
        return {
            "verifications": self.passes, "guesses": self.proposed, "guesses right": self.accepted,
            "tokens a verification": 1.0 + self.accepted / max(self.passes, 1),
            "passes without guesses, which would not pay": self.idle, "seconds of guessing": self.seconds,
        }  # fmt: skip


def depth_of(proposed: Proposal) -> int:
    """Tokens on the longest path."""
    if not proposed.parents:
        return len(proposed.tokens)
    depths: list[int] = []
    for parent in proposed.parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return max(depths)


@define(eq=False)
class SpeculativeDecoder:
    """Proposes what a drafter guesses, as far as it pays.

    Attributes:
        depth: most tokens on a path.
        adapt: whether cost and acceptance choose; otherwise everything that the drafter guesses is proposed.
        fixed: c(k) that was given; None: it is measured.
    """

    drafter: Drafter
    depth: int = 64
    adapt: bool = True
    fixed: Cost | None = None
    measured: Cost | None = None
    step: float = field(default=0.0)
    last_choice: str = field(default="")

    @property
    def name(self) -> str:
        """With the drafter's."""
        return f"speculative, {self.drafter.name}"

    @property
    def taps(self) -> Sequence[int]:
        """The drafter's."""
        return self.drafter.taps

    def open(self) -> Draft:
        """A memory for a new conversation."""
        return Draft(self.drafter.open())

    @property
    def cost(self) -> Cost:
        """c(k) as far as it is known."""
        return self.fixed or self.measured or ASSUMED

    def propose(self, drafts: Sequence[Any], last: Sequence[int]) -> list[Proposal]:
        """What may follow the last token of each conversation."""
        start = time.perf_counter()
        made = self._free(drafts, last) if self.drafter.free or not self.adapt else self._dear(drafts, last)
        each = (time.perf_counter() - start) / max(len(drafts), 1)
        for draft, one in zip(drafts, made, strict=True):
            draft.asked = one
            draft.seconds += each
        return made

    def _free(self, drafts: Sequence[Draft], last: Sequence[int]) -> list[Proposal]:
        """Guess first, then choose."""
        guesses = self.drafter.guess([d.memory for d in drafts], last, self.depth)
        if not self.adapt:
            return [proposal(some, range(len(some))) for some in guesses]
        if not any(guesses):
            return [NOTHING] * len(drafts)
        self._measure(drafts)
        made = choose(guesses, self.cost)
        for draft, some, one in zip(drafts, guesses, made, strict=True):
            draft.idle = draft.idle + 1 if some and not one.tokens else 0
        self._note(made)
        return made

    def _dear(self, drafts: Sequence[Draft], last: Sequence[int]) -> list[Proposal]:
        """Choose how deep first, by what guesses were worth lately: guessing itself costs time."""
        self._measure(drafts)
        rate = sum(d.rate for d in drafts) / len(drafts)
        depth = deepest(rate, self.cost, self.step, self.depth, len(drafts))
        if depth == 0:
            for draft in drafts:
                draft.idle, draft.waited = draft.idle + 1, draft.waited + 1
            if min(d.waited for d in drafts) < RETRY:
                self._note([NOTHING])
                return [NOTHING] * len(drafts)
            depth = 1
        start = time.perf_counter()
        guesses = self.drafter.guess([d.memory for d in drafts], last, depth)
        if self.cost.one:
            taken = (time.perf_counter() - start) / depth / self.cost.one
            self.step = taken if self.step == 0.0 else self.step + 0.1 * (taken - self.step)
        for draft in drafts:
            draft.idle = draft.waited = 0
        made = choose(guesses, self.cost)
        self._note(made)
        return made

    def _measure(self, drafts: Sequence[Draft]) -> None:
        if self.fixed is None and self.measured is None:
            compiled = next((c for d in drafts if (c := getattr(d.session, "compiled", None)) is not None), None)
            if compiled is not None:
                self.measured = cost_of(compiled)

    def _note(self, made: Sequence[Proposal]) -> None:
        rows = sum(len(one.tokens) for one in made)
        self.last_choice = f"on: {rows} guesses verified in the last pass" if rows else "off: guesses would not pay now"

    def facts(self) -> Mapping[str, str]:
        """For `explain()`."""
        if not self.adapt:
            return {"cost of verifying": "not asked: everything that is guessed is proposed"}
        origin = "as given" if self.fixed else "measured" if self.measured else "assumed until a guess stands first"
        return {"cost of verifying": f"{self.cost}; {origin}", "speculation": self.last_choice or "not used yet"}
