"""Decoders: whatever they propose, the text is the default decoder's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from andes_sdk.runtime.engine import Engine, raise_errors
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.testing.reference import ReferencePolicy
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import NotApplicable, require
from andes_sdk.types import Decoder, Inputs, Proposal, Rows, Work

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.testing.subject import Subject

KIND = "decoder"
TOKENS = 16

Job = tuple[Inputs, GenerationOptions]


@define(eq=False)
class Overseen:
    """A draft that notes what it is told."""

    inner: Any
    tokens: list[int] = field(factory=list)
    rows: int = 0

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Pass it on."""
        self.tokens += tokens
        self.rows += len(rows.hidden)
        self.inner.read(tokens, rows)

    def fork(self) -> Overseen:
        """With a fork of the other."""
        return Overseen(self.inner.fork(), list(self.tokens), self.rows)


@define(eq=False)
class Overseer:
    """A decoder that looks over another's shoulder: drafts it opened, and every proposal with what it was made for."""

    inner: Any
    opened: list[Overseen] = field(factory=list)
    asked: list[tuple[list[int], Any]] = field(factory=list)
    miscounts: list[str] = field(factory=list)

    @property
    def name(self) -> str:
        """The other's."""
        return str(self.inner.name)

    @property
    def taps(self) -> Sequence[int]:
        """The other's."""
        return self.inner.taps  # type: ignore[no-any-return]

    def open(self) -> Overseen:
        """Around a draft of the other's."""
        self.opened.append(Overseen(self.inner.open()))
        return self.opened[-1]

    def propose(self, drafts: Sequence[Any], last: Sequence[int]) -> Sequence[Proposal]:
        """The other's, noted."""
        made = list(self.inner.propose([d.inner for d in drafts], last))
        if len(made) != len(last):
            self.miscounts.append(f"{len(made)} proposals for {len(last)} conversations")
        for draft, token, proposal in zip(drafts, last, made, strict=False):
            self.asked.append(([*draft.tokens, token], proposal))
        return made


def _decoder(subject: Subject) -> Any:
    return subject.assembly.slot("decoder", model=subject.pipe.model)


def _texts(engine: Engine, jobs: Sequence[Job], *, together: bool = False, check: bool = True) -> list[list[int]]:
    """Tokens of each answer; together, each joins while those before it go on."""
    made = []
    for inputs, options in jobs:
        made.append(engine.join(inputs, options))
        if together:
            engine.step()
            engine.step()
        else:
            engine.run()
    engine.run()
    if check:
        raise_errors(made)
    for one in made:
        one.session.close()
    return [list(one.tokens) for one in made]


def _jobs(pipe: Pipeline, options: Sequence[GenerationOptions]) -> list[Job]:
    return [(pipe.prepare(conversation(number)), option) for number, option in enumerate(options)]


def _same_text(subject: Subject, options: Sequence[GenerationOptions], *, together: bool = False) -> None:
    jobs = _jobs(subject.pipe, options)
    wanted = _texts(subject.baseline().engine(), jobs)
    got = _texts(subject.pipe.engine(), jobs, together=together)
    how = "beside others, " if together else ""
    for (_, option), mine, plain in zip(jobs, got, wanted, strict=True):
        what = f"{how}temperature {option.temperature}, seed {option.seed}"
        require(mine == plain, f"{what}: decodes {mine}, the default decoder {plain}")


@check(KIND, "has a name, and taps of layers that exist")
def _named(subject: Subject) -> None:
    decoder = _decoder(subject)
    require(isinstance(decoder, Decoder), f"{type(decoder).__name__} is no Decoder: name, taps, open, propose")
    require(isinstance(decoder.name, str) and decoder.name, f"its name is {decoder.name!r}")
    known = range(subject.pipe.model.text.layers + 1)
    require(all(tap in known for tap in decoder.taps), f"it taps layers {list(decoder.taps)} of 0 to {known[-1]}")


@check(KIND, "greedy text is the default decoder's")
def _greedy(subject: Subject) -> None:
    penalised = GenerationOptions(max_tokens=TOKENS, repetition_penalty=1.3, presence_penalty=0.2)
    _same_text(subject, [GenerationOptions(max_tokens=TOKENS), penalised])
    jobs = _jobs(subject.pipe, [GenerationOptions(max_tokens=TOKENS)])
    for room in (0, 1, 2, 5):
        # as if the model had few positions left
        positions = len(jobs[0][0].ids) + room
        got, wanted = (
            _texts(evolve(p.engine(), positions=positions), jobs) for p in (subject.pipe, subject.baseline())
        )
        require(got == wanted, f"{room} positions before the limit: decodes {got[0]}, the default decoder {wanted[0]}")


@check(KIND, "sampled text is the default decoder's, alone and beside others")
def _sampled(subject: Subject) -> None:
    # two candidates per token: guesses come true often, and a wrong verification takes the other one half the time
    heats = ((0.3, 0, 1), (1.5, 0, 2), (1.0, 2, 3), (2.0, 2, 4), (1.0, 3, 5))
    many = 3 * TOKENS
    options = [GenerationOptions(max_tokens=many, temperature=t, top_k=k, seed=s) for t, k, s in heats]
    _same_text(subject, options)
    _same_text(subject, options, together=True)


def _overseen(subject: Subject, options: Sequence[GenerationOptions]) -> tuple[Overseer, list[Job], list[list[int]]]:
    """A few answers side by side, watched."""
    overseer = Overseer(_decoder(subject))
    jobs = _jobs(subject.pipe, options)
    engine = evolve(subject.pipe.engine(), decoder=overseer)
    return overseer, jobs, _texts(engine, jobs, together=True, check=False)


