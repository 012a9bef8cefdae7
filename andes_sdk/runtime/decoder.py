"""The default decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.types import Sampler, Session


@frozen
class Autoregressive:
    """One token at a time."""

    name: str = "autoregressive"

    def decode(self, session: Session, logits: Tensor, sampler: Sampler, history: list[int]) -> Iterator[list[int]]:
        """Yield tokens one by one; the model runs again only when the next one is asked for."""
        while True:
            token = sampler.pick(logits, session.length, history)
            history.append(token)
            yield [token]
            logits = session.extend([token])[0][-1]
            session.commit()
