"""The decoder: a drafter guesses, the cost of verifying chooses. The engine of the core verifies.

It is lossless, since a decoder only proposes: the token at a position is sampled from the model's own logits with noise
keyed by seed and position, and a guess is accepted where it is that token (Leviathan et al. 2023, arXiv 2211.17192,
with common random numbers instead of rejection).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ref

from attrs import define, field

from andes_sdk.types import Inputs, Proposal, Rows, Session

from .choice import NOTHING, choose, deepest, least, price, proposal
from .cost import ASSUMED, Cost, Drag, cost_of
from .drafter import Drafter, Guess
from .suffix import SuffixDrafter, Words

OFF = "off: guesses would not pay now"
FORGET = 0.99
"""What the balance of a conversation's guesses keeps with each pass."""
RETRY = 32
"""Passes after which a drafter that did not pay, and costs something, is tried again."""
SHARE = 0.02
"""What wrong guesses may cost of the time of plain passes."""
FIRST, MOST = 2.0, 8.0
"""Tokens that they may cost before anything was earned, and beyond `SHARE` after much was."""


@define(eq=False)
class Purse:
    """What guesses may still lose, all conversations of a decoder together.

    Every pass puts `SHARE` in, and guesses what they gained. No guess costs more than is there, so all of them together
    lose `FIRST` tokens and `SHARE` of the time at most, as long as c(k) is right.

    Attributes:
        left: in tokens that plain passes would have made in the same time.
        rate: chance of a guess of a drafter that costs time, over all conversations.
    """

    left: float = FIRST
    rate: float = 0.6

    def add(self, tokens: float) -> None:
        """What was earned, or spent."""
        self.left = min(self.left + tokens, MOST)


@define(eq=False)
class Draft:
    """The memory of one conversation, and what came of its guesses.

    Attributes:
        session: what the rows belong to, if the engine told. rate: chance of a guess whose predecessors were right.
        passes, proposed, accepted: passes that verified, guesses in them, and guesses that were right. What the last
            pass of an answer verified is not told, and not counted.
        idle: passes in a row for which nothing was proposed although something could have been.
        waited: passes since a drafter that costs something was last asked; -1 if that was to see whether it would pay.
        balance: tokens that guesses gained lately beyond those that plain passes would have made in the same time.
        price: of the guesses that were asked for, in tokens of plain passes.
        hoped: by its places, what the drafter, if it costs something, guessed last, its path's token first.
        came: tokens that were accepted in the last pass.
        words: the text, where it may guess instead of the drafter. copied: whether it made the last guesses.
        drag: the decoder's, which is told of prompts. purse: the decoder's, which is paid for guesses that were right.
        current: whether the drafter, if it costs something, was asked in the pass before.
    """

    memory: Any
    words: Words | None = None
    drag: Drag | None = None
    purse: Purse = field(factory=Purse)
    session: Any = None
    rate: float = 0.6
    passes: int = 0
    proposed: int = 0
    accepted: int = 0
    idle: int = 0
    waited: int = 0
    balance: float = 0.0
    price: float = 0.0
    asked: Proposal | None = None
    copied: bool = False
    current: bool = False
    hoped: list[list[int]] = field(factory=list)
    came: list[int] = field(factory=list)
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
            self.came = list(tokens[1:])
            self.passes, self.proposed = self.passes + 1, self.proposed + len(asked.tokens)
            self.accepted += right
            self.balance = FORGET * self.balance + right - self.price
            self.purse.add(right)
            self._tell()
        elif self.drag is not None:
            self.drag.prompts += 1
        self.memory.read(tokens, rows)
        if self.words is not None:
            self.words.read(tokens, rows)

    def learn(self, token: int) -> None:
        """How the drafter's last guesses turned out, proposed or not: what was accepted, and the token behind it."""
        hoped, self.hoped = self.hoped, []
        for (first, *others), came in zip(hoped, [*self.came, token], strict=False):
            right = came == first or came in others
            self.rate += 0.05 * (right - self.rate)
            self.purse.rate += 0.01 * (right - self.purse.rate)
            if came != first:
                return

    @property
    def unread(self) -> int:
        """Rows that the drafter reads when it is asked."""
        return int(getattr(self.memory, "unread", 1))

    @property
    def trust(self) -> float:
        """What a chance counts for, from 0 to 1: half where guesses have lost two tokens lately."""
        return float(min(1.0, 2.0 ** (self.balance / 2)))

    def fork(self) -> Draft:
        """A copy that has counted nothing yet."""
        return Draft(self.memory.fork(), self.words and self.words.fork(), self.drag, self.purse, rate=self.rate)

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


