"""One engine decodes everything: decoders propose, it samples, verifies and commits.

Conversations join and leave while others go on. Chunks of prompts, single tokens and trees of guesses of all of them
share passes. Each answer is what it would be alone. An error in one conversation ends that one only.

Verification: the token at a position is sampled from the model's own logits, with noise keyed by seed and position. A
guess is accepted if it is that token. So the answer does not depend on what was proposed. Source: Leviathan et al.
2023, arXiv 2211.17192, with common random numbers instead of rejection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.errors import SessionError
from andes_sdk.runtime.base import CHUNK_ROWS
from andes_sdk.runtime.sampling import TokenSampler
from andes_sdk.types import Inputs, JoiningDraft, Proposal, Rows, Work

if TYPE_CHECKING:
    from andes_sdk.runtime.options import GenerationOptions
    from andes_sdk.types import CachePolicy, Compiled, Decoder, Draft, Session

Watch = Callable[[Tensor, int], bool | None]
"""Told the logits (V,) and the token chosen from them, in order; True ends the answer there."""


@define(eq=False)
class Conversation:
    """One answer in the making.

    Attributes:
        tokens: ids so far, the end token included.
        finish: "" while it goes on; then "stop", "length", "cancelled" or "error".
        error: why it ended, if by an error. first: when its first token was there, by `time.perf_counter`.
    """

    session: Session
    inputs: Inputs
    options: GenerationOptions
    sampler: TokenSampler
    draft: Draft
    watch: Watch | None = None
    finish: str = ""
    error: Exception | None = None
    first: float = 0.0
    last: float = 0.0
    _chunks: Iterator[Work] | None = None
    _twins: list[Conversation] = field(factory=list)  # they wait for the prompt that this one reads
    _waits: bool = False  # its session is still that of the one who reads

    @property
    def tokens(self) -> Sequence[int]:
        """Ids so far."""
        return self.sampler.answer

    @property
    def reading(self) -> bool:
        """Whether its prompt is not read to the end yet."""
        return self._chunks is not None


@frozen(eq=False)
class Engine:
    """Runs conversations on a compiled model.

    Attributes:
        ends: ids that end an answer. positions: of the model; an answer that reaches them ends with "length".
        chunk_rows: rows of prompts read in one pass, all conversations together.
    """

    compiled: Compiled
    policy: CachePolicy
    decoder: Decoder
    ends: Collection[int]
    positions: int
    chunk_rows: int = CHUNK_ROWS
    active: list[Conversation] = field(factory=list, init=False)
    _columns: Sequence[int] = field(init=False)

    @_columns.default
    def _columns_of_the_decoder(self) -> Sequence[int]:
        """Where the decoder's taps stand among those that the model was compiled with."""
        return [list(self.compiled.taps).index(tap) for tap in self.decoder.taps]

    # ------------------------------------------------------------ joining and leaving

    def join(self, inputs: Inputs, options: GenerationOptions, *, watch: Watch | None = None) -> Conversation:
        """Take a conversation in; its prompt is read from the next step on.

        Raises:
            SessionError: an adapter that is not there.
        """
        return self.join_many(inputs, [options], [watch])[0]

    def join_many(
        self, inputs: Inputs, options: Sequence[GenerationOptions], watches: Sequence[Watch | None]
    ) -> list[Conversation]:
        """Take several answers to one prompt in; it is read once, and its session forked.

        Raises:
            SessionError: an adapter that is not there, or differs among them.
        """
        if len({o.adapter for o in options}) != 1:
            raise SessionError("one prompt is read with one adapter", fix="join once for each adapter")
        session = self.compiled.session(self.policy)
        session.adapter = options[0].adapter
        prompt, draft = inputs.ids.tolist(), _told(self.decoder.open(), session, inputs)
        made = [
            Conversation(session, inputs, o, TokenSampler(o, prompt, self.ends), draft, w)
            for o, w in zip(options, watches, strict=True)
        ]
        first, *others = made
        first._chunks = session.chunks(inputs)
        first._twins = others
        for other in others:
            other._waits = True
        self.active.append(first)
        return made

    def leave(self, conversation: Conversation, finish: str = "cancelled", error: Exception | None = None) -> None:
        """End a conversation, and close what it opened. Ending it twice changes nothing."""
        if conversation.finish:
            return
        conversation.finish, conversation.error = finish, error
        if conversation in self.active:
            self.active.remove(conversation)
        twins, conversation._twins = conversation._twins, []
        conversation._chunks = None
        if finish == "cancelled" and twins:  # they wait for the prompt that this one was reading
            self._promote(conversation, twins)
            return
        for twin in twins:
            self.leave(twin, finish, error)
        if not conversation._waits and (error is not None or finish == "cancelled"):
            conversation.session.close()

    def _promote(self, gone: Conversation, twins: list[Conversation]) -> None:
        """The prompt is read for the next in line, from its start."""
        gone.session.close()
        left = [twin for twin in twins if not twin.finish]
        if not left:
            return
        heir, *others = left
        heir.session = self.compiled.session(self.policy)
        heir.session.adapter = heir.options.adapter
        heir.draft, heir._waits = _told(self.decoder.open(), heir.session, heir.inputs), False
        heir._chunks, heir._twins = heir.session.chunks(heir.inputs), others
        self.active.append(heir)

    def close(self) -> None:
        """Cancel whatever still goes on."""
        while self.active:
            self.leave(self.active[0])

    def run(self) -> None:
        """Step until every conversation has ended."""
        try:
            while self.active:
                self.step()
        finally:
            self.close()

    # ------------------------------------------------------------ one step

    def step(self) -> None:
        """One shared pass for the open conversations: a chunk of a prompt, or the last token and what may follow it."""
        plans = [*self._readers(), *self._deciders()]
        if plans:
            self._pass(plans)

    def _readers(self) -> Iterator[tuple[Conversation, Work]]:
        """Next chunks of prompts, as many as fit into one pass; the first in line always gets its turn."""
        room = self.chunk_rows
        for one in [c for c in self.active if c.reading]:
            if room <= 0:
                return
            try:
                work = next(one._chunks)  # type: ignore[arg-type]
            except Exception as error:
                self.leave(one, "error", error)
                continue
            room -= len(work.tokens)
            yield one, work

    def _deciders(self) -> list[tuple[Conversation, Work]]:
        """The last token of each answer, with what the decoder guesses after it."""
        some = [c for c in self.active if not c.reading]
        plans = []
        for one, proposal in zip(some, self._proposals(some), strict=True):
            if proposal is None:
                continue
            tokens = [one.tokens[-1], *proposal.tokens]
            parents = [-1, *(p + 1 for p in proposal.parents)] if proposal.parents else None
            room = self.positions - one.session.length
            plans.append((one, Work(session=one.session, tokens=tokens[:room], parents=parents and parents[:room])))
        return plans

    def _proposals(self, some: Sequence[Conversation]) -> list[Proposal | None]:
        """Per conversation a proposal that fits, or None if asking for it ended the conversation."""
        if not some:
            return []
        try:
            return [self._fitting(p) for p in self._propose([c.draft for c in some], [c.tokens[-1] for c in some])]
        except Exception as error:
            if len(some) == 1:
                self.leave(some[0], "error", error)
                return [None]
            return [self._proposals([one])[0] for one in some]

    def _propose(self, drafts: Sequence[Draft], last: Sequence[int]) -> Sequence[Proposal]:
        proposals = self.decoder.propose(drafts, last)
        if len(proposals) != len(last):
            what = f"gives {len(proposals)} proposals for {len(last)} conversations"
            raise SessionError(what, who=f"decoder {self.decoder.name!r}")
        return proposals

    def _fitting(self, proposal: Proposal) -> Proposal:
        count, parents = len(proposal.tokens), proposal.parents
        if parents and (len(parents) != count or any(not -1 <= p < i for i, p in enumerate(parents))):
            what = f"proposes {count} tokens with parents {list(parents)}"
            raise SessionError(what, who=f"decoder {self.decoder.name!r}", fix="a parent stands before its child")
        return proposal

    def _pass(self, plans: Sequence[tuple[Conversation, Work]]) -> None:
        try:
            rows = self.compiled.step([work for _, work in plans])
        except Exception as error:
            # every session is as it was: whoever is to blame is found, the others go on
            if len(plans) == 1:
                self.leave(plans[0][0], "error", error)
                return
            guilty = [n for n, (one, _) in enumerate(plans) if getattr(error, "session", None) is one.session]
            for n in guilty:
                self.leave(plans[n][0], "error", error)
            rest = [plan for n, plan in enumerate(plans) if n not in guilty]
            for some in [rest] if guilty and rest else [[plan] for plan in rest]:
                self._pass(some)
            return
        for (one, work), computed in zip(plans, rows, strict=True):
            try:
                self._read(one, work, computed) if one.reading else self._verify(one, work, computed)
            except Exception as error:
                self.leave(one, "error", error)

    # ------------------------------------------------------------ what came of it

    def _read(self, one: Conversation, work: Work, rows: Rows) -> None:
        one.session.commit(reading=work.reading)
        one.draft.read(work.tokens, rows.seen_at(self._columns))
        if work.reading:
            return
        one._chunks, twins = None, [t for t in one._twins if not t.finish]
        one._twins = []
        for twin in twins:
            try:
                twin.session, twin._waits = one.session.fork(), False
                twin.draft = _told(one.draft.fork(), twin.session, twin.inputs)
                self.active.append(twin)
            except Exception as error:
                self.leave(twin, "error", error)
        for each in (one, *twins):
            if each.finish:
                continue
            try:
                self._choose(each, rows.logits[-1], each.session.length)
            except Exception as error:  # that of one is not that of the others
                self.leave(each, "error", error)

    def _verify(self, one: Conversation, work: Work, rows: Rows) -> None:
        """Walk down the tree along the tokens that the model itself chooses.

        Rows that stand behind an eviction saw what it removes. So the walk ends where one is due.
        """
        parents = work.parents if work.parents is not None else range(-1, len(work.tokens) - 1)
        children: dict[tuple[int, int], int] = {}
        for row, parent in enumerate(parents):
            children.setdefault((parent, work.tokens[row]), row)
        path, start = [0], one.session.length
        while True:
            ended = self._choose(one, rows.logits[path[-1]], start + len(path), commit=False)
            follower = children.get((path[-1], one.tokens[-1]))
            if ended or follower is None or one.session.due(len(path)):
                break
            path.append(follower)
        one.session.commit(path)
        if not ended:
            one.draft.read([work.tokens[row] for row in path], rows.take(path).seen_at(self._columns))
        else:
            self.leave(one, ended)

    def _choose(self, one: Conversation, logits: Tensor, position: int, *, commit: bool = True) -> str:
        """Sample the token for a position -> why the answer ends with it, or ""."""
        token = one.sampler.next(logits, position)
        one.last = time.perf_counter()
        one.first = one.first or one.last
        stopped = one.watch is not None and one.watch(logits, token)
        if token in self.ends or stopped:
            ended = "stop"
        elif len(one.tokens) >= one.options.max_tokens or position >= self.positions:
            ended = "length"
        else:
            return ""
        if commit:
            self.leave(one, ended)
        return ended


def _told(draft: Draft, session: Session, inputs: Inputs) -> Draft:
    """A draft that knows its conversation, if it wants to."""
    if isinstance(draft, JoiningDraft):
        draft.join(session, inputs)
    return draft


def raise_errors(conversations: Sequence[Any]) -> None:
    """Raise the error of the first conversation that ended with one; what is no `AndesError` is told as it is."""
    for one in conversations:
        if one.error is not None:
            raise one.error
