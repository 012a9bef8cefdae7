"""From the options that several commands share to a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar, get_type_hints

import attrs
import typer
from attrs import frozen

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.cli.console import stderr
from andes_sdk.config import read_config, structure, suggestion
from andes_sdk.errors import ConfigError
from andes_sdk.hookspecs import FAMILIES, MODELS
from andes_sdk.reading import value_of

if TYPE_CHECKING:
    from andes_sdk.assembling.assembly import PluginItem
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.generation import GenerationOptions

P = ParamSpec("P")
R = TypeVar("R")

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder or file of a model, an installed one's name, or owner/name on the Hub."),
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML or JSON with the arguments of Pipeline.from_plugins.")
]
Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", "-p", help="One more plugin, such as a decoder; repeatable.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="PLUGIN.OPTION=VALUE", help="An option of a plugin; repeatable."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Backend = Annotated[str | None, typer.Option(help="What runs the model; torch is built in, numba is a plugin.")]


@frozen(kw_only=True)
class Opening:
    """The options of commands that open a pipeline: which model, and how it is run."""

    model: Model = None
    config: Config = None
    option: Options = None
    device: Device = None
    dtype: Dtype = None
    backend: Backend = None

    def opened(self, plugins: Sequence[str] | None = None) -> Pipeline:
        """As `open_pipeline`, with these plugins added to those of the model."""
        return open_pipeline(
            self.model, self.config, plugins=plugins, options=self.option, device=self.device, dtype=self.dtype,
            backend=self.backend,
        )  # fmt: skip


@frozen(kw_only=True)
class Request(Opening):
    """The options of commands that answer: also how answers are decoded."""

    image: Annotated[list[str] | None, typer.Option("--image", "-i", help="A picture; repeatable, in order.")] = None
    plugin: Plugins = None
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="NAME=FOLDER", help="Answer with a LoRA adapter that peft saved.")
    ] = None
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Thinking mode; without it the model's own default.")
    ] = None
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer. (default: 512)")] = None
    temperature: Annotated[float | None, typer.Option(help="0 decodes greedily. (default: 0)")] = None
    top_k: Annotated[int | None, typer.Option(help="Sample among the best K; 0 for all. (default: 0)")] = None
    top_p: Annotated[float | None, typer.Option(help="Sample among the most likely this share. (default: 1)")] = None
    min_p: Annotated[
        float | None, typer.Option(help="Leave out what is this much less likely than the best. (default: 0)")
    ] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="Over prompt and answer. (default: 1)")] = None
    presence_penalty: Annotated[float | None, typer.Option(help="Over the answer. (default: 0)")] = None
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")] = None
    seed: Annotated[int | None, typer.Option(help="Of the sampling noise. (default: 0)")] = None
    image_size: Annotated[
        int | None, typer.Option(help="No picture is larger than a square of this side in pixels.")
    ] = None
    logprobs: Annotated[
        int | None, typer.Option(help="Report each token's log-probability and this many of the best, in JSON.")
    ] = None
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Fetch pictures from http(s) addresses.")] = False

    def generation(self) -> GenerationOptions:
        """Sampling options as checked data; what was not given (None) keeps its default."""
        from andes_sdk.runtime.generation import GenerationOptions

        names = {f.name for f in attrs.fields(GenerationOptions)}
        given = {k: v for k, v in attrs.asdict(self).items() if k in names and v is not None}
        if self.adapter is not None:
            given["adapter"] = self._adapter()[0]
        return structure(GenerationOptions, given, "generation")

    def pipeline(self) -> Pipeline:
        """The pipeline with its weights read and its adapter attached, so that an answer's times are its own."""
        pipeline = self.opened(self.plugin)
        attach = None if self.adapter is None else pipeline.add_adapter  # its absence is told before weights are read
        ready(pipeline)
        if attach is not None:
            attach(*self._adapter())
        return pipeline

    @property
    def adapter_folder(self) -> Path | None:
        """Where the adapter lies, if one was named."""
        return None if self.adapter is None else Path(self._adapter()[1])

    def _adapter(self) -> tuple[str, str]:
        name, _, folder = str(self.adapter).partition("=")
        if not (name and folder):
            raise ConfigError(f"cannot read {self.adapter!r}", who="--adapter", fix="write NAME=FOLDER")
        return name, folder


def requesting(command: Callable[Concatenate[R, P], None]) -> Callable[..., None]:
    """Give a command, whose first parameter is an attrs class of options such as `Request`, the options of one."""
    first, *own = signature(command, eval_str=True).parameters.values()
    options = first.annotation
    hints = get_type_hints(options, include_extras=True)
    shared = [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in attrs.fields(options)
    ]

    def wrapped(**given: Any) -> None:
        command(options(**{p.name: given.pop(p.name) for p in shared}), **given)  # type: ignore[call-arg]

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    every = [*(p.replace(kind=Parameter.KEYWORD_ONLY) for p in own), *shared]
    wrapped.__signature__ = Signature(every)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in every}
    return wrapped


