"""The documentation is true: its Python runs, its plugin conforms, its reference covers the contract."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from stevedore import ExtensionManager
from typer.testing import CliRunner

from andes_sdk import hookspecs, types
from andes_sdk.cli import app
from andes_sdk.scaffold import KINDS
from andes_sdk.testing import checks_of, counts, run_checks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = ("hooks.md", "types.md")
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if p.name not in GENERATED)]
FENCE = re.compile(r'^```(\w+)( no-run)?(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
RUNNABLE = {
    "README.md": 1, "index.md": 1, "start.md": 4, "running.md": 7, "checkpoints.md": 4, "data.md": 1, "training.md": 1,
    "testing.md": 2, "write-a-plugin.md": 2, "formats.md": 3, "one-base.md": 1, "compress.md": 1,
}  # fmt: skip
"""Page -> Python blocks that run, so that a block cannot drop out unseen."""
PLUGINS = sorted((DOCS / "plugins").glob("*.md"))
"""A page of a plugin has one block at least, that of a distribution without a plugin need not."""


def blocks(page: Path, *, files: bool) -> list[tuple[str, str]]:
    """(title, text) of a page's files, or ("", code) of its Python to run."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    if files:
        return [(title, text) for _, _, title, text in found if title]
    return [("", text) for language, skip, title, text in found if language == "python" and not skip and not title]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("andes_docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_files(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a page's files; a distribution that they make up is found by this process as if it were installed."""
    for title, text in blocks(page, files=True):
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if not (folder / "pyproject.toml").is_file():
        return
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [f"[{g}]\n" + "".join(f"{n} = {v}\n" for n, v in p.items()) for g, p in project["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(str(folder))
    # entry points of this process and of this user, as stevedore remembers them, are of before
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for name in [n for n in sys.modules if n.startswith("andes_glance")]:
        monkeypatch.delitem(sys.modules, name)


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a page's Python from top to bottom as one module -> number of blocks."""
    module = ModuleType(f"andes_docs_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = blocks(page, files=False)
    for number, (_, text) in enumerate(code, 1):
        exec(compile(text, f"{page.name}, block {number}", "exec"), module.__dict__)
    return len(code)


def test_distributions_without_a_plugin_have_a_page_with_python() -> None:
    projects = {p.parent.name: p.read_text(encoding="utf-8") for p in ROOT.glob("plugins/*/pyproject.toml")}
    without = {name for name, text in projects.items() if "andes_sdk.v1.plugins" not in text}
    assert without == {
        "adapters", "andesui", "andesvl", "chat", "compression", "evaluation", "nano", "packing", "serve", "training",
    }  # fmt: skip
    assert not [n for n in without if not blocks(DOCS / "plugins" / f"{n}.md", files=False)]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name in RUNNABLE or p in PLUGINS], ids=lambda p: p.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path, monkeypatch)
    count = run_page(page, monkeypatch)
    assert count >= 1 if page in PLUGINS else count == RUNNABLE[page.name]


def test_pages_without_python_are_those_that_we_know() -> None:
    rest = [p for p in PAGES if p.name not in RUNNABLE and p not in PLUGINS]
    results = ["checks.md", "compression.md", "dimensity.md", "kv.md", "nano.md", "serve.md", "speculation.md"]
    assert [p.name for p in rest] == ["architecture.md", "log.md", "public.md", *results]
    assert not [p for p in rest if blocks(p, files=False)]


def test_every_python_block_is_python() -> None:
    broken, count = [], 0
    for page in PAGES:
        for language, _, title, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language != "python":
                continue
            count += 1
            try:
                compile(text, f"{page.name} {title}", "exec")
            except SyntaxError as error:
                broken.append(f"{page.name} {title}: {error}")
    assert count >= len(PLUGINS)
    assert broken == []


def test_the_plugin_of_the_tutorial_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(DOCS / "write-a-plugin.md", tmp_path, monkeypatch)
    results = run_checks("glance")
    wrong = [f"{r.id}: {r.reason}" for r in results if r.status == "failed"]
    assert not wrong
    assert sum(r.status == "passed" for r in results) >= counts()["cache_policy"] + counts()["general"]


def test_the_policy_of_the_tutorial_keeps_all_text_and_its_share_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from PIL import Image

    from andes_sdk import Pipeline
    from andes_sdk.inputs.messages import user_message

    monkeypatch.chdir(tmp_path)
    write_files(DOCS / "write-a-plugin.md", tmp_path, monkeypatch)
    model = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, {"glance": {"share": 0.25}}]
    pipe = Pipeline.from_plugins(model)
    inputs = pipe.prepare([user_message("what is it?", [Image.new("RGB", (112, 112), "red")])])
    picture = inputs.ids == pipe.tokenizer.placeholder("image")
    assert int(picture.sum()) == 16  # 112 / 28 = 4 blocks a side
    session = pipe.compiled.session(pipe.policy)
    session.prefill(inputs)
    text = len(inputs.ids) - 16
    assert {n for layer in session.stats.rows for n in layer} == {text + 4}
    for layer in session._layers:
        for _, _, positions in layer.heads():
            gone = set(range(len(inputs.ids))) - set(positions.tolist())
            assert bool(picture[torch.tensor(sorted(gone))].all())


def test_the_scaffold_of_the_tutorial_has_the_files_it_shows(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["new", "glance", "--kind", "cache-policy", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    tree = re.search(r"```text\nandes-glance/\n(.*?)```", (DOCS / "write-a-plugin.md").read_text(), re.DOTALL)
    assert tree
    shown = {name for name in re.findall(r"── (\S+)", tree[1]) if not name.endswith("/")}
    assert shown == {p.name for p in (tmp_path / "andes-glance").rglob("*") if p.is_file()}


def test_the_tutorial_lists_every_kind_of_scaffold() -> None:
    text = (DOCS / "write-a-plugin.md").read_text(encoding="utf-8")
    assert not [kind for kind in KINDS if f"`{kind}`" not in text]


def test_the_hooks_page_has_every_hook_with_signature_and_an_example_that_parses(generate: ModuleType) -> None:
    page = generate.hooks_page()
    hooks = [name for name in vars(hookspecs.Hooks) if name.startswith("andes_")]
    assert len(hooks) == 19
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == hooks
    for hook in hooks:
        section = page.partition(f"## {hook}\n")[2].partition("\n## ")[0]
        signature, example = re.findall(r"```python\n(.*?)\n```", section, re.DOTALL)
        assert signature.startswith(f"def {hook}(self")
        assert f"def {hook}(self" in example
        ast.parse(example)


def test_the_types_page_has_every_public_class(generate: ModuleType) -> None:
    named = re.findall(r"^## (\w+)$", generate.types_page(), re.MULTILINE)
    assert sorted(named) == types.__all__
    assert {"Session", "CachePolicy", "VisionEncoder"} <= set(named)


def test_the_written_pages_are_what_the_generator_writes(generate: ModuleType) -> None:
    assert sorted(generate.PAGES) == sorted(GENERATED)
    stale = [n for n, make in generate.PAGES.items() if (DOCS / n).read_text(encoding="utf-8") != make()]
    assert not stale, "run `python docs/generate.py`"


def test_every_picture_that_a_page_shows_exists_and_is_small() -> None:
    shown = {
        (page.parent / target).resolve(): alt
        for page in [*PAGES, *(DOCS / name for name in GENERATED)]
        for alt, target in re.findall(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    }
    assert shown
    assert not [path for path, alt in shown.items() if not path.is_file() or not alt]
    assert not [path for path in shown if path.stat().st_size > 200_000]
    made = set((DOCS / "pictures").glob("*.svg"))
    drawn = {path for path in shown if path.suffix == ".svg"}
    assert made == {path for path in drawn if path.parent != DOCS / "results"}  # those are drawn from JSON beside them


def test_the_log_is_newest_first_and_each_title_has_a_verdict() -> None:
    text = (DOCS / "log.md").read_text(encoding="utf-8")
    days = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert days == sorted(days, reverse=True)
    titles = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert titles
    verdicts = re.findall(r"^\| \*\*(\w+)\*\* \|", text, re.MULTILINE)
    assert not [title for title in titles if title.partition(":")[0] not in verdicts]
    void = [part for part in text.split("\n### ") if part.startswith("Void:")]
    assert all(re.search(r"\*Void by \[.*?\]\(#", part, re.DOTALL) for part in void)


def test_every_first_party_plugin_has_a_page_with_all_its_options(generate: ModuleType) -> None:
    from andes_sdk.cli.plugins import describe

    names = sorted(p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml"))
    assert sorted(p.stem for p in (DOCS / "plugins").glob("*.md")) == names
    for name in names:
        text = (DOCS / "plugins" / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {name}\n")
        project = (ROOT / "plugins" / name / "pyproject.toml").read_text(encoding="utf-8")
        # a distribution that registers no plugin has no options: it adds commands, methods or layouts
        assert ("<!-- options -->" in text) == ("andes_sdk.v1.plugins" in project)
        if "<!-- options -->" not in text:
            continue
        table = generate.options_table(name)
        assert not [o for o in describe(name)["options"] if f"| `{o['name']}` |" not in table]


def test_the_testing_page_lists_every_check(generate: ModuleType) -> None:
    assert "<!-- checks -->" in (DOCS / "testing.md").read_text(encoding="utf-8")
    text = generate.checks_list()
    assert len(re.findall("^- ", text, re.MULTILINE)) == len(checks_of(counts())) == sum(counts().values())


def test_the_architecture_page_maps_every_module_and_dependency() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    core = [p for p in (ROOT / "andes_sdk").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    names = [p.stem for p in core if p.stem != "__init__"]
    assert not [n for n in names if f"`{n}`" not in text and f"`{n}/`" not in text]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    libraries = [re.split(r"[\[<>=]", n)[0] for n in needed]
    assert not [n for n in libraries if not re.search(rf"^\|.*\b{n}\b", text, re.MULTILINE)]


def test_commands_that_the_start_page_shows_exist() -> None:
    text = (DOCS / "start.md").read_text(encoding="utf-8")
    shown = {line.split()[1] for line in text.splitlines() if line.startswith("andes ")}
    assert shown == {"plugins", "models", "explain", "chat", "generate", "batch", "train", "new"}
    for command in shown:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_the_options_of_decoding_are_those_of_the_code() -> None:
    import attrs

    from andes_sdk.runtime.generation import GenerationOptions

    section = (DOCS / "running.md").read_text(encoding="utf-8").partition("## Decoding")[2].partition("## Seeds")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert named == [f.name for f in attrs.fields(GenerationOptions)]


def test_a_result_file_becomes_a_section_and_its_absence_leaves_nothing(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "RESULTS", tmp_path / "none.json")
    assert generate.first_light() == ""
    (tmp_path / "some.json").write_text('{"easy_vqa": 0.5, "kinds": {"colour": 0.25}}')
    monkeypatch.setattr(generate, "RESULTS", tmp_path / "some.json")
    section = generate.first_light()
    assert "| easy vqa | 0.5 |" in section
    assert "| kinds: colour | 0.25 |" in section


def test_the_site_builds_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert not [r.getMessage() for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    hooks = (tmp_path / "site" / "hooks" / "index.html").read_text(encoding="utf-8")
    assert all(name in hooks for name in hookspecs.HOOKS)
    pages = [p.read_text(encoding="utf-8") for p in (tmp_path / "site").rglob("index.html")]
    assert not [marker for marker in ("<!-- options", "<!-- checks", "no-run") for p in pages if marker in p]


def test_every_extra_that_a_message_or_page_names_exists() -> None:
    projects = [tomllib.loads(p.read_text(encoding="utf-8"))["project"] for p in ROOT.glob("plugins/*/pyproject.toml")]
    projects.append(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    extras = {p["name"]: set(p.get("optional-dependencies", {})) for p in projects}
    sources = [*PAGES, *ROOT.glob("plugins/*/README.md"), *ROOT.glob("andes_sdk/**/*.py")]
    sources += ROOT.glob("plugins/*/andes_*/**/*.py")
    named = [
        (path.name, name, extra)
        for path in sources
        for name, found in re.findall(r"\b(andes-[a-z0-9]+)\[([a-z, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in re.split(", *", found)
    ]
    assert len(named) > 10
    assert not [n for n in named if n[2] not in extras[n[1]]]
