"""The parts of the documentation that are made from the code: a hook script of mkdocs, and a command.

Two pages are made whole, `hooks.md` and `types.md`. They lie in the repository, so that they can be read there:

    python docs/generate.py          # writes them anew; a test fails while they are stale

mkdocs makes them again whenever it builds. In the other pages it replaces these markers:

    <!-- options -->       options of the plugin that the page is named after
    <!-- checks -->        the conformance kit's checks, by kind
    <!-- first-light -->   results of the shipped model, from docs/results/first_light.json
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from andes_sdk import hookspecs, types

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "first_light.json"
SUBJECTS = (
    "modules", "model", "media", "text", "sessions", "backends", "training", "collections", "compression", "storage",
)  # fmt: skip
"""Modules of `andes_sdk.types` as the page goes through them."""
MADE = "<!-- Made by `python docs/generate.py`. Edit the docstrings, not this page. -->"
KINDS = {"modules": "modules", "check": "check", "explain": "observer", "event": "observer"}


# ---------------------------------------------------------------- text


def escaped(text: str) -> str:
    """Text of a docstring with what Markdown would take for markup escaped, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*\[\]|])", r"\\\1", p.replace("<", "&lt;")) for p in parts)


def prose(doc: str) -> str:
    """A docstring as Markdown; sections such as `Attributes:` become lists."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", doc.strip()):
        head, _, rest = block.partition("\n")
        if re.fullmatch(r"[A-Z]\w+:", head.strip()) and rest.startswith("    "):
            out += [f"**{head.strip()[:-1]}**", "\n".join(_entries(textwrap.dedent(rest)))]
        else:
            out.append(escaped(" ".join(line.strip() for line in block.splitlines())))
    return "\n\n".join(out)


def _entries(text: str) -> Iterator[str]:
    """`name: what it is`, perhaps over several lines -> items of a list."""
    for entry in re.split(r"\n(?=\S)", text):
        name, colon, rest = " ".join(entry.split()).partition(": ")
        yield f"- `{name}`: {escaped(rest)}" if colon else f"- {escaped(name)}"


def cell(value: object) -> str:
    """A value as code in a table."""
    return f"`{value}`".replace("|", "\\|")


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------- the contract


def split_example(doc: str) -> tuple[str, str]:
    """A hook's docstring -> (prose, the example at its end)."""
    lines = doc.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith(("@hookimpl", "@frozen")))
    return "\n".join(lines[:start]).strip(), textwrap.dedent("\n".join(lines[start:])).strip()


def hooks_page() -> str:
    """Every hook of the specifications: kind, signature, what it is for, the shortest example."""
    intro = inspect.getdoc(hookspecs) or ""
    out = [
        "# Hooks",
        MADE,
        f"The contract is version {'.'.join(map(str, hookspecs.CONTRACT))}. Its entry-point group is "
        f"`{hookspecs.GROUP}`. [Types](types.md) describes what hooks take and return. "
        "[Write a plugin](write-a-plugin.md) shows a first one.",
        _listed(intro.partition("\n\n")[2]),
        _overview(),
    ]
    for hook in hookspecs.HOOKS:
        text, example = split_example(inspect.getdoc(getattr(hookspecs.Hooks, hook)) or "")
        out += [
            f"## {hook}",
            f"```python no-run\n{signature(hookspecs.Hooks, hook)}\n```",
            prose(text),
            f"```python no-run\n{example}\n```",
        ]
    return without_marks("\n\n".join(out) + "\n")


def _listed(text: str) -> str:
    """A module docstring's paragraphs and `- ` lists; a line that is not indented ends a list."""
    ended = re.sub(r"(\n- [^\n]*(?:\n  [^\n]*)*)\n(?=[^\s-])", r"\1\n\n", text)
    marked = re.sub(r"\n(?=- )", "\n\n", ended)
    blocks = [escaped(" ".join(block.split())) for block in re.split(r"\n\s*\n", marked)]
    blocks = [block.replace("`docs/public.md`", "[Public modules](public.md)") for block in blocks]
    return re.sub(r"\n\n(?=- )", "\n", "\n\n".join(blocks)).replace(":\n- ", ":\n\n- ")


def _overview() -> str:
    rows = []
    for hook, name in hookspecs.HOOKS.items():
        kind = "slot" if name in hookspecs.SLOTS else KINDS.get(name, "collection")
        if name in hookspecs.DEFAULTED:
            kind += ", has a default"
        rows.append((f"[`{hook}`](#{hook})", kind, f"`{name}`"))
    return table(("hook", "kind", "named in `andes plugins`"), rows)


def signature(owner: type, name: str) -> str:
    """`def name(...) -> ...` as the source writes it, on one line."""
    node = ast.parse(textwrap.dedent(inspect.getsource(getattr(owner, name)))).body[0]
    assert isinstance(node, ast.FunctionDef)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {name}({arguments(node.args)}){returns}"


