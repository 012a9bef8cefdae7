"""`pipe.explain()`: who owns what, with which options, how large it is, and what is inactive and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from andes_sdk.assembling.building import build_meta
from andes_sdk.hookspecs import SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from torch import nn

    from andes_sdk.assembling.assembly import Assembly
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Tokenizer

DEFAULT_NAMES = {"cache_policy": "keep-all", "decoder": "autoregressive"}


@frozen
class Part:
    """One line of an explanation.

    Attributes:
        part: slot, collection, or what the line is about.
        owner: the plugin, or 'core'.
        value: what it holds.
        state: 'active', 'available' (there when asked for by name) or 'inactive' with the reason in `value`.
    """

    part: str
    owner: str
    value: str
    state: str = "active"


@frozen
class Explanation:
    """Rows that say what a pipeline is made of. `str()` prints a table, `to_dict()` gives plain data."""

    rows: Sequence[Part]
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        rows = [{"part": r.part, "owner": r.owner, "value": r.value, "state": r.state} for r in self.rows]
        return {"parameters": self.parameters, "rows": rows}

    def __str__(self) -> str:
        heads = ("part", "owner", "state", "value")
        cells = [(r.part, r.owner, r.state, r.value) for r in self.rows]
        widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(3)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in [heads, *cells]
        )

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=f"{self.parameters:,} parameters")
        for head in ("part", "owner", "state", "value"):
            table.add_column(head, overflow="fold")
        for row in self.rows:
            table.add_row(row.part, row.owner, row.state, row.value)
        return table


def explain(assembly: Assembly, tokenizer: Tokenizer, weights: str) -> Explanation:
    """Build the modules on the meta device (no memory for weights) and say what everything is.

    Args:
        weights: where they come from, for people.
    """
    plan = assembly.plan
    model = build_meta(assembly, tokenizer)
    rows: list[Part] = []
    modules = {s: getattr(model, s) for s in ("vision_encoder", "projector", "language_model")}
    for slot, hook in SLOTS.items():
        owner = plan.owner(hook)
        if slot in modules:
            rows.append(Part(slot, owner, _sized(modules[slot])))
        elif slot == "tokenizer":
            rows.append(Part(slot, owner, f"{type(model.tokenizer).__name__}, {model.tokenizer.vocab_size:,} ids"))
        else:
            value = f"built by {owner} with the model" if owner else DEFAULT_NAMES[slot]
            rows.append(Part(slot, owner or "core", value))
    rows += _collections(assembly)
    rows += _facts(assembly)
    image = ", ".join(f"{k}={v}" for k, v in plan.image.items()) or "published evaluation variant"
    seen = f"image: patch {model.vision.patch_size}, blocks of {model.vision.merge}², {image}"
    rows += [Part("modalities", "core", seen), *_senses(assembly, model)]
    rows.append(Part("weights", "core", weights))
    return Explanation(rows, model.parameter_count())


def _senses(assembly: Assembly, model: VisionLanguageModel) -> list[Part]:
    owners = assembly.owners["modalities"]
    return [Part("modalities", owners[n], f"{n}: {_sized(module)}") for n, module in model.modalities.items()]


def _sized(module: nn.Module) -> str:
    return f"{type(module).__name__}, {sum(p.numel() for p in module.parameters()):,} parameters"


def _collections(assembly: Assembly) -> list[Part]:
    plan, owners = assembly.plan, assembly.owners["backends"]
    chosen = f"{plan.backend} on {plan.device}, {plan.dtype}"
    rows = [Part("backend", owners.get(plan.backend, "core"), chosen)]
    rows += [Part("backend", owners[n], f"{n}: not chosen", "inactive") for n in owners if n != plan.backend]
    for collection, brought in assembly.owners.items():
        if collection not in ("backends", "modalities"):
            rows += [Part(collection, owner, name, "available") for name, owner in brought.items()]
    return rows


def _facts(assembly: Assembly) -> list[Part]:
    rows = []
    for plugin in assembly.plan.plugins:
        options = ", ".join(f"{k}={v!r}" for k, v in plugin.options.items())
        origin = f"{plugin.distribution} {plugin.version}" if plugin.distribution else "object passed by the caller"
        rows.append(Part("plugin", plugin.name, f"{origin}{'; ' + options if options else ''}"))
        if "andes_explain" in plugin.hooks:
            said = assembly.manager.get_plugin(plugin.name).andes_explain(plan=assembly.plan)  # type: ignore[union-attr]
            rows += [Part(fact, plugin.name, str(value)) for fact, value in (said or {}).items()]
    return rows
