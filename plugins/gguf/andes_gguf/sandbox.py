"""Jinja for templates from strangers: what they may call, and how much.

Jinja's sandbox keeps a template from reaching out, but not from taking all time and memory. Here every loop, macro,
operator, filter and call pays from a budget; sizes are checked before a value is made; nothing is computed while a
template is compiled. Operators and filters keep track of where texts come from (`provenance`).
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
from attrs import define
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .provenance import Text, derived

MOST_TEMPLATE, MOST_LEVELS, MOST_STEPS, MOST_SIZE = 1 << 18, 100, 1_000_000, 1 << 24
"""Characters of a template; levels of its blocks and of values; steps; characters of a text. A step is a turn of a
loop, an operation, or 256 characters."""
MOST_BITS, MOST_WIDTH = 4096, 10_000
"""Of a number, and of what is padded."""
MOST_SECONDS = 10.0

_FILTERS = (
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "format", "groupby", "indent", "int", "items", "last", "length", "list", "lower", "map", "max", "min",
    "reject", "rejectattr", "replace", "reverse", "round", "select", "selectattr", "slice", "sort", "string", "sum",
    "title", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
_METHODS = frozenset({
    "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map", "index",
    "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isspace",
    "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace",
    "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper", "zfill",
})  # fmt: skip
_REFUSED = (nodes.EvalContextModifier, nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


class TooMuch(Exception):
    """A template asks for more than it may have."""


@define
class Budget:
    """What is left for one rendering."""

    steps: int
    end: float


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def rendered(template: jinja2.Template, names: Mapping[str, Any]) -> Text:
    """What a template writes, within one budget.

    Raises:
        TooMuch: it does not come to an end within it. Exception: whatever the template does wrong.
    """
    token = _budget.set(Budget(MOST_STEPS, time.monotonic() + MOST_SECONDS))
    try:
        return Text.of(template.render(names))
    finally:
        _budget.reset(token)


def charge(steps: int = 1) -> None:
    """Pay. Raises TooMuch: nothing is left."""
    if (budget := _budget.get()) is None:
        return
    budget.steps -= steps
    if budget.steps < 0:
        raise TooMuch(f"more than {MOST_STEPS} steps")
    if time.monotonic() > budget.end:
        raise TooMuch(f"more than {MOST_SECONDS:g} s")


def _fits(size: float, most: int = MOST_SIZE) -> None:
    if size > most:
        raise TooMuch(f"a text, a list or a number of size {size:g}")


def weighed(value: Any) -> Any:
    """The same value, paid for with everything in it as often as it stands there. Raises TooMuch."""
    waiting = [(value, 0)]
    while waiting:
        one, level = waiting.pop()
        if isinstance(one, str):
            _fits(len(one))
            charge(1 + len(one) // 256)
        elif isinstance(one, list | tuple | dict):
            _fits(level, MOST_LEVELS)
            charge(1 + len(one))
            waiting += ((inner, level + 1) for inner in (one.values() if isinstance(one, dict) else one))
    return value


# ---------------------------------------------------------------- what grows


def _plain_form(text: str, *_: Any, **__: Any) -> None:
    if re.search(r"\d{4}|\*|\{[^{}]*\{", text.replace("{{", "")):
        raise TooMuch("a format with a width of its own")


def _narrow(text: Any, width: Any = 0, *_: Any, **options: Any) -> None:
    for one in (width, *options.values()):
        if isinstance(one, int):
            _fits(abs(one), MOST_WIDTH)
        elif isinstance(one, str):
            _fits(len(one), MOST_WIDTH)


def _indented(text: str, width: Any = 4, *_: Any, **options: Any) -> None:
    width = options.get("width", width)
    _fits((text.count("\n") + 1) * (len(width) if isinstance(width, str) else abs(width)))


def _replaced(text: str, old: str, new: str, *_: Any, **__: Any) -> None:
    _fits(len(text) + str(text).count(str(old)) * len(str(new)))


def _added_up(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise TooMuch("a sum of what are no numbers")


def _joining(text: str, parts: Iterable[Any], *_: Any) -> None:
    held = list(parts)
    _fits(len(text) * len(held) + sum(len(part) for part in held if isinstance(part, str)))


_CHECKS: dict[str, Callable[..., None]] = {
    "center": _narrow, "ljust": _narrow, "rjust": _narrow, "zfill": _narrow, "expandtabs": _narrow, "batch": _narrow,
    "slice": _narrow, "round": _narrow, "indent": _indented, "format": _plain_form, "format_map": _plain_form,
    "replace": _replaced, "join": _joining, "sum": _added_up, "truncate": _narrow,
}  # fmt: skip
"""Filter or method of a text -> what refuses arguments that would make too much of it."""


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it takes and gives."""
    hidden = hasattr(function, "jinja_pass_arg")  # a context or an environment comes first

    @functools.wraps(function)
    def limited(*args: Any, **options: Any) -> Any:
        given = args[hidden:]
        weighed([given, options])
        if name in _CHECKS and not isinstance(given[0], jinja2.Undefined):
            _CHECKS[name](*given, **options)
        result = function(*args, **options)
        if isinstance(result, Iterator):
            result = list(_counted(result))
        return weighed(derived(result, given, options))

    return limited


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        charge()
        yield value


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    get = make_attrgetter(environment, attribute) if attribute is not None else lambda one: one
    held = [str(derived(str(one), one)) for one in map(get, _counted(value))]
    _joining(str(d), held)
    return Text.of(str(d)).join(held)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, separators: Any = None,
            sort_keys: bool = False) -> str:  # fmt: skip
    _fits(0 if indent is None else indent if isinstance(indent, int) else len(indent), 100)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_context
