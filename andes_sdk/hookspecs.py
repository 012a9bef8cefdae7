"""The contract on one page: every hook a plugin may implement.

A plugin is one attrs class. Its fields are the options. Its methods named `andes_*` are hooks. Hooks build objects, and
the objects do the work: no hook runs per token or per layer. Import torch inside the hook, never at the top of the
module.

Kinds of hook:
- slot: exactly one plugin of a pipeline owns it. Two owners are an error; so is none, where there is no default.
- collection: every plugin may return named objects. Two objects of one name are an error.
- modules: every plugin may change the modules of a model.
- check, observer: every plugin is asked, or told.

Class attributes of a plugin:
- `contract`: the version it was written for, `"1.1"`.
- `testing`: options that make it tiny for the conformance kit, such as `{"preset": "tiny"}`. Optional.
- `companions`: plugins that the kit must put around it, such as `[{"qwen3": {"preset": "tiny"}}]`. Optional.
- `examples`: modality -> two items or more, of different sizes. The kit packs them.
- `samples`: data lines for its training stages and rewards. The kit uses them instead of the usual ones. Optional.

Metadata of a field: `help` is one line for `andes plugins show`. `local=True` marks an option that must not be saved in
an artefact's plan, such as a path.

`docs/public.md` lists what a plugin may import of `andes_sdk`.

The major version of the contract stands in the entry-point group (`andes_sdk.v1.plugins`). A plugin states its own
version in the class attribute `contract`. A core refuses a plugin that was written for another version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pluggy

from andes_sdk.version import CONTRACT

if TYPE_CHECKING:
    from andes_sdk import types
    from andes_sdk.plan import Plan

CHANGED = (
    "since 1.0 decoders only propose, cache policies open a keeper for each session, a compiled model has one `step`, "
    "and language models take a `tap` and name their `linears`"
)
"""What a plugin of an older contract must be ported for."""
GROUP = f"andes_sdk.v{CONTRACT[0]}.plugins"
PROJECT = "andes"

COMMANDS = f"andes_sdk.v{CONTRACT[0]}.commands"
"""Entry-point group of commands: `name = "module:function"`, or a `typer.Typer` of subcommands -> `andes name`."""

CHECKS = f"andes_sdk.v{CONTRACT[0]}.checks"
"""Entry-point group of the kit's checks: `name = "module"`; importing it registers them, its `COUNTS` counts them."""

LAYOUTS = f"andes_sdk.v{CONTRACT[0]}.layouts"
"""Entry-point group of published checkpoint layouts: `model_type = "module"`, a `types.PublishedLayout`."""

FAMILIES = f"andes_sdk.v{CONTRACT[0]}.families"
"""Entry-point group of model families: `family = "module:function"`; it gets `family-member` -> a list of plugins."""

MODELS = f"andes_sdk.v{CONTRACT[0]}.models"
"""Entry-point group of models that distributions bring: `name = "module:function"`, which gives its folder or file."""

OPENERS = f"andes_sdk.v{CONTRACT[0]}.openers"
"""Entry-point group of model files by suffix: `gguf = "module"`, a `storage.stored.Opener`."""