def places_of(guesses: Sequence[Guess]) -> list[list[int]]:
    """Tokens by their places along a path: first the one that it follows, then those beside it."""
    beside: dict[int, list[int]] = {}
    for n, guess in enumerate(guesses):
        beside.setdefault(guess.parent, []).append(n)
    found, at = [], -1
    while at in beside:
        found.append([guesses[n].token for n in beside[at]])
        at = beside[at][0]
    return found


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
        fixed: c(k) that was given; None: it is measured. drag: how a conversation differs from that.
        step: time of a pass of a drafter that costs some, one of the model being 1. again: time for each row that it
            had not read, where it was not asked in the pass before.
        copies: guesses instead of a drafter that computes, where the last `matched` tokens stood in the text before.
    """

    drafter: Drafter
    depth: int = 64
    adapt: bool = True
    fixed: Cost | None = None
    measured: Cost | None = None
    drag: Drag = field(factory=Drag)
    purse: Purse = field(factory=Purse)
    _left: tuple[float, ref[Draft], int, int] | None = None
    step: float = 0.0
    again: float = 0.0
    last_choice: str = field(default="")
    copies: SuffixDrafter | None = None
    matched: int = 3

    @property
    def name(self) -> str:
        """With the drafter's."""
        return f"speculative, {self.drafter.name}" + (" and suffix" if self.copies else "")

    @property
    def taps(self) -> Sequence[int]:
        """The drafter's."""
        return self.drafter.taps

    def open(self) -> Draft:
        """A memory for a new conversation."""
        words = self.copies.open() if self.copies else None
        return Draft(self.drafter.open(), words, self.drag, self.purse, rate=self.purse.rate)

    @property
    def cost(self) -> Cost:
        """c(k) as far as it is known."""
        return self.fixed or (self.drag.on(self.measured) if self.measured else ASSUMED)

    def propose(self, drafts: Sequence[Any], last: Sequence[int]) -> list[Proposal]:
        """What may follow the last token of each conversation."""
        start = time.perf_counter()
        if self.measured and self._left and len(drafts) == 1:
            left, draft, rows, prompts = self._left
            if draft() is drafts[0] and prompts == self.drag.prompts:  # the pass read no prompt beside it
                self.drag.note(rows, start - left, self.measured)
        guesses: list[list[Guess]] = [[] for _ in drafts]
        for draft, token in zip(drafts, last, strict=True):
            draft.learn(token)
            draft.copied, draft.price = self._copies(draft, token), 0.0
        self.purse.add(SHARE * len(drafts))
        free = [n for n, draft in enumerate(drafts) if self.drafter.free or draft.copied]
        dear = [n for n in range(len(drafts)) if n not in set(free)]
        self._ask(self.drafter if self.drafter.free else self.copies, free, drafts, last, self.depth, guesses)
        if dear and (depth := self._depth([drafts[n] for n in dear])):
            some, asked = [drafts[n] for n in dear], time.perf_counter()
            rows = sum(draft.unread for draft in some)
            self._ask(self.drafter, dear, drafts, last, depth, guesses)
            for n in dear:
                drafts[n].hoped = places_of(guesses[n])
            passes = -(-depth // self.drafter.stride)
            self._time(some, time.perf_counter() - asked, passes, rows, paid=some[0].waited == 0)
        made = self._chosen(drafts, guesses)
        each = (time.perf_counter() - start) / max(len(drafts), 1)
        for draft, one in zip(drafts, made, strict=True):
            draft.asked = one
            draft.seconds += each
        if not any(one.tokens for one in made):
            self.drag.fade()
        self._left = None
        if len(drafts) == 1:
            self._left = (time.perf_counter(), ref(drafts[0]), 1 + len(made[0].tokens), self.drag.prompts)
        return made

    def _copies(self, draft: Draft, token: int) -> bool:
        """Whether the text guesses instead of the drafter."""
        return self.copies is not None and self.copies.matched(draft.words, token) >= self.matched  # type: ignore[arg-type]

    def _ask(
        self, drafter: Any, some: Sequence[int], drafts: Sequence[Draft], last: Sequence[int], depth: int,
        guesses: list[list[Guess]],
    ) -> None:  # fmt: skip
        """Guesses of a drafter for some of the conversations, into `guesses`."""
        if some:
            memories = [drafts[n].words if drafter is self.copies else drafts[n].memory for n in some]
            given = [memories, [last[n] for n in some], depth]
            if self.adapt and isinstance(drafter, SuffixDrafter):  # of what cannot pay nothing more is worth knowing
                bar = least(self.cost, len(drafts))
                given.append([bar / drafts[n].trust for n in some])
            for n, found in zip(some, drafter.guess(*given), strict=True):
                guesses[n] = found

    def _chosen(self, drafts: Sequence[Draft], guesses: Sequence[Sequence[Guess]]) -> list[Proposal]:
        """The guesses that pay, all conversations weighed together."""
        if not self.adapt:
            return [proposal(some, range(len(some))) for some in guesses]
        if not any(guesses):
            return [NOTHING] * len(drafts)
        self._measure(drafts)
        made = choose(guesses, self.cost, [draft.trust for draft in drafts], self.purse.left)
        rows = sum(len(one.tokens) for one in made)
        whole = price(self.cost, len(drafts), rows)
        self.purse.add(-whole)
        for draft, some, one in zip(drafts, guesses, made, strict=True):
            draft.price += whole * len(one.tokens) / max(rows, 1)
            if some:
                draft.idle = 0 if one.tokens else draft.idle + 1
        self.last_choice = f"on: {rows} guesses verified in the last pass" if rows else OFF
        return made

    def _depth(self, drafts: Sequence[Draft]) -> int:
        """How deep a drafter that costs time goes, by what its guesses were worth lately; 0: it is not asked."""
        stride = self.drafter.stride
        most = self.depth if stride == 1 else min(self.depth, stride)  # a block ends where it ends
        if not self.adapt:
            return most
        self._measure(drafts)
        rate = sum(d.rate for d in drafts) / len(drafts)
        self.step = self.step or self._told()
        depth = 0
        if self.purse.left > self.step:
            afforded = int(self.purse.left / self.step) * stride if self.step else most
            depth = deepest(rate, self.cost, self.step, min(most, afforded), len(drafts), stride)
        for draft in drafts:
            draft.waited = max(draft.waited, 0) + 1 if depth == 0 else 0
            draft.idle += depth == 0
            draft.current &= depth > 0
        if depth == 0 and min(d.waited for d in drafts) >= RETRY and self._affords(drafts):
            for draft in drafts:
                draft.waited = -1
            return 1 if stride == 1 else most  # a whole pass costs as much as one token of it
        self.last_choice = self.last_choice if depth else OFF
        return depth

    def _time(self, drafts: Sequence[Draft], seconds: float, passes: int, unread: int, *, paid: bool = True) -> None:
        """What so many passes of the drafter took, some of it for rows that it had not read.

        paid: whether it was asked because that was to pay, and not to see whether it would.
        """
        if self.cost.one:
            taken = seconds / self.cost.one
            if all(draft.current for draft in drafts):
                each = taken / passes
                self.step = each if self.step == 0.0 else self.step + 0.1 * (each - self.step)
            else:
                self.again = taken / unread
                if paid:  # it reads the prompt first, as anybody must
                    taken = self.step * passes
            self.purse.add(-taken)
        for draft in drafts:
            draft.current = True

    def _affords(self, drafts: Sequence[Draft]) -> bool:
        """Whether there is enough left to ask a drafter that must first read what came since."""
        return self.purse.left > self.step + self.again * sum(draft.unread for draft in drafts)

    def _runner(self) -> Any:
        """What runs the drafter's head, if it has one and a conversation came."""
        return getattr(getattr(self.drafter, "runners", None), "last", None)

    def _told(self) -> float:
        """What that says of the time of one of its passes."""
        runner = self._runner()
        return runner.one / self.cost.one if runner is not None and self.cost.one else 0.0

    def _measure(self, drafts: Sequence[Draft]) -> None:
        if self.fixed is None and self.measured is None:
            compiled = next((c for d in drafts if (c := getattr(d.session, "compiled", None)) is not None), None)
            if compiled is not None:
                self.measured = cost_of(compiled)

    def facts(self) -> Mapping[str, str]:
        """For `explain()`."""
        runner = self._runner()
        head = {} if runner is None else {"draft head": runner.facts}
        if not self.adapt:
            return {**head, "cost of verifying": "not asked: everything that is guessed is proposed"}
        origin = "as given" if self.fixed else "measured" if self.measured else "assumed until a guess stands first"
        state = self.last_choice or "not used yet"
        return {**head, "cost of verifying": f"{self.cost}; {origin}", "speculation": state}
