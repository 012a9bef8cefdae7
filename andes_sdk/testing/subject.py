"""The plugin under test, and how it is put into a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from andes_sdk import config
from andes_sdk.assembling import discovery
from andes_sdk.hookspecs import HOOKS, SLOTS
from andes_sdk.testing.reference import REFERENCES, ReferenceLanguageModel
from andes_sdk.testing.require import NotApplicable, require

if TYPE_CHECKING:
    from andes_sdk.assembling.assembly import Assembly, PluginItem
    from andes_sdk.pipeline import Pipeline


def hooks_of(cls: type) -> list[str]:
    """The hooks a class implements, in the order of the contract."""
    return [hook for hook in HOOKS if callable(getattr(cls, hook, None))]


def _class_of(item: PluginItem) -> type:
    if isinstance(item, Mapping):
        item = next(iter(item))
    if isinstance(item, str):
        return discovery.load(item)[0]
    return item if isinstance(item, type) else type(item)


class Subject:
    """A plugin under test.

    Attributes:
        cls: its class. name: entry-point name, or the class name in lower case.
        registered: whether a distribution registers it under `name`.
        options: what it is made with.
        distribution, version: what provides it.
    """

    def __init__(
        self,
        plugin: PluginItem,
        options: Mapping[str, Any] | None = None,
        companions: Sequence[PluginItem] | None = None,
    ) -> None:
        self.registered = isinstance(plugin, str)
        self.distribution = self.version = ""
        if isinstance(plugin, str):
            self.name = plugin
            self.cls, self.distribution, self.version = discovery.load(plugin)
        else:
            self.cls = _class_of(plugin)
            self.name = self.cls.__name__.lower()
        if options is None:
            given = not isinstance(plugin, str | type)
            options = config.plain(plugin) if given else getattr(self.cls, "testing", {})
        self.options = dict(options)
        self._companions = list(getattr(self.cls, "companions", ()) if companions is None else companions)

    @property
    def hooks(self) -> list[str]:
        """The hooks it implements."""
        return hooks_of(self.cls)

    @property
    def kinds(self) -> list[str]:
        """Kinds of checks that concern it."""
        return ["general", *(HOOKS[hook] for hook in self.hooks)]

    def plugin(self, **options: Any) -> Any:
        """A new object of the class."""
        return config.structure(self.cls, {**self.options, **options}, self.name)

    def item(self, **options: Any) -> PluginItem:
        """The plugin as an item of `Pipeline.from_plugins`, made anew."""
        return {self.name: {**self.options, **options}} if self.registered else self.plugin(**options)

    def companions(self) -> list[PluginItem]:
        """Plugins for the slots it leaves empty: the given ones, then the kit's reference plugins."""
        items = list(self._companions)
        owned = {hook for item in items for hook in hooks_of(_class_of(item))} | set(self.hooks)
        for slot, reference in REFERENCES.items():
            if SLOTS[slot] in owned:
                continue
            if slot == "language_model" and "andes_tokenizer" in owned:
                items.append(ReferenceLanguageModel(vocab_size=self._vocabulary(items)))
            elif slot == "tokenizer":
                items.append(reference(kinds=self._senses()))
            else:
                items.append(reference())
        return items

    def _senses(self) -> list[str]:
        """Names of the modalities that the plugin brings."""
        plugin = self.plugin() if "andes_modalities" in self.hooks else None
        return [] if plugin is None else [sense.name for sense in plugin.andes_modalities()]

    def _vocabulary(self, items: Sequence[PluginItem]) -> int:
        from andes_sdk.assembling.assembly import assemble
        from andes_sdk.assembling.extending import open_tokenizer

        return int(open_tokenizer(assemble([*items, self.item()], slots_required=False)).vocab_size)

    def pipeline(self, *, options: Mapping[str, Any] | None = None, **arguments: Any) -> Pipeline:
        """A new pipeline around the plugin; `arguments` as in `Pipeline.from_plugins`."""
        from andes_sdk.pipeline import Pipeline

        return Pipeline.from_plugins([*self.companions(), self.item(**(options or {}))], **arguments)

    def baseline(self, **arguments: Any) -> Pipeline:
        """The same pipeline without the plugin, for slots that have a default and for collections."""
        from andes_sdk.pipeline import Pipeline

        if any(SLOTS[slot] in self.hooks for slot in REFERENCES):
            raise NotApplicable("the plugin also owns a slot without a default, so it cannot be left out")
        return Pipeline.from_plugins(self.companions(), **arguments)

    @cached_property
    def pipe(self) -> Pipeline:
        """A pipeline that checks share; they must not change it."""
        return self.pipeline()

    @property
    def assembly(self) -> Assembly:
        """The shared pipeline's hooks."""
        return self.pipe._assembly

    def build(self, slot: str, *, seed: int = 0, options: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
        """A new module of a slot, random from `seed`."""
        import torch

        pipe = self.pipeline(options=options) if options else self.pipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            own: dict[str, Any] = {"packed": False} if slot == "language_model" else {}
            return pipe._assembly.slot(slot, **own, **arguments)

    def twin(self, option: str) -> Mapping[str, Any]:
        """`{option: True}`. Raises NotApplicable if the plugin has no such switch."""
        import attrs

        if option not in {f.name for f in attrs.fields(self.cls)}:
            raise NotApplicable(f"the plugin has no option {option!r}")
        return {option: True}

    def objects(self, hook: str, protocol: Any) -> list[Any]:
        """What its hook of a collection returns: one object or more of a protocol, each with a name of its own."""
        found = list(getattr(self.assembly.manager.get_plugin(self.name), hook)())
        require(found, f"{hook} returned nothing")
        for thing in found:
            require(isinstance(thing, protocol), f"{type(thing).__name__} is no {protocol.__name__}")
            require(isinstance(thing.name, str) and thing.name, f"its name is {thing.name!r}")
        names = [t.name for t in found]
        require(len(set(names)) == len(names), f"two objects share a name: {names}")
        return found


@contextmanager
def quiet() -> Iterator[None]:
    """One thread and a fixed seed while a check runs; both are put back afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
