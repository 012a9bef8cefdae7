"""A plan: what a pipeline is made of, as plain data. It is saved in every artefact and rebuilt in worker processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from attrs import field, frozen

from andes_sdk.config import CONVERTER, reasons
from andes_sdk.errors import PlanError
from andes_sdk.reading import bounded
from andes_sdk.version import CONTRACT


@frozen(kw_only=True)
class PluginPlan:
    """One plugin of a plan.

    Attributes:
        name: the entry-point name, or for an object passed directly its class name in lower case.
        options: plain data, only what differs from the defaults.
        hooks: the hooks it implements.
        distribution, version: what provided it; empty for an object passed directly.
    """

    name: str
    options: Mapping[str, Any] = field(factory=dict)
    hooks: tuple[str, ...] = ()
    distribution: str = ""
    version: str = ""


@frozen(kw_only=True)
class Plan:
    """Names, options and versions of a pipeline's plugins, in the user's order.

    Attributes:
        device, dtype: where and in which precision the model runs (torch's names).
        backend: which backend runs it.
        seed: of the random weights, where none are loaded.
        image: options of the preprocessor that differ from its defaults (variant, min_size, max_size …).
        sdk: version of andes_sdk that made the plan.
    """

    plugins: tuple[PluginPlan, ...]
    backend: str = "torch"
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    image: Mapping[str, Any] = field(factory=dict)
    sdk: str = ""
    contract: str = ".".join(map(str, CONTRACT))

    def __attrs_post_init__(self) -> None:
        if len({*self.names}) < len(self.plugins):
            raise ValueError("a plugin is listed twice")

    @property
    def names(self) -> tuple[str, ...]:
        """Plugin names in order."""
        return tuple(p.name for p in self.plugins)

    def owner(self, hook: str) -> str:
        """The plugin that implements `hook`, or '' when the core's default is used."""
        return next((p.name for p in self.plugins if hook in p.hooks), "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return cast("dict[str, Any]", CONVERTER.unstructure(self))

    def to_json(self) -> str:
        """Stable JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Rebuild a plan. Raises PlanError with every problem if the data is not one."""
        try:
            bounded(data)
            return CONVERTER.structure(data, cls)
        except Exception as error:
            raise PlanError("not a plan", why="; ".join(reasons(error, "plan")), fix="save the model again") from None