def _written(_: Context, value: Any) -> str:
    """What stands between double braces: a step for each, and no more than fits."""
    text = derived(str(weighed(value)), value)
    charge(1 + len(text) // 64)
    return cast("str", text)


def _tick(steps: int) -> None:
    charge(steps)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    if len(form) > 100 or re.search(r"%[^a-zA-Z%]*\d", form):
        raise TooMuch("a date with a width of its own")
    return datetime.now().strftime(form)


# ---------------------------------------------------------------- the environment


class Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`, with which transformers marks answers: what is in it is written."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """The block."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """As transformers', but within limits."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    concat = staticmethod(Text.joined)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_written,
            extensions=["jinja2.ext.loopcontrols", Generation],
        )  # fmt: skip
        self.filters = {name: _limited(name, FILTERS[name]) for name in _FILTERS}
        self.filters |= {
            "join": _limited("", _join),
            "tojson": _limited("tojson", _tojson),
            "safe": lambda value: value,
        }
        self.filters |= {"_tick": _tick, "_made": weighed}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now}

    def template(self, text: str) -> jinja2.Template:
        """A template, checked and changed so that it pays.

        Raises:
            TooMuch: it is too long, or nested too deeply. jinja2.TemplateError, SyntaxError: it is none.
        """
        _fits(len(text), MOST_TEMPLATE)
        tree = self.parse(text)
        waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
        while waiting:
            node, level = waiting.pop()
            _fits(level, MOST_LEVELS)
            if isinstance(node, _REFUSED):
                raise SecurityError(f"{type(node).__name__} has no place in a chat template")
            waiting += ((inner, level + 1) for inner in node.iter_child_nodes())
        tree = _Paying().visit(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, if what it makes is not too large."""
        charge()
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and numbers:
            _fits(left.bit_length() * max(right, 0), MOST_BITS)
        elif operator == "*" and numbers:
            _fits(left.bit_length() + right.bit_length(), MOST_BITS)
        elif operator == "*":
            for many, count in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(count, int):
                    _fits(len(many) * count, MOST_SIZE if isinstance(many, str) else MOST_STEPS)
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _fits(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            _plain_form(left)
        return weighed(derived(super().call_binop(context, operator, left, right), left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **options: Any) -> Any:
        """A call, if what it makes is not too large."""
        weighed([args, options])
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        name = str(getattr(__obj, "__name__", ""))
        if isinstance(owner, str):
            options = {key: value for key, value in options.items() if key not in ("_loop_vars", "_block_vars")}
            if name not in _METHODS:
                raise SecurityError(f"a text's method {name!r} is not for templates")
            if name in _CHECKS:
                _CHECKS[name](owner, *args, **options)
            if name.startswith("format"):
                found = str.__str__(super().call(__context, __obj, *args, **options))
            else:
                found = getattr(Text.of(owner), name)(*args, **options)
            return weighed(derived(found, owner, args, options))
        if isinstance(owner, int | float | bytes | type):
            raise SecurityError(f"the method {name!r} is not for templates")
        return weighed(super().call(__context, __obj, *args, **options))


class _Paying(NodeTransformer):
    """Loops and macros pay for each turn and for the text that stands in them; lists for what they hold."""

    def _body(self, node: Any) -> nodes.Node:
        length = sum(len(data.data) for part in node.body for data in _all(part, nodes.TemplateData))
        self.generic_visit(node)
        tick = nodes.Filter(nodes.Const(1 + length // 64), "_tick", [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return cast("nodes.Node", node)

    visit_For = visit_Macro = visit_CallBlock = _body

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None, lineno=node.lineno)

    def _made(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return cast("nodes.Node", node)
        return nodes.Filter(node, "_made", [], [], None, None, lineno=node.lineno)

    visit_List = visit_Dict = visit_Tuple = _made


def _all(node: nodes.Node, kind: type[nodes.TemplateData]) -> Iterable[nodes.TemplateData]:
    return [*([node] if isinstance(node, kind) else ()), *node.find_all(kind)]
