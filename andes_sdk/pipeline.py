"""`Pipeline`: a model assembled from plugins, and everything one does with it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import attrs

from andes_sdk import config
from andes_sdk.assembling import assembly as _assembly
from andes_sdk.assembling import discovery
from andes_sdk.assembling.building import build, build_meta, build_processor, run_errors
from andes_sdk.assembling.extending import extended, open_tokenizer
from andes_sdk.errors import AndesError, AssemblyError, ConfigError, MethodNotFound, PlanError
from andes_sdk.hookspecs import METHODS
from andes_sdk.plan import Plan
from andes_sdk.storage.stored import Folder, PackedStored, Random
from andes_sdk.types import DeviceBackend, PackedBackend, Tokenizer

if TYPE_CHECKING:
    from andes_sdk.assembling.assembly import Assembly, PluginItem
    from andes_sdk.assembling.explaining import Explanation
    from andes_sdk.assembling.extending import BackendItem
    from andes_sdk.inputs.processor import Processor
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.runtime.engine import Engine
    from andes_sdk.runtime.generation import Answer, GenerationOptions
    from andes_sdk.storage.stored import Stored
    from andes_sdk.types import Backend, CachePolicy, Compiled, Decoder, Event, Format, Inputs, Packed, Session

_BROUGHT = {
    "train": "andes-training", "evaluate": "andes-evaluation", "save_session": "andes-okv", "load_session": "andes-okv",
    "compress": "andes-compression", "add_adapter": "andes-adapters", "remove_adapter": "andes-adapters",
}  # fmt: skip
"""Methods that distributions of ours add -> the distribution, which is named where it is not installed."""


def _placed(problems: Sequence[AndesError], stored: Stored) -> list[AndesError]:
    """Problems with what was read, with the file that says so."""
    names, place = stored.plan.names, stored.plan_file if isinstance(stored, Folder) else stored.source
    return [p.within(str(place)) if p.who.partition(".")[0] in names else p for p in problems]


class Pipeline:
    """A pipeline owns its plugin manager, its plan and its model; two pipelines share nothing.

    Build one with `from_plugins`, `from_config`, `from_plan` or `from_pretrained`. The model is built
    on first use, so assembling and `explain()` cost no memory for weights.
    """

    def __init__(self, assembly: Assembly, stored: Stored | None = None) -> None:
        self._assembly = assembly
        self._stored: Stored = Random(assembly.plan) if stored is None else stored

    # ------------------------------------------------------------ building

    @classmethod
    def from_plugins(
        cls,
        plugins: Sequence[PluginItem],
        *,
        weights: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        backend: str = "torch",
        seed: int = 0,
        image: Mapping[str, Any] | None = None,
    ) -> Pipeline:
        """Assemble a pipeline from names, `{name: options}` and plugin objects, mixed.

        Args:
            plugins: the order matters only where plugins of one collection are applied one after another.
            weights: a checkpoint folder; without one the weights are random, made from `seed`.
            device, dtype: torch's names, or a device name of the backend's own; one that is absent is an error.
            backend: which backend runs the model.
            image: options of the preprocessor (variant, image_scale, max_side, min_size, max_size).

        Raises:
            AssemblyError: everything that is wrong with the list and the arguments, before any weight is read.
        """
        place = os.fspath(weights) if isinstance(weights, os.PathLike) else weights
        image = {} if image is None else image
        given = {"device": device, "dtype": dtype, "backend": backend, "seed": seed, "image": image}
        fitting, wrong = config.problems(config.PipelineConfig, {"plugins": [], "weights": place, **given}, "pipeline")
        errors, run = list[AndesError](wrong), config.PipelineConfig(**fitting)  # the rest is checked all the same
        device, dtype, backend, image = run.device, run.dtype, run.backend, dict(run.image)
        try:
            assembled: Assembly | None = _assembly.assemble(
                plugins, device=device, dtype=dtype, backend=backend, seed=run.seed, image=image
            )
        except AssemblyError as group:
            errors += group.problems
            assembled = None
        chosen = None if assembled is None else assembled.collections["backends"].get(backend)
        errors += run_errors(device, dtype, image, chosen.devices if isinstance(chosen, DeviceBackend) else ())
        if assembled is not None and backend != "torch" and backend not in assembled.collections["backends"]:
            known = {"torch", *assembled.collections["backends"], *discovery.bringing("backends")}
            fix = "add its plugin to the list" if backend in known else config.suggestion(backend, known)
            errors.append(ConfigError(f"no backend {backend!r}", who="backend", fix=fix))
        if errors or assembled is None:
            raise AssemblyError("cannot assemble the pipeline", errors)
        return cls(assembled, None if weights is None else Folder.open(Path(weights)))

    @classmethod
    def from_config(cls, source: str | Path | Mapping[str, Any]) -> Pipeline:
        """Assemble from a TOML file or a mapping with the arguments of `from_plugins`.

        Raises:
            ConfigError: the file cannot be read. AssemblyError: as `from_plugins`.
        """
        return cls.from_plugins(**config.read_config(source))

    @classmethod
    def from_plan(cls, plan: Plan, *, objects: Sequence[object] = (), weights: str | Path | None = None) -> Pipeline:
        """Rebuild a pipeline, in this process or another.

        Args:
            objects: plugin objects that the plan names but no distribution registers.

        Raises:
            PlanError: the plan needs an object that was not given.
        """
        given = {type(o).__name__.lower(): o for o in objects}
        missing = [p.name for p in plan.plugins if not p.distribution and p.name not in given]
        if missing:
            raise PlanError("was made with plugin objects", who=", ".join(missing), fix="pass them in `objects=[...]`")
        items = [given.get(p.name) or {p.name: p.options} for p in plan.plugins]
        run = {"device": plan.device, "dtype": plan.dtype, "backend": plan.backend, "seed": plan.seed}
        return cls.from_plugins(items, weights=weights, image=plan.image, **run)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        plugins: Sequence[PluginItem] = (),
        backend: BackendItem | None = None,
        formats: Iterable[Format] = (),
        device: str = "cpu",
        dtype: str | None = None,
        seed: int | None = None,
        image: Mapping[str, Any] | None = None,
        verify: bool = False,
    ) -> Pipeline:
        """Open a model, wherever it is stored.

        A `PackedBackend` runs the weights of a packed file where they lie in it: it is mapped, not read. Any other
        backend gets them dequantised.

        Args:
            source: where the model is. A checkpoint folder has `andes.json` or a published `config.json`. A file may be
                packed (`andes pack`), or one that a plugin opens, such as .gguf. `owner/name[@revision]` is a name on
                the Hugging Face Hub. A path that exists comes before a name.
            plugins: more plugins for this pipeline (decoder, cache policy …).
            backend: its name, or {name: options of the plugin of that name}; None keeps the one it was saved with.
            formats: for a packed file, more formats than its plugins bring.
            dtype: None keeps a checkpoint's; a packed file that is dequantised runs in float32.
            seed: of what is not stored; None keeps the one it was saved with.
            image: options of the preprocessor that replace those it was saved with, such as {"max_size": 448}.
            verify: for a packed file, read everything once and compare the checksums.

        Raises:
            CheckpointError: every tensor that is missing, extra, mis-shaped or truncated, by name. Or a file that is
                damaged or in formats that are not installed here. Or a model that cannot be fetched.
            AssemblyError: plugins or options that do not fit, with the file that names them.
        """
        from andes_sdk.storage.opening import open_stored

        stored = open_stored(source)
        plan, objects = extended(stored.plan, plugins, backend=backend)
        run: Any = {"device": device, "dtype": dtype or plan.dtype, "image": plan.image if image is None else image}
        if isinstance(image, Mapping):
            run["image"] = {**plan.image, **image}
        run["seed"] = plan.seed if seed is None else seed
        try:
            pipeline = cls.from_plan(attrs.evolve(plan, **run), objects=objects)
        except AssemblyError as group:
            raise AssemblyError(f"cannot open {source}", _placed(group.problems, stored)) from None
        if isinstance(stored, PackedStored):
            stored = stored.map([*pipeline.collection("formats").values(), *formats], verify=verify)
        return cls(pipeline._assembly, stored)

    def save_pretrained(self, folder: str | Path, *, layout: str = "andes", dtype: str | None = None) -> Path:
        """Write weights (safetensors), configuration, plan and checksums; the folder appears whole or not at all.

        Args:
            layout: "andes", or "published" for the published layout.
            dtype: convert the weights on the way out; None keeps them.
        """
        from andes_sdk.storage.checkpoint import save

        self.refuse_packed("saved as a checkpoint")
        return save(self.model, self.plan, folder, source=self.weights, layout=layout, dtype=dtype)

    # ------------------------------------------------------------ what it is made of

    @property
    def plan(self) -> Plan:
        """Names, options and versions, as plain data."""
        return self._assembly.plan

    @property
    def weights(self) -> Path | None:
        """The checkpoint folder, or None."""
        return self._stored.folder

    @property
    def artefact(self) -> Packed | None:
        """The packed file that this pipeline was opened from, or None."""
        return self._stored.artefact if isinstance(self._stored, PackedStored) else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Chat template and vocabulary."""
        return open_tokenizer(self._assembly, self._stored.files)

    @cached_property
    def model(self) -> VisionLanguageModel:
        """The modules, with weights loaded or made from the seed, on the plan's device; the CPU for a backend's own.

        Those of a packed file under a `PackedBackend` hold no weights: each is read from it when it is used.
        """
        backend, plan = self._backend, self.plan
        if isinstance(backend, DeviceBackend) and plan.device in backend.devices:
            plan = attrs.evolve(plan, device="cpu")  # torch does not know the backend's own devices
        if isinstance(self._stored, PackedStored) and self._runs_packed:
            return self._stored.attached(self._build, plan)
        return self._stored.weights(self._build, plan)

    def _build(self, *, hollow: bool = False, packed: bool = False) -> VisionLanguageModel:
        return build(self._assembly, self.tokenizer, hollow=hollow, packed=packed)

    def retype(self, dtype: str) -> None:
        """Hold the weights in another precision from now on, in place."""
        import torch

        self.model.to(getattr(torch, dtype))
        self._assembly = attrs.evolve(self._assembly, plan=attrs.evolve(self.plan, dtype=dtype))

    def meta_model(self) -> VisionLanguageModel:
        """The same modules without memory for weights, on torch's meta device."""
        return build_meta(self._assembly, self.tokenizer)

    @cached_property
    def processor(self) -> Processor:
        """Messages and pictures to tensors."""
        return build_processor(self.model, self.plan)

    @cached_property
    def compiled(self) -> Compiled:
        """The model made ready by the plan's backend."""
        taps = sorted({*self.policy.taps, *self.decoder.taps})
        backend = self._backend
        run: Any = {"device": self.plan.device, "dtype": self.plan.dtype, "taps": taps}
        if self.artefact is not None and isinstance(backend, PackedBackend):
            return backend.open(self.artefact, self.model, **run)
        return backend.compile(self.model, **run)

    @property
    def _backend(self) -> Backend:
        from andes_sdk.runtime.torch_backend import TorchBackend

        name = self.plan.backend
        return cast("Backend", TorchBackend() if name == "torch" else self.pick("backends", name))

    @property
    def _runs_packed(self) -> bool:
        return self.artefact is not None and isinstance(self._backend, PackedBackend)

    def refuse_packed(self, what: str) -> None:
        """Raise ConfigError if the weights of this pipeline stay in a packed file, and so cannot be `what`."""
        if self._runs_packed:
            why = f"its weights stay in {self.artefact.path.name}" if self.artefact else ""
            raise ConfigError(f"a packed model cannot be {what}", why=why, fix='open it with backend="torch"')

    @cached_property
    def policy(self) -> CachePolicy:
        """What decides which KV rows stay."""
        from andes_sdk.runtime.policy import KeepAll

        policy: CachePolicy = self._assembly.slot("cache_policy", KeepAll, model=self.model, rows=self._backend.rows)
        return policy

    @cached_property
    def decoder(self) -> Decoder:
        """What proposes and verifies tokens."""
        from andes_sdk.runtime.decoder import Autoregressive

        decoder: Decoder = self._assembly.slot("decoder", Autoregressive, model=self.model)
        return decoder

    def collection(self, name: str) -> Mapping[str, Any]:
        """The named objects that the plugins bring: training_stages, compressors, backends, rewards …"""
        return self._assembly.collections[name]

    def pick(self, collection: str, name: str) -> Any:
        """One object of a collection.

        Raises:
            ConfigError: no plugin of this pipeline brings it.
        """
        objects = self.collection(collection)
        if name not in objects:
            what = f"no plugin of this pipeline brings {name!r} to {collection}"
            more = ", ".join(discovery.bringing(collection)) or "none is installed"
            fix = f"{config.suggestion(name, objects)}; or add a plugin that brings it ({more})"
            raise ConfigError(what, fix=fix)
        return objects[name]

    def tell(self, event: Event) -> None:
        """Report an event to every plugin that observes."""
        self._assembly.manager.hook.andes_event(event=event)

    def explain(self) -> Explanation:
        """What each slot and collection holds, who owns it and why; reads no weights."""
        from andes_sdk.assembling.explaining import explain

        return explain(self._assembly, self.tokenizer, self._stored.source)

    # ------------------------------------------------------------ running

    def session(self) -> Session:
        """An empty session under this pipeline's cache policy."""
        return self.compiled.session(self.policy)

    def engine(self) -> Engine:
        """What runs conversations on this pipeline: they join and leave while others go on."""
        from andes_sdk.runtime.engine import Engine

        ends = frozenset((self.tokenizer.eos, self.tokenizer.pad))
        return Engine(self.compiled, self.policy, self.decoder, ends, self.model.text.max_positions)

    def prepare(
        self, messages: Any, *, think: bool | None = None, allow_remote: bool = False, image_size: int | None = None
    ) -> Inputs:
        """A conversation as tensors; `think=None` leaves the choice to the language model's plugin."""
        think = bool(getattr(self.tokenizer, "thinking", False)) if think is None else think
        return self.processor.prepare(messages, think=think, allow_remote=allow_remote, image_size=image_size)

    def generate(
        self, messages: Any, options: GenerationOptions | None = None, *, allow_remote: bool = False
    ) -> Answer:
        """Answer one conversation."""
        return self.generate_batch([messages], options, allow_remote=allow_remote)[0]

    def generate_batch(
        self,
        conversations: Sequence[Any],
        options: GenerationOptions | Sequence[GenerationOptions] | None = None,
        *,
        allow_remote: bool = False,
    ) -> list[Answer]:
        """Answer several conversations together, with options for all or for each; each is what it would be alone."""
        from andes_sdk.runtime.generation import GenerationOptions, generate_batch

        options = GenerationOptions() if options is None else options
        return generate_batch(self, conversations, options, allow_remote=allow_remote)

    def stream(
        self, messages: Any, options: GenerationOptions | None = None, *, allow_remote: bool = False
    ) -> Generator[str, None, Answer]:
        """Answer one conversation piece by piece; the pieces joined are the text `generate` returns.

        The generator's return value (`answer = yield from pipe.stream(...)`) is the whole `Answer`.
        """
        from andes_sdk.runtime.generation import GenerationOptions, stream

        options = GenerationOptions() if options is None else options
        return stream(self, messages, options, allow_remote=allow_remote)

    def chat(self, text: str, images: Sequence[Any] = (), **options: Any) -> str:
        """Answer one question about pictures; options as in `GenerationOptions`."""
        from andes_sdk.inputs.messages import user_message
        from andes_sdk.runtime.generation import GenerationOptions

        return self.generate([user_message(text, images)], config.structure(GenerationOptions, options, "chat")).text

    # ------------------------------------------------------------ what other distributions add

    def __getattr__(self, name: str) -> Any:
        """What a distribution adds to pipelines, such as `pipe.train(...)` of andes-training.

        Raises:
            MethodNotFound: none that is installed does.
        """
        if name.startswith("_") or name not in discovery.extensions(METHODS):
            owner = _BROUGHT.get(name)
            advice = {"why": f"{owner}, which brings it, is not installed", "fix": f"pip install {owner}"}
            raise MethodNotFound(f"a pipeline has no {name!r}", **advice if owner else {})
        return MethodType(discovery.load_extension(METHODS, name), self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *discovery.extensions(METHODS)})
