"""What every compiled model does alike: one step for prompt chunks, chains and trees of any number of sessions."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from andes_sdk.errors import SessionError
from andes_sdk.runtime.base import CHUNK_ROWS, BaseSession
from andes_sdk.runtime.snapshot import load_state
from andes_sdk.runtime.tree import Step
from andes_sdk.types import CachePolicy, Rows, Session, Work

Pass = tuple[Any, Work, Step]
"""A session, its new rows, and their positions and mutual visibility."""


class BaseCompiled(ABC):
    """A model that opens sessions; see `andes_sdk.types.Compiled`.

    Attributes:
        taps: layers whose entering rows `Rows.features` holds. chunk_rows: rows of a prompt read at a time.
    """

    taps: Sequence[int] = ()
    chunk_rows: int = CHUNK_ROWS

    # ------------------------------------------------------------ a subclass says

    @abstractmethod
    def empty(self, policy: CachePolicy, keeper: Mapping[str, Tensor] | None) -> BaseSession:
        """An empty session; `keeper` is the state of the policy's memory, or None for a new one."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D)."""

    @abstractmethod
    def run(self, passes: Sequence[Pass], embeds: Sequence[Tensor]) -> list[Rows]:
        """Compute and store rows; `embeds` are the inputs (T, D) of each pass. Each work says which logits it needs."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where ids go."""

    # ------------------------------------------------------------ the contract

    def session(self, policy: CachePolicy) -> Any:
        """An empty session under a cache policy."""
        return self._noted(self.empty(policy, None))

    @property
    def sessions(self) -> list[BaseSession]:
        """Sessions that somebody still holds, closed ones too."""
        return [one for ref in list(self.__dict__.get("_sessions", ())) if (one := ref()) is not None]

    def _noted(self, session: BaseSession) -> BaseSession:
        """The session, which `sessions` knows from now on for as long as somebody holds it."""
        known: set[weakref.ref[BaseSession]] = self.__dict__.setdefault("_sessions", set())
        known.add(weakref.ref(session, known.discard))
        return session

    @torch.inference_mode()
    def step(self, work: Sequence[Work]) -> list[Rows]:
        """Compute new uncommitted rows of any number of sessions in shared passes; see `andes_sdk.types.Compiled`."""
        moments = self._admit(work)
        start = time.perf_counter()
        passes: list[Pass] = []
        try:
            for one in work:
                session: Any = one.session
                try:
                    passes.append((session, one, session.begin(one)))
                except SessionError as error:
                    error.session = session
                    raise
            rows = self.compute(passes)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            each = (time.perf_counter() - start) / sum(len(one.tokens) for one in work)
            for (session, one, _), computed in zip(passes, rows, strict=True):
                session.done(computed, one, each * len(one.tokens))
        except BaseException:
            for session, moment in moments:
                session.undo(moment)
            raise
        return rows

    def compute(self, passes: Sequence[Pass]) -> list[Rows]:
        """Rows of works that their sessions have registered."""
        own = [work.tokens for _, work, _ in passes if work.embeds is None]
        tokens = torch.tensor([t for some in own for t in some], device=self.device)
        split = iter(torch.split(self.embed(tokens), [len(some) for some in own]) if own else ())
        return self.run(passes, [next(split) if w.embeds is None else w.embeds for _, w, _ in passes])

    def _admit(self, work: Sequence[Work]) -> list[tuple[Any, Any]]:
        """Check every work and make room, before anything is registered -> what brings each session back."""
        if not work:
            raise SessionError("there is no work in this step", fix="give at least one")
        moments, seen = [], set()
        for one in work:
            session: Any = one.session
            try:
                if getattr(session, "compiled", None) is not self:
                    raise SessionError("the session is of another compiled model", fix="open it with this one")
                if id(session) in seen:
                    raise SessionError("a session stands twice in one step", fix="give each session one work")
                seen.add(id(session))
                session.check(one.tokens)
                if one.embeds is not None and len(one.embeds) != len(one.tokens):
                    raise SessionError(f"{len(one.embeds)} rows of embeddings for {len(one.tokens)} tokens")
                session.reserve(len(one.tokens))
            except SessionError as error:
                error.session = session
                raise
            moments.append((session, session.moment()))
        return moments

    @torch.inference_mode()
    def restore(self, state: Mapping[str, Tensor], policy: CachePolicy) -> Session:
        """A session that goes on where `Session.state` was taken; see `andes_sdk.types.Compiled`."""
        restored: Session = load_state(state, lambda keeper: self._noted(self.empty(policy, keeper)), policy)
        return restored
