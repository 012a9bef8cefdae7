"""A cache policy: which KV rows stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy


@frozen(eq=False, kw_only=True)
class Example:
    """Keep the start and the latest rows. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"
    testing = {"sinks": 2, "recent": 6, "slack": 2}  # noqa: RUF012 - not annotated: attrs must not take it for an option

    sinks: int = field(default=4, validator=ge(0), metadata={"help": "rows kept from the start"})
    recent: int = field(default=1020, validator=ge(1), metadata={"help": "latest rows kept"})
    slack: int = field(default=64, validator=ge(0), metadata={"help": "rows that pile up before some go"})

    @hookimpl
    def andes_cache_policy(self, model: VisionLanguageModel) -> CachePolicy:
        """A policy for any model: it looks at places only."""
        from .policy import Window

        heads = model.text.layers * model.text.kv_heads
        return Window(self.sinks, self.recent, self.slack, heads)