METHODS = f"andes_sdk.v{CONTRACT[0]}.methods"
"""Entry-point group of what pipelines can do: `name = "module:function"` -> `pipe.name(...)`; it gets the pipeline."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks(Protocol):
    """The specifications. pluggy checks each implementation against these names and arguments."""

    @hookspec(firstresult=True)
    def andes_vision_encoder(self) -> types.VisionEncoder:
        """Slot. Build the vision encoder: an `nn.Module` with `.spec`, called with (patches, grids).

        Patches (N, 3*p*p) in block order and one (rows, columns) grid per image -> features (N, Dv), in the same order.
        Attention never crosses images. Empty grids give (0, Dv). Grids that do not fit raise `InputError`.

        Build on torch's current default device. When a checkpoint brings the weights, that device is "meta": nothing
        may be read or copied then. Otherwise a plugin may fill in weights of its own. It raises `CheckpointError` if it
        cannot.

            @frozen(eq=False, kw_only=True)
            class Flat:
                contract = "1.1"

                @hookimpl
                def andes_vision_encoder(self):
                    from .model import FlatEncoder
                    return FlatEncoder()
        """

    @hookspec(firstresult=True)
    def andes_projector(self, vision: types.VisionSpec, text: types.TextSpec) -> types.Projector:
        """Slot. Build the projector: an `nn.Module`, features (N, Dv) -> rows for the language model (N/merge², D).

        @hookimpl
        def andes_projector(self, vision, text):
            from .model import Merge
            return Merge(vision.width * vision.merge**2, text.width)
        """

    @hookspec(firstresult=True)
    def andes_language_model(self, packed: bool) -> types.LanguageModel:
        """Slot. Build the language model: an `nn.Module` with `.spec`, `embed`, `hidden_states`, `logits`.

        `hidden_states(embeds, positions, attend, tap)` must call `attend(layer, q, k, v, scale)` for attention, and
        nothing else. Masks, packing and the KV store belong to the runtime.

        `packed` says that the weights stay in a packed file, and that a backend computes with them. A plugin may then
        build a lighter module of the same weights.

            @hookimpl
            def andes_language_model(self):
                from .model import MyDecoder
                return MyDecoder(layers=self.layers)
        """

    @hookspec(firstresult=True)
    def andes_tokenizer(self, folder: Path | None, files: types.Files | None) -> types.Tokenizer:
        """Slot, normally owned by the language model's plugin. Build tokenizer and chat template.

        `folder` is the checkpoint being loaded, or None: read the tokenizer saved there. `files` are the same files,
        to be read by name, or None. Take the one that you need.

        A plugin that takes `folder` gets an artefact's files in a temporary folder, which is deleted when the hook
        returns. A plugin that takes `files` may read them at any time. So a large vocabulary can wait until text is
        first tokenised.

            @hookimpl
            def andes_tokenizer(self, folder):
                from .tokenizer import Bytes
                return Bytes()
        """

    @hookspec(firstresult=True)
    def andes_cache_policy(self, model: types.Model, rows: int | None) -> types.CachePolicy:
        """Slot with a default (`keep-all`). Build the policy that decides which KV rows stay.

        `rows` is how many a static KV store of the backend holds per head, or None where it grows.

            @hookimpl
            def andes_cache_policy(self, model):
                from .policy import Recent
                return Recent(rows=self.rows)
        """

    @hookspec(firstresult=True)
    def andes_decoder(self, model: types.Model) -> types.Decoder:
        """Slot with a default (`autoregressive`). Build the decoder that proposes tokens; the engine verifies them.

        @hookimpl
        def andes_decoder(self, model):
            from .decoder import PromptLookup
            return PromptLookup(depth=self.depth)
        """

    @hookspec
    def andes_modalities(self) -> Sequence[types.Modality]:
        """Collection. Senses beside pictures, by name: `{"type": "audio", "audio": ...}` in a message goes to "audio".

        A modality packs items, and builds the module that turns them into rows of the language model, saved under
        `modalities.<name>.`. The pipeline's tokenizer must have a placeholder of that name.

            @hookimpl
            def andes_modalities(self):
                from .audio import Audio
                return [Audio(frame=self.frame)]
        """

    @hookspec
    def andes_training_stages(self) -> Sequence[types.TrainingStage]:
        """Collection. Training stages by name.

        @hookimpl
        def andes_training_stages(self):
            from .stage import MyStage
            return [MyStage(rate=self.rate)]
        """

    @hookspec
    def andes_compressors(self) -> Sequence[types.Compressor]:
        """Collection. Compressors by name.

        @hookimpl
        def andes_compressors(self):
            from .prune import Magnitude
            return [Magnitude()]
        """

    @hookspec
    def andes_backends(self) -> Sequence[types.Backend]:
        """Collection, one chosen by name. Backends; `torch` is the core's own.

        @hookimpl
        def andes_backends(self):
            from .backend import MyBackend
            return [MyBackend()]
        """

    @hookspec
    def andes_formats(self) -> Sequence[types.Format]:
        """Collection. Layouts of compressed weights, by name, beside those of andes-packing.

        @hookimpl
        def andes_formats(self):
            from .formats import Nibbles
            return [Nibbles(name="w4_g64", group=64)]
        """

    @hookspec
    def andes_rewards(self) -> Sequence[types.Reward]:
        """Collection. Rewards for reinforcement learning, by name.

        @hookimpl
        def andes_rewards(self):
            from .reward import ExactMatch
            return [ExactMatch()]
        """

    @hookspec
    def andes_data_filters(self) -> Sequence[types.DataFilter]:
        """Collection. Filters of training data, by name; applied in the order of the user's list.

        @hookimpl
        def andes_data_filters(self):
            from .filters import NoEmptyAnswers
            return [NoEmptyAnswers()]
        """

    @hookspec
    def andes_benchmarks(self) -> Sequence[types.Benchmark]:
        """Collection. Benchmarks by name.

        @hookimpl
        def andes_benchmarks(self):
            from .bench import Digits
            return [Digits()]
        """

    @hookspec
    def andes_exporters(self) -> Sequence[types.Exporter]:
        """Collection. Exporters by name: models as files of other runtimes.

        @hookimpl
        def andes_exporters(self):
            from .onnx import OnnxExporter
            return [OnnxExporter(opset=self.opset)]
        """

    @hookspec
    def andes_modules(self, model: types.Model) -> Sequence[str]:
        """Change the modules of a model before its weights are read: adapters, fake quantisers, draft heads.

        Every plugin of the list is asked, in order. It returns prefixes of names of weights that a checkpoint may lack.
        Those weights keep the values given here. Values must follow from torch's seed alone.

        The model's own weights may lie on the meta device: do not read them. Build new modules on torch's current
        default device. It is "meta" too where only shapes are asked for.

        Weights that keep their names are read from any checkpoint of the model. Weights that get other names are read
        from what was saved with this plugin.

            @hookimpl
            def andes_modules(self, model):
                from torch import nn
                model.add_module("draft", nn.Linear(model.text.width, model.text.vocab_size))
                return ["draft."]
        """

    @hookspec
    def andes_check(self, plan: Plan) -> Sequence[str]:
        """Check. Problems with the assembled plan, one sentence each; empty if there is none. Reads no weights.

        @hookimpl
        def andes_check(self, plan):
            return [] if "okv" in plan.names else ["needs the plugin 'okv': add it to the list"]
        """

    @hookspec
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Observer. Facts for `pipe.explain()`: what this plugin chose, and what of it is inactive and why.

        @hookimpl
        def andes_explain(self, plan):
            return {"activation": "exact GELU, as in the published inference code"}
        """

    @hookspec
    def andes_event(self, event: types.Event) -> None:
        """Observer. Progress and metrics, after they happened.

        @hookimpl
        def andes_event(self, event):
            if event.kind == "step":
                print(event.step, event.values["loss"])
        """


SLOTS: dict[str, str] = {
    "vision_encoder": "andes_vision_encoder", "projector": "andes_projector", "language_model": "andes_language_model",
    "tokenizer": "andes_tokenizer", "cache_policy": "andes_cache_policy", "decoder": "andes_decoder",
}  # fmt: skip
"""Slot -> hook."""

DEFAULTED = frozenset({"cache_policy", "decoder"})
"""Slots for which the core has a default."""

COLLECTIONS: dict[str, str] = {
    "modalities": "andes_modalities", "training_stages": "andes_training_stages", "compressors": "andes_compressors",
    "backends": "andes_backends", "formats": "andes_formats", "rewards": "andes_rewards",
    "data_filters": "andes_data_filters", "benchmarks": "andes_benchmarks", "exporters": "andes_exporters",
}  # fmt: skip
"""Collection -> hook."""

HOOKS: dict[str, str] = {
    **{hook: slot for slot, hook in SLOTS.items()}, **{hook: name for name, hook in COLLECTIONS.items()},
    "andes_modules": "modules", "andes_check": "check", "andes_explain": "explain", "andes_event": "event",
}  # fmt: skip
"""Hook -> kind, as the `kind` column of `andes plugins` shows it."""
