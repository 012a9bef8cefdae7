"""Ways to run a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from .model import Model
    from .sessions import Adapter, CachePolicy, Rows, Session, Work
    from .storage import Packed


class Compiled(Protocol):
    """A model made ready to run by a backend.

    Attributes:
        taps: layers whose entering rows `Rows.features` holds, in this order.
    """

    taps: Sequence[int]

    def session(self, policy: CachePolicy) -> Session:
        """An empty session under a cache policy."""

    def step(self, work: Sequence[Work]) -> list[Rows]:
        """Compute new uncommitted rows of any number of sessions in shared passes, each as it would be alone.

        Raises:
            SessionError: a work that its session refuses (`error.session` says which), or one session twice. Every
                session is then as it was before.
        """

    def restore(self, state: Mapping[str, Tensor], policy: CachePolicy) -> Session:
        """A session that goes on where `Session.state` was taken.

        Raises:
            SessionError: a state of another model, backend or precision of the KV store.
        """

    def facts(self) -> Mapping[str, str]:
        """Rows for `explain()`: device, dtype, kernels chosen and why."""


@runtime_checkable
class AdaptableCompiled(Protocol):
    """A compiled model that takes adapters. Optional, beside `Compiled`; `session.adapter` then takes their names.

    Sessions of one `step` may have different adapters; each row gets what it would get alone.
    """

    def add_adapter(self, adapter: Adapter) -> None:
        """Make an adapter known to all sessions, open ones too.

        Raises:
            DuplicateName: there is one of that name. Nothing has changed then.
            ConfigError: a layer that this backend cannot adapt, matrices that do not fit it, or a base of other
                numbers than the model's. Nothing has changed then.
        """

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter and free its matrices; the name may be used again.

        Raises:
            ConfigError: there is none of that name. Nothing has changed then.
            SessionError: open sessions use it. Nothing has changed then.
        """


@runtime_checkable
class Backend(Protocol):
    """A way to run a model. Asking for what the machine lacks raises `BackendUnavailable`."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    @property
    def rows(self) -> int | None:
        """Rows per head of a static KV store, which cache policies are told; None: it grows."""

    def compile(self, model: Model, *, device: str, dtype: str, taps: Sequence[int] = ()) -> Compiled:
        """Make a model ready on a device ('cpu', 'cuda' …) in a precision ('float32', 'bfloat16', 'float16').

        Args:
            device: torch's name, or one of the backend's own; it says itself which it takes.
            taps: layers whose entering rows `Rows.features` holds, in this order (`spec.layers`: those that enter the
                last norm).
        """


@runtime_checkable
class DeviceBackend(Protocol):
    """A backend with device names of its own. Optional, beside `Backend`.

    For these, modules and weights are made on the CPU, and `compile` gets the name as the user wrote it.
    """

    @property
    def devices(self) -> Sequence[str]:
        """Names that this backend takes beside torch's; whether such a device is there, `compile` says."""


@runtime_checkable
class PackedBackend(Protocol):
    """A backend that runs weights as an artefact stores them. Optional, beside `Backend`.

    Without it an artefact is dequantised into float weights, and `compile` gets those.
    """

    def open(self, artefact: Packed, model: Model, *, device: str, dtype: str, taps: Sequence[int] = ()) -> Compiled:
        """Make an artefact ready without unpacking what this backend computes itself.

        Args:
            artefact: mapped; `artefact.packed(name)` are the bytes of a matrix, to be used where they lie.
            model: the modules of the artefact's plan. They hold no weights: each one is read from the artefact when
                it is used, and forgotten. Right for whatever the backend leaves to torch.

        Raises:
            BackendUnavailable: formats or a model that this backend cannot run; the reasons say which.
        """
