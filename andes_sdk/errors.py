"""Every error of the SDK. A message says what happened, who caused it, why, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast


class AndesError(Exception):
    """Base of every error that andes_sdk raises on purpose.

    Args:
        what: one sentence, what went wrong.
        who: the plugin, file or option concerned.
        why: the underlying reason, often another exception's text.
        fix: what the reader can do about it.
    """

    def __init__(self, what: str, *, who: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.who, self.why, self.fix = what, who, why, fix
        super().__init__(what)

    def __str__(self) -> str:
        head = f"{self.who}: {self.what}" if self.who else self.what
        parts = [head]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.fix:
            parts.append(f"do this: {self.fix}")
        return "\n  ".join(parts)

    def within(self, place: str) -> AndesError:
        """The same error, of something in this place."""
        return type(self)(self.what, who=f"{place}: {self.who}" if self.who else place, why=self.why, fix=self.fix)

    def to_dict(self) -> dict[str, str]:
        """The same facts as plain data, for `--json` and logs."""
        return {"error": type(self).__name__, "what": self.what, "who": self.who, "why": self.why, "fix": self.fix}

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.who, self.why, self.fix)


def _rebuild(cls: type[AndesError], what: str, who: str, why: str, fix: str) -> AndesError:
    return cls(what, who=who, why=why, fix=fix)


class PluginNotFound(AndesError):
    """A name that no installed distribution registers."""


class MethodNotFound(PluginNotFound, AttributeError):
    """A method that no installed distribution adds to pipelines; for Python a missing attribute as any other."""


class PluginBroken(AndesError):
    """A named plugin that cannot be imported, or is not a plugin."""


class ContractMismatch(AndesError):
    """A plugin written for a contract that this core does not speak."""


class ConfigError(AndesError):
    """An option that does not exist, or whose value does not fit."""


class SlotError(AndesError):
    """A slot with no owner, or with more than one."""


class DuplicateName(AndesError):
    """Two objects of one collection, or two plugins, that carry the same name."""


class PlanError(AndesError):
    """A plugin's `andes_check` refused the assembled plan, or a plan cannot be rebuilt."""


class BackendUnavailable(AndesError):
    """A device, backend or kernel set that this machine does not have."""


class InputError(AndesError):
    """A message, picture or request that cannot be used."""


class CheckpointError(AndesError):
    """A checkpoint that is incomplete, damaged or of another shape."""


class TrainingError(AndesError):
    """A recipe, data set or training state that cannot be used."""


class SessionError(AndesError):
    """A session used against its contract (rows not committed, context overrun …).

    Attributes:
        session: the one concerned, where a step had several.
    """

    session: object = None


class NotFinite(SessionError):
    """A model whose output is NaN or infinite."""


class AssemblyError(ExceptionGroup[AndesError]):
    """All that is wrong with a list of plugins, at once, before any weight is read."""

    def __new__(cls, message: str, exceptions: Sequence[AndesError]) -> AssemblyError:
        """A group needs at least one member."""
        return super().__new__(cls, message, exceptions)

    @property
    def problems(self) -> tuple[AndesError, ...]:
        """Every problem, in order."""
        return cast("tuple[AndesError, ...]", self.exceptions)

    def derive(self, excs: Sequence[AndesError]) -> AssemblyError:  # type: ignore[override]
        """The same group with other members (`split`, `subgroup`)."""
        return AssemblyError(self.message, excs)

    def __str__(self) -> str:
        body = "\n".join(f"- {error}" for error in self.exceptions)
        return f"{self.message} ({len(self.exceptions)} problem{'s' if len(self.exceptions) != 1 else ''})\n{body}"