def plugin_items(
    names: Sequence[str], options: Sequence[str], others: Callable[[], Iterable[str]] = tuple
) -> list[PluginItem]:
    """Plugin names, models by name and `plugin.option=value` -> items for `Pipeline.from_plugins`; see `with_options`.

    Raises:
        ConfigError: an option that is not `plugin.option=value`, or whose plugin is not listed.
    """
    items: list[PluginItem] = []
    for name in names:
        items += family_member(name) or [name]
    return with_options(items, options, others)


def family_member(name: str) -> list[PluginItem] | None:
    """The plugins of a member of a family that some distribution knows, or None for any other name.

    Raises:
        ConfigError: the family has no such member.
    """
    family, _, member = name.lower().partition("-")
    if not member or family not in extensions(FAMILIES):
        return None
    return list(load_extension(FAMILIES, family)(name))


def with_options(
    items: Sequence[PluginItem], options: Sequence[str], others: Callable[[], Iterable[str]] = tuple
) -> list[PluginItem]:
    """The same items with `plugin.option=value` applied; values are TOML, and plain text where they are not.

    Args:
        others: plugins that may have options though they are not among the items; asked for if one has.

    Raises:
        ConfigError: an option that is not `plugin.option=value`, or whose plugin is not listed.
    """
    tables: dict[str, dict[str, Any]] = {}
    for item in items:
        tables |= {k: dict(v or {}) for k, v in item.items()} if isinstance(item, dict) else {str(item): {}}
    for text in options:
        path, equals, raw = text.partition("=")
        plugin, dot, option = path.strip().partition(".")
        if not (equals and dot and option):
            raise ConfigError(f"cannot read {text!r}", who="--option", fix="write plugin.option=value")
        if plugin not in tables and plugin not in (more := tuple(others())):
            fix = f"{suggestion(plugin, (*tables, *more))}; or add it with --plugin"
            raise ConfigError(f"{plugin!r} is no plugin of this model", who="--option", fix=fix)
        _assign(tables.setdefault(plugin, {}), option.split("."), value_of(raw), text)
    return [{name: table} if table else name for name, table in tables.items()]


def option_values(options: Sequence[str]) -> dict[str, Any]:
    """`option=value` texts as keyword arguments; values as in `with_options`.

    Raises:
        ConfigError: a text that is not `option=value`.
    """
    pairs = [text.partition("=") for text in options]
    for text, (name, equals, _) in zip(options, pairs, strict=True):
        if not (equals and name.strip().isidentifier()):
            raise ConfigError(f"cannot read {text!r}", who="--option", fix="write option=value")
    return {name.strip(): value_of(raw) for name, _, raw in pairs}


def _assign(table: dict[str, Any], path: Sequence[str], value: Any, text: str) -> None:
    for step in path[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{step!r} of {text!r} is not a table", who="--option", fix="set it as a whole")
    table[path[-1]] = value


def open_pipeline(
    model: str | None,
    config: Path | None,
    *,
    plugins: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
) -> Pipeline:
    """A pipeline from what `--model` names or a configuration file; without either the first model that is installed.

    Raises:
        ConfigError: neither was given and none is installed. AssemblyError, CheckpointError: as `Pipeline`.
    """
    from andes_sdk.pipeline import Pipeline

    if model is not None and config is not None:
        raise typer.BadParameter("give --model or --config, not both")
    if config is not None:
        arguments = read_config(config)
        arguments["plugins"] = with_options([*arguments["plugins"], *(plugins or ())], options or ())
        chosen = {"device": device, "dtype": dtype, "backend": backend}
        return Pipeline.from_plugins(**{**arguments, **{k: v for k, v in chosen.items() if v is not None}})
    if not (source := model or next(iter(extensions(MODELS)), None)):
        fix = "pass --model FOLDER (a checkpoint) or --config FILE (a list of plugins), or install andes-nano"
        raise ConfigError("no model was given", who="--model", why="none is installed either", fix=fix)
    own = partial(_names, source, backend)
    more = plugin_items(plugins or (), options or (), own)
    return Pipeline.from_pretrained(source, plugins=more, backend=backend, device=device or "cpu", dtype=dtype)


def _names(source: str, backend: str | None) -> list[str]:
    """Plugins of a stored model, and of the backend that runs it."""
    from andes_sdk.storage.opening import open_stored

    return [*open_stored(source).plan.names, *([backend] if backend else ())]


def ready(pipeline: Pipeline) -> Pipeline:
    """The same pipeline with its weights read, so that the first answer's times are those of the answer alone."""
    with stderr().status("reading the model"):
        _ = pipeline.compiled, pipeline.processor, pipeline.policy, pipeline.decoder
    return pipeline