def arguments(given: ast.arguments) -> str:
    """Arguments as people write them: `name: type = default`."""
    plain = [*given.posonlyargs, *given.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    parts = [_argument(*pair) for pair in zip(plain, [*missing, *given.defaults], strict=True)]
    if given.vararg:
        parts.append(f"*{_argument(given.vararg, None)}")
    elif given.kwonlyargs:
        parts.append("*")
    parts += [_argument(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return ", ".join(parts + ([f"**{_argument(given.kwarg, None)}"] if given.kwarg else []))


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(one.annotation)}" if one.annotation else ""
    if default is None:
        return f"{one.arg}{kind}"
    return f"{one.arg}{kind}{' = ' if kind else '='}{ast.unparse(default)}"


def types_page() -> str:
    """Every public class of `andes_sdk.types`, subject by subject, in the order of the source."""
    out = ["# Types", MADE, prose(inspect.getdoc(types) or "")]
    sections = {s: _types(ast.parse(inspect.getsource(import_module(f"andes_sdk.types.{s}")))) for s in SUBJECTS}
    rows = [(subject, _links(blocks)) for subject, blocks in sections.items()]
    out += [table(("subject", "types"), rows), *(block for blocks in sections.values() for block in blocks)]
    return without_marks("\n\n".join(out) + "\n")


def _links(blocks: list[str]) -> str:
    """Links to the headings among these blocks."""
    names = [block.removeprefix("## ") for block in blocks if block.startswith("## ")]
    return ", ".join(f"[{name}](#{name.lower()})" for name in names)


def _types(tree: ast.Module) -> list[str]:
    """Sections of one module."""
    out: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and not ast.unparse(node.targets[0]).startswith("_"):
            out += [f"## {ast.unparse(node.targets[0])}", f"```python no-run\n{ast.unparse(node)}\n```"]
        elif out and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            out.append(escaped(str(node.value.value)))  # what stands under an alias
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        protocol = any("Protocol" in ast.unparse(base) for base in node.bases)
        out += [
            f"## {node.name}",
            f"*{'Protocol' if protocol else 'Plain data'}.* {prose(ast.get_docstring(node) or '')}",
        ]
        out.append(f"```python no-run\n{_members(node)}\n```")
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not _is_property(m)]
        out += [f"**`{m.name}`** {prose(doc)}" for m in methods if (doc := ast.get_docstring(m))]
    return out


def _is_property(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)


def _members(node: ast.ClassDef) -> str:
    """Attributes and methods of a class as the reader of an interface wants them: one line each."""
    lines: list[str] = []
    for member in node.body:
        if isinstance(member, ast.AnnAssign):
            lines.append(ast.unparse(member))
        elif isinstance(member, ast.FunctionDef):
            returns = f"{ast.unparse(member.returns)}" if member.returns else "None"
            if _is_property(member):
                about = " ".join((ast.get_docstring(member) or "").split())
                lines.append(f"{member.name}: {returns}" + (f"  # {about}" if about else ""))
            else:
                lines.append(f"def {member.name}({arguments(member.args)}) -> {returns}: ...")
        elif lines and isinstance(member, ast.Expr) and isinstance(member.value, ast.Constant):
            lines[-1] += f"  # {member.value.value}"
    return "\n".join(lines)


# ---------------------------------------------------------------- markers


def options_table(plugin: str) -> str:
    """Options of a plugin from its class, as `andes plugins show` has them."""
    from andes_sdk.cli.plugins import describe

    options = describe(plugin)["options"]
    if not options:
        return "It has no options."
    rows = [(cell(o["name"]), cell(o["type"]), cell(repr(o["default"])), escaped(o["help"])) for o in options]
    return table(("option", "type", "default", "meaning"), rows)


def checks_list() -> str:
    """Every check of the conformance kit, by kind."""
    from andes_sdk.testing import checks_of, counts

    out = []
    for kind in counts():
        checks = checks_of([kind])
        out.append(f"### {kind} ({len(checks)})\n\n" + "\n".join(f"- {escaped(c.name)}" for c in checks))
    return "\n\n".join(out)


def first_light() -> str:
    """Results of the shipped model; empty where the file is not there."""
    if not RESULTS.is_file():
        return ""
    facts = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows: list[tuple[str, ...]] = []
    for name, value in facts.items():
        label = name.replace("_", " ")
        parts = {f"{label}: {key}": part for key, part in value.items()} if isinstance(value, dict) else {label: value}
        rows += [(escaped(key), str(part)) for key, part in parts.items()]
    return "## The first-light model\n\n" + FIRST_LIGHT + "\n\n" + table(("figure", "value"), rows)


FIRST_LIGHT = (
    "What `python benchmarks/first_light.py --json` prints for the shipped model: shares of exactly right answers on "
    "data that it has never seen, beside the baselines of a model that does not look (`majority`: the most frequent "
    "answer; `blind`: the most frequent answer to each question text)."
)


def without_marks(markdown: str) -> str:
    """Code fences without our word for blocks that tests must not run."""
    return re.sub(r"^(\s*```python) no-run\b", r"\1", markdown, flags=re.MULTILINE)


# ---------------------------------------------------------------- what mkdocs calls

PAGES: dict[str, Callable[[], str]] = {"hooks.md": hooks_page, "types.md": types_page}


def write() -> None:
    """Write the pages that are made whole into this folder."""
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")


def on_config(config: Any) -> Any:
    """Replace patterns in the navigation, such as `plugins/*.md`, by the files that are there."""
    for section in config.nav:
        for title, value in section.items():
            if isinstance(value, str) and "*" in value:
                paths = sorted(HERE.glob(value))
                section[title] = [{path.stem: path.relative_to(HERE).as_posix()} for path in paths]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Put the pages that are made whole in the place of those in the repository."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        if (written := files.get_file_from_path(path)) is not None:
            files.remove(written)
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace the markers of a page."""
    path = Path(page.file.src_uri)
    makers = {"checks": checks_list, "first-light": first_light, "options": lambda: options_table(path.stem)}
    for marker, make in makers.items():
        if (mark := f"<!-- {marker} -->") in markdown:
            markdown = markdown.replace(mark, make())
    return without_marks(markdown)


if __name__ == "__main__":
    write()
