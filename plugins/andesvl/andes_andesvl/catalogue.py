"""The AndesVL family as lists of plugins.

Sizes and repositories are those of the AndesVL report (arXiv 2510.11496) and its model cards.
`Pipeline.from_plugins(plugins_of("andesvl-1b"))` assembles a member with random weights,
`Pipeline.from_pretrained(folder)` loads a published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from attrs import frozen

from andes_sdk import config
from andes_sdk.assembling import discovery
from andes_sdk.errors import AndesError, AssemblyError, ConfigError

if TYPE_CHECKING:
    from andes_sdk.assembling.assembly import PluginItem
    from andes_sdk.types import Tokenizer


@frozen(kw_only=True)
class Member:
    """One size of the family.

    Attributes:
        vision, language_model: as the model card names them.
        plugins: the list for `Pipeline.from_plugins`.
        published: parameters as published, in whole millions.
        size: how the published repositories write it.
    """

    name: str
    vision: str
    language_model: str
    plugins: tuple[str | dict[str, dict[str, Any]], ...]
    published: int
    size: str

    @property
    def checkpoints(self) -> tuple[str, str]:
        """Published repositories: Instruct, Thinking."""
        return f"OPPOer/AndesVL-{self.size}-Instruct", f"OPPOer/AndesVL-{self.size}-Thinking"


FAMILY: tuple[Member, ...] = (
    Member(
        name="andesvl-0.6b",
        vision="SigLIP2-Base, patch 16",
        language_model="Qwen3-0.6B",
        plugins=({"siglip2": {"preset": "base"}}, "mlp", {"qwen3": {"preset": "0.6b"}}),
        published=695_000_000,
        size="0_6B",
    ),
    Member(
        name="andesvl-1b",
        vision="AIMv2-Large, patch 14",
        language_model="Qwen3-0.6B",
        plugins=({"aimv2": {"preset": "large"}}, "mlp", {"qwen3": {"preset": "0.6b"}}),
        published=927_000_000,
        size="1B",
    ),
    Member(
        name="andesvl-2b",
        vision="AIMv2-Large, patch 14",
        language_model="Qwen3-1.7B",
        plugins=({"aimv2": {"preset": "large"}}, "mlp", {"qwen3": {"preset": "1.7b"}}),
        published=2_055_000_000,
        size="2B",
    ),
    Member(
        name="andesvl-4b",
        vision="AIMv2-Large, patch 14",
        language_model="Qwen3-4B",
        plugins=({"aimv2": {"preset": "large"}}, "mlp", {"qwen3": {"preset": "4b"}}),
        published=4_360_000_000,
        size="4B",
    ),
)


def member(name: str) -> Member:
    """One size of the family by name.

    Raises:
        ConfigError: there is no such member.
    """
    for candidate in FAMILY:
        if candidate.name == name.lower():
            return candidate
    raise ConfigError(f"no model {name!r}", who="catalogue", fix=config.suggestion(name, [m.name for m in FAMILY]))


def plugins_of(name: str) -> list[PluginItem]:
    """The plugins that make up a member, for `Pipeline.from_plugins`; a fresh list that may be extended.

    Raises:
        ConfigError: there is no such member.
    """
    return list(deepcopy(member(name).plugins))


@frozen(kw_only=True)
class Listed:
    """What the SDK, as installed here, makes of a member.

    Attributes:
        parameters: counted on modules built without memory for weights, or None where they cannot be built.
        supported: what can be done with it now.
        status: 'ok', or why it cannot be built.
    """

    member: Member
    parameters: int | None
    supported: tuple[str, ...]
    status: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        m = self.member
        return {
            "name": m.name,
            "parameters": self.parameters,
            "published_parameters": m.published,
            "vision": m.vision,
            "language_model": m.language_model,
            "supported": list(self.supported),
            "plugins": list(deepcopy(m.plugins)),
            "checkpoints": list(m.checkpoints),
            "status": self.status,
        }


def entries(members: Sequence[Member] = FAMILY) -> list[Listed]:
    """Build every member on torch's meta device and count; one that cannot be built says why."""
    trains = any("training_stages" in info.kind for info in discovery.installed())
    supported = ("load", "save", "generate", *(("train",) if trains else ()))
    found: list[Listed] = []
    tokenizer: Tokenizer | None = None
    for one in members:
        try:
            count, tokenizer = _count(one, tokenizer)
        except (AndesError, AssemblyError) as error:
            first = error.exceptions[0] if isinstance(error, AssemblyError) else error
            found.append(Listed(member=one, parameters=None, supported=(), status=str(first).splitlines()[0]))
        else:
            found.append(Listed(member=one, parameters=count, supported=supported, status="ok"))
    return found


def _count(one: Member, tokenizer: Tokenizer | None) -> tuple[int, Tokenizer]:
    from andes_sdk.pipeline import Pipeline

    pipeline = Pipeline.from_plugins(list(deepcopy(one.plugins)))
    if tokenizer is not None:
        # the whole family shares one vocabulary, and reading it is most of the time
        pipeline.tokenizer = tokenizer
    return pipeline.meta_model().parameter_count(), pipeline.tokenizer
