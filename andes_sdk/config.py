"""Plain data to attrs classes, strictly: unknown keys are refused, nothing is converted, all errors at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.strategies import configure_union_passthrough

from andes_sdk.errors import AndesError, AssemblyError, ConfigError
from andes_sdk.files import regular
from andes_sdk.reading import bounded, parse_json, parse_toml

T = TypeVar("T")


def _strict(kind: type) -> Any:
    def check(value: Any, _: Any) -> Any:
        # bool is an int to Python; here True is not 1, and "7" or 3.9 is not 7
        number: Any = value
        if kind is float and type(value) is int and abs(number) < 1 << 53:
            return float(value)
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {value!r}")
        if kind is float and not math.isfinite(number):
            raise TypeError(f"expected a finite number, got {value!r}")
        if kind is int and abs(number) >= 1 << 63:
            raise TypeError(f"expected a number of 64 bits, got one of {number.bit_length()}")
        return value

    return check


def _path(value: Any, _: Any) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"expected a path, got {value!r}")
    return Path(value)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(lambda t: t in (object, Any), lambda value, _: value)
    converter.register_unstructure_hook(Path, str)
    configure_union_passthrough(bool | int | float | str | None, converter)
    return converter


CONVERTER = _converter()

_LARGEST = {"num_hidden_layers": 1000, "head_dim": 1 << 16}


def too_large(name: str, value: object) -> bool:
    """Whether a size from a file is beyond any model: building it would not end, even without memory for weights."""
    return isinstance(value, int) and abs(value) > _LARGEST.get(name, 1 << 31)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what exists."""
    known = sorted(known)
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "there is none here"


def reasons(error: BaseException, path: str) -> list[str]:
    """Everything that a converter found wrong, each with its place."""
    if isinstance(error, cattrs.BaseValidationError):
        found = []
        for inner in error.exceptions:
            notes = getattr(inner, "__notes__", [])
            where = next((str(n.name) for n in notes if hasattr(n, "name")), None)
            index = next((n.index for n in notes if hasattr(n, "index")), None)
            step = f".{where}" if where else f"[{index!r}]" if index is not None else ""
            found += reasons(inner, path + step)
        return found
    text = str(error.args[0]) if isinstance(error, ValueError | TypeError) and error.args else str(error)
    return [f"{text} @ {path}"]


def problems(cls: type, options: Mapping[str, Any], who: str) -> tuple[dict[str, Any], list[ConfigError]]:
    """Structure each option of `cls` on its own -> (values, every error found)."""
    fields = {f.name: f for f in attrs.fields(attrs.resolve_types(cls)) if f.init}
    errors: list[ConfigError] = []
    values: dict[str, Any] = {}
    for name in (name for name in options if name not in fields):
        fix = suggestion(str(name), fields) if fields else "it takes no options"
        errors.append(ConfigError(f"unknown option {name!r}", who=who, fix=fix))
    for name, f in fields.items():
        if name not in options:
            if f.default is attrs.NOTHING:
                errors.append(ConfigError(f"option {name!r} is missing", who=who, fix=f"give {who}.{name} a value"))
            continue
        try:
            bounded(options[name])
            value = options[name] if f.type is None else CONVERTER.structure(options[name], f.type)
            if f.validator is not None:
                f.validator(None, f, value)
        except ConfigError as error:
            errors.append(as_config_error(error, f"{who}.{name}"))
        except Exception as error:
            fix = f.metadata.get("help", "")
            errors += [ConfigError(reason, who=who, fix=fix) for reason in reasons(error, f"{who}.{name}")]
        else:
            values[name] = value
    return values, errors


def structure(cls: type[T], options: Mapping[str, Any], who: str) -> T:
    """Build `cls` from plain data, or raise every problem at once.

    Raises:
        AssemblyError: a group of `ConfigError`, each with its path (`expected float, got 'x' @ okv.keep`).
    """
    if not isinstance(options, Mapping):
        raise AssemblyError("configuration", [ConfigError(f"expected a table of options, got {options!r}", who=who)])
    values, errors = problems(cls, options, who)
    if errors:
        raise AssemblyError(f"cannot configure {who}", errors)
    try:
        return cls(**values)
    except Exception as error:
        raise AssemblyError(f"cannot configure {who}", [as_config_error(error, who)]) from error


def as_config_error(error: Exception, who: str) -> ConfigError:
    """A plugin's own complaint about its options, as one of our errors."""
    if isinstance(error, AndesError):
        return ConfigError(error.what, who=error.who or who, why=error.why, fix=error.fix)
    return ConfigError(f"{type(error).__name__}: {error}", who=who, fix="check the options of this plugin")


def plain(instance: Any) -> dict[str, Any]:
    """An attrs instance as plain data, without options at their default. Raises ConfigError: nested too deeply."""
    data = {}
    for f in attrs.fields(type(instance)):
        value = getattr(instance, f.name)
        default = f.default.factory() if isinstance(f.default, attrs.Factory) else f.default  # type: ignore[arg-type]
        try:
            bounded(value)
        except ValueError as error:
            raise ConfigError(f"{error} @ {f.name}", who=type(instance).__name__.lower()) from None
        if f.init and not (type(value) is type(default) and value == default):
            data[f.name] = CONVERTER.unstructure(value)
    return data


def read_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A TOML or JSON file, or a mapping, with the arguments of `Pipeline.from_plugins` -> checked arguments.

    Raises:
        ConfigError: the file cannot be read.
        AssemblyError: every argument that does not exist or does not fit.
    """
    if isinstance(source, Mapping):
        data, who = dict(source), "pipeline"
    else:
        path = Path(source)
        who = path.name
        try:
            data = (parse_json if path.suffix == ".json" else parse_toml)(regular(path).read_bytes())
        except (OSError, ValueError) as error:
            what = "cannot be read"
            raise ConfigError(what, who=str(path), why=str(error), fix="write a TOML or JSON file") from None
    return attrs.asdict(structure(PipelineConfig, data, who), recurse=False)


def _table(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a table of options, got {value!r}")


@attrs.frozen(kw_only=True)
class PipelineConfig:
    """The arguments of `Pipeline.from_plugins` as plain data."""

    plugins: list[object]
    weights: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "torch"
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    image: Any = attrs.field(factory=dict, validator=_table)
