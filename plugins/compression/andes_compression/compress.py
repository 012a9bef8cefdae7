"""`pipe.compress(name, **options)`: a compressor of the pipeline, and what it says written to one file."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import functional

from andes_compression.pack import Progress, pack_model
from andes_compression.recipe import default_recipe, resolve
from andes_sdk.errors import AndesError, ConfigError, PluginBroken
from andes_sdk.numbers import digest, numbers, quantised, refuse_ranges
from andes_sdk.storage.checkpoint import stored_tensors
from andes_sdk.types import Compressed

if TYPE_CHECKING:
    from andes_packing import Artefact
    from andes_packing.formats import Format

    from andes_sdk.pipeline import Pipeline


def compress(pipeline: Pipeline, name: str, **options: Any) -> Compressed:
    """Run a compressor of the pipeline on its model, which changes in place -> codes, ranges and a report.

    The model knows its new numbers (`model.numbers`), those that `write` puts into an artefact.

    Raises:
        ConfigError: no plugin brings it, options that it does not take, or a model whose weights stay in a file.
        PluginBroken: it fails, returns no `Compressed`, or codes and ranges of what the model does not have.
    """
    pipeline.refuse_packed("compressed")
    compressor = pipeline.pick("compressors", name)
    _refuse_options(name, compressor, options)
    model = pipeline.model
    try:
        made = compressor.compress(model, **options)
    except AndesError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise PluginBroken("the compressor failed", who=name, why=why, fix="report it to its author") from error
    if not isinstance(made, Compressed):
        raise PluginBroken(f"returned {type(made).__name__}", who=name, fix="return `andes_sdk.types.Compressed`")
    state = model.state_dict(keep_vars=True)
    unknown = [n for n in made.codes if n not in state] + [n for n in made.ranges if f"{n}.weight" not in state]
    if unknown:
        why = ", ".join(unknown[:20])
        raise PluginBroken("told of what the model does not have", who=name, why=why, fix="use names of its tensors")
    own, ranges = quantised(model)
    refuse_ranges(made.ranges)
    codes = {**own, **made.codes}
    if codes:
        first: dict[int, str] = {}
        stored = {n: first.setdefault(id(t), n) for n, t in state.items()}
        model.numbers = numbers({stored[n]: digest(stored[n], c) for n, c in codes.items()}, {**ranges, **made.ranges})
    return made


def _refuse_options(name: str, compressor: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that a compressor does not take, before weights are read."""
    taken = [p for n, p in signature(compressor.compress).parameters.items() if n != "self"][1:]
    if any(p.kind is Parameter.VAR_KEYWORD for p in taken):
        return
    known = [p.name for p in taken if p.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    for option in options:
        if option not in known:
            fix = f"it takes {', '.join(known) or 'none'}; options of its plugin go by PLUGIN.OPTION, such as qat.body"
            raise ConfigError(f"no option {option!r}", who=f"compressor {name}", fix=fix)


def write(
    pipeline: Pipeline,
    made: Compressed,
    path: str | Path,
    recipe: Mapping[str, str],
    *,
    progress: Progress | None = None,
) -> Artefact:
    """Pack the model of a pipeline that was compressed: its codes as they are, other matrices rounded to nearest.

    Raises:
        ConfigError: modules that the plan does not build, a recipe that does not fit, codes that its formats do not
            take, or N:M formats that would prune further than the compressor did.
        CheckpointError: codes that a format cannot hold, or a file that cannot be written.
    """
    model = pipeline.model
    shapes, built = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, pipeline.meta_model()))
    wrong = sorted(n for n in shapes.keys() | built.keys() if shapes.get(n) != built.get(n))
    if wrong:
        raise ConfigError(
            "the compressor changed the modules, so that the file could not be opened",
            who=", ".join(wrong[:5]),
            fix="change weights only, or change modules in the plugin's hook `andes_modules`",
        )
    _refuse_further_pruning(pipeline, made, recipe)
    return pack_model(
        model, recipe, path, plan=pipeline.plan, codes=made.codes, ranges=made.ranges, progress=progress,
        formats=pipeline.collection("formats").values(),
    )  # fmt: skip


def recipe_for(
    pipeline: Pipeline, made: Compressed, form: str | None, *, head: str | None = None, vision: str = "f16"
) -> dict[str, str]:
    """A format for every matrix: `form`, or, without one, for each matrix with codes the first that holds them.

    Raises:
        ConfigError: codes that no format here holds, or no codes and no format.
    """
    own, _ = quantised(pipeline.model)
    codes = {**own, **made.codes}
    formats = tuple(pipeline.collection("formats").values())
    if form is None and not codes:
        fix = "pass --format, such as w4_g128"
        raise ConfigError("the compressor gave no codes, so nothing says the format", who="--format", fix=fix)
    chosen = default_recipe(pipeline.model, form or "f16", head=head, vision=vision)
    if form is None:
        chosen |= {name: _holder(name, one, formats) for name, one in codes.items() if name in chosen}
    resolve(pipeline.model, chosen, formats)
    return chosen


def _refuse_further_pruning(pipeline: Pipeline, made: Compressed, recipe: Mapping[str, str]) -> None:
    """Refuse N:M formats for matrices that keep more, where a compressor chose what is kept: its report has `pattern`.

    Raises:
        ConfigError: naming the first of them.
    """
    from andes_packing import matrix
    from andes_packing.formats import known

    if "pattern" not in made.report:
        return
    model, formats = pipeline.model, tuple(pipeline.collection("formats").values())
    available, tensors = known(formats), stored_tensors(model)
    held = {**quantised(model)[0], **made.codes}
    for name, form in resolve(model, recipe, formats).items():
        n, m = (getattr(available.get(form), part, 1) for part in ("n", "m"))
        if n == m or name in held:
            continue
        rows = tensors[name].reshape(matrix(tuple(tensors[name].shape)))
        most = int(functional.pad(rows != 0, (0, -rows.shape[1] % m)).reshape(len(rows), -1, m).sum(-1).max())
        if most > n:
            why = f"it stores {n} of {m}, and {most} are not zero; the others would be lost"
            fix = f"take another format, such as --head w8 or --set '{name}=w4_g128', or prune it, too"
            raise ConfigError(
                f"format {form} would prune further than {made.report['pattern']}", who=name, why=why, fix=fix
            )


def _holder(name: str, codes: Any, formats: tuple[Format, ...]) -> str:
    """The smallest format that holds these codes."""
    from andes_packing.formats import known

    for form in sorted(known(formats).values(), key=lambda f: f.bpw):
        try:
            form.pack(codes)
        except AndesError:
            continue
        if codes.values.dtype.kind == "f" or codes.scales.shape[1]:
            return form.name
    raise ConfigError("no format holds these codes", who=name, fix="use codes, scales and groups of a format")