LIVELY = [GenerationOptions(max_tokens=TOKENS, temperature=t, top_k=2, seed=3) for t in (0.0, 1.0, 2.0)]


@check(KIND, "proposals are trees of tokens, one for each conversation")
def _valid(subject: Subject) -> None:
    overseer, _, _ = _overseen(subject, LIVELY)
    size = subject.pipe.model.text.vocab_size
    require(not overseer.miscounts, f"gives {overseer.miscounts[:1]}")
    for _, proposal in overseer.asked:
        require(isinstance(proposal, Proposal), f"proposes {proposal!r}, which is no Proposal")
        tokens, parents = proposal.tokens, proposal.parents
        require(all(type(t) is int and 0 <= t < size for t in tokens), f"proposes {tokens!r}, not ids below {size}")
        require(not parents or len(parents) == len(tokens), f"proposes {len(tokens)} tokens, {len(parents)} parents")
        early = all(type(p) is int and -1 <= p < i for i, p in enumerate(parents))
        require(early, f"proposes parents {parents!r}: each must stand before its child, or be -1")


# ---------------------------------------------------------------- drafts


@define(eq=False)
class Talk:
    """A text that repeats itself, two ways to go on, and what the model computes for each.

    Attributes:
        last: the token after which a decoder that looks back would guess.
    """

    prompt: tuple[list[int], Rows]
    ways: Sequence[tuple[list[int], Rows]]
    last: int

    @classmethod
    def of(cls, pipe: Pipeline) -> Talk:
        """Every way ends as the prompt does, but something else followed there the last time."""
        base = plain_inputs(pipe, 24).ids.tolist()
        words, last = base[:12], base[8]
        session = pipe.compiled.session(KeepAll())
        parts = []
        for tokens in ([*words, *words[:8]], [last, *base[12:17], *words[:8]], [last, *base[17:23], *words[:8]]):
            (rows,) = pipe.compiled.step([Work(session=session, tokens=tokens)])
            parts.append((tokens, rows))
            if len(parts) == 1:
                session.commit()
            else:
                session.rollback()
        session.close()
        return cls(parts[0], parts[1:], last)


def _guess(decoder: Any, talk: Talk, draft: Any) -> Any:
    (proposal,) = decoder.propose([draft], [talk.last])
    return proposal


def _reader(decoder: Any, *parts: tuple[list[int], Rows]) -> Any:
    draft = decoder.open()
    for tokens, rows in parts:
        draft.read(tokens, rows)
    return draft


@check(KIND, "a draft and its fork have nothing to do with one another, nor have two drafts")
def _forked(subject: Subject) -> None:
    decoder, talk = _decoder(subject), Talk.of(subject.pipe)
    wanted = _guess(decoder, talk, _reader(decoder, talk.prompt))
    went = [_guess(decoder, talk, _reader(decoder, talk.prompt, way)) for way in talk.ways]
    original = _reader(decoder, talk.prompt)
    _reader(decoder, talk.prompt, talk.ways[0])
    got = _guess(decoder, talk, original)
    require(got == wanted, f"a draft proposes {got} after another one was opened and read, {wanted} alone")
    fork = original.fork()
    original.read(*talk.ways[0])
    got = _guess(decoder, talk, fork)
    require(got == wanted, f"a fork proposes {got} after its original went on, {wanted} before")
    fork.read(*talk.ways[1])
    for draft, proposal, what in ((original, went[0], "original"), (fork, went[1], "fork")):
        got = _guess(decoder, talk, draft)
        require(got == proposal, f"the {what} proposes {got} after the other went on, a draft of its own {proposal}")


@check(KIND, "a draft remembers what was committed, the prompt first, in parts or at once")
def _remembers(subject: Subject) -> None:
    overseer, jobs, texts = _overseen(subject, LIVELY)
    for draft, (inputs, _), text in zip(overseer.opened, jobs, texts, strict=True):
        committed = [*inputs.ids.tolist(), *text]
        require(draft.tokens == committed[: len(draft.tokens)], "a draft read other tokens than were committed")
        require(draft.rows == len(draft.tokens), f"a draft read {draft.rows} rows of {len(draft.tokens)} tokens")
    decoder, talk = _decoder(subject), Talk.of(subject.pipe)
    for parts in ([talk.prompt], [talk.prompt, talk.ways[0]]):
        wanted = _guess(decoder, talk, _reader(decoder, *parts))
        pieces = []
        for tokens, rows in parts:
            cuts = [0, 1, len(tokens) // 2, len(tokens)]
            pieces += [(tokens[a:b], rows.take(range(a, b))) for a, b in pairwise(cuts)]
        got = _guess(decoder, talk, _reader(decoder, *pieces))
        require(got == wanted, f"proposes {got} after reading in parts, {wanted} after reading at once")


@check(KIND, "under a policy that evicts it gives the default decoder's text too")
def _evicting(subject: Subject) -> None:
    if "andes_cache_policy" in subject.hooks:
        raise NotApplicable("the plugin brings its own cache policy")
    policy: Any = ReferencePolicy(rows=16).andes_cache_policy(model=subject.pipe.model)
    jobs = [(plain_inputs(subject.pipe, 60), GenerationOptions(max_tokens=TOKENS))]
    for slack in (0, 5):
        wanted, got = (
            _texts(evolve(p.engine(), policy=evolve(policy, slack=slack), ends=()), jobs)
            for p in (subject.baseline(), subject.pipe)
        )
        require(got == wanted, f"it is {got}, with the default decoder {wanted}")
