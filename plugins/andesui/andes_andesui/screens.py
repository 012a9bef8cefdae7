"""What is to be rendered: applications and their pages, at sizes, themes, scales and languages."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from random import Random
from typing import Any

from attrs import asdict, field, frozen

from andes_andesui.kits import KIT_FILE
from andes_andesui.layouts import LAYOUTS
from andes_andesui.words import languages
from andes_sdk.errors import InputError
from andes_sdk.files import confined
from andes_sdk.reading import parse_json

SIZES = {
    "desktop": ("1280x800", "1024x768"),
    "mobile": ("390x844", "360x740"),
    "small": ("224x224", "336x336", "448x448"),
}
"""Names for several sizes."""

THEMES = ("light", "dark")


@frozen
class Size:
    """Width and height of a screen in pixels of the page, and whether it is one that is touched."""

    width: int
    height: int
    touch: bool

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def kind(self) -> str:
        """What reports call it."""
        if max(self.width, self.height) <= 512:
            return "small"
        return "mobile" if self.touch else "desktop"

    @classmethod
    def parsed(cls, text: str) -> list[Size]:
        """The sizes that `desktop`, `390x844` or `820x1180m` means. Upright and at most 500 wide, or `m`: a phone."""
        found = []
        for one in SIZES.get(text, (text,)):
            match = re.fullmatch(r"(\d{2,4})x(\d{2,4})(m?)", one)
            if match is None or not (100 <= int(match[1]) <= 4000 and 100 <= int(match[2]) <= 4000):
                fix = f"give WIDTHxHEIGHT from 100 to 4000, with m at the end for touch, or one of {', '.join(SIZES)}"
                raise InputError(f"no size: {text!r}", who="--sizes", fix=fix)
            width, height = int(match[1]), int(match[2])
            found.append(cls(width, height, bool(match[3]) or (width <= 500 and height > width * 1.2)))
        return found


@frozen
class Application:
    """Pages of one kit, or of one generated application.

    Attributes:
        root: the folder that is served; None for generated pages.
        pages: paths within it; numbers for generated pages.
        kit: the known kit that it is a copy of.
    """

    name: str
    pages: tuple[str, ...]
    root: Path | None = None
    kit: str = ""


@frozen(kw_only=True)
class Options:
    """What `andes ui render` was asked for. A folder goes on only with the same options."""

    sources: tuple[str, ...]
    sizes: tuple[str, ...] = ("desktop", "mobile")
    themes: tuple[str, ...] = THEMES
    scales: tuple[float, ...] = (1.0,)
    languages: tuple[str, ...] = ("en",)
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    pages: int = 4
    views: int | None = None
    limit: int | None = None
    seed: int = 0
    words: str = ""
    usual: float = 0.5
    invented: float = 0.4
    test_share: float = 0.1
    test_apps: tuple[str, ...] = ()
    characters: bool = False
    format: str = "png"
    questions: int = 8

    def __attrs_post_init__(self) -> None:
        _known("--themes", self.themes, THEMES)
        _known("--languages", self.languages, languages())
        _known("--layouts", self.layouts, LAYOUTS)
        _known("--format", (self.format,), ("png", "jpg", "webp"))
        if not all(0.5 <= scale <= 4 for scale in self.scales):
            raise InputError("no scale", who="--scales", why=f"got {self.scales}", fix="give numbers from 0.5 to 4")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON gives it back."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data


def _known(who: str, given: Sequence[str], known: Any) -> None:
    wrong = [name for name in given if name not in known]
    if wrong or not given:
        raise InputError(
            f"unknown: {', '.join(wrong)}" if wrong else "nothing given",
            who=who,
            fix=f"give some of {', '.join(known)}",
        )


@frozen
class Screen:
    """One picture to make."""

    app: Application
    page: str
    size: Size
    theme: str
    scale: float
    language: str
    test: bool
    id: str = field(init=False)

    @id.default
    def _id(self) -> str:
        facts = f"{self.app.name}/{self.page}/{self.size}/{self.theme}/{self.scale:g}/{self.language}"
        name = re.sub(r"[^\w.-]+", "-", f"{self.app.name}-{self.page}").strip("-")[:60]
        return f"{name}-{hashlib.blake2b(facts.encode(), digest_size=5).hexdigest()}"


def applications(options: Options) -> list[Application]:
    """The applications of all sources.

    Raises:
        InputError: a source is none, or two applications have one name.
    """
    found: list[Application] = []
    for source in options.sources:
        match = re.fullmatch(r"generated:(\d+)(?::(\d+))?", source)
        if match:
            seed = match[2] or str(options.seed)
            pages = tuple(map(str, range(options.pages)))
            found += [Application(f"generated-{seed}-{number}", pages) for number in range(int(match[1]))]
        else:
            found.append(_folder(Path(source)))
    names = [app.name for app in found]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        why = "the split by application needs a name for each"
        raise InputError(
            f"two applications are called {twice[0]}", who="andes ui render", why=why, fix="rename a folder"
        )
    return found


def _folder(root: Path) -> Application:
    facts: dict[str, Any] = {}
    if not root.is_dir():
        fix = "give a folder with html pages, or generated:N"
        raise InputError("no such source", who=str(root), why="it is no folder", fix=fix)
    if (root / KIT_FILE).is_file():
        facts = _facts(root / KIT_FILE)
    globs = facts.get("pages", ["**/*.html", "**/*.htm"])
    pages = sorted({p.relative_to(root).as_posix() for glob in globs for p in root.glob(glob) if p.is_file()})
    pages = [page for page in pages if "node_modules/" not in page]
    if not pages:
        why = f"no file fits {', '.join(globs)}"
        raise InputError("no page in this folder", who=str(root), why=why, fix="give a folder with html pages")
    return Application(facts.get("name", root.resolve().name), tuple(pages), root.resolve(), facts.get("name", ""))


def _facts(path: Path) -> dict[str, Any]:
    """What a folder says of itself."""
    try:
        facts = parse_json(path.read_bytes())
        if not isinstance(facts, dict) or not isinstance(facts.get("name", ""), str):
            raise ValueError("it is no object, or its name no text")
        pages = facts.get("pages", [])
        if not isinstance(pages, list) or not all(isinstance(glob, str) and confined(glob) for glob in pages):
            raise ValueError("pages must be a list of patterns below the folder")
    except (OSError, ValueError) as error:
        fix = 'write {"name": "mine", "pages": ["*.html"]}, or remove the file'
        raise InputError("cannot be read", who=str(path), why=str(error), fix=fix) from None
    return facts


def is_test(app: str, options: Options) -> bool:
    """Whether an application is held out: as it is named in `test_apps`, else by a hash of its name."""
    if options.test_apps:
        return app in options.test_apps
    value = int.from_bytes(hashlib.blake2b(app.encode(), digest_size=4).digest(), "big")
    return value < options.test_share * 2**32


def plan(options: Options) -> list[Screen]:
    """Every screen that the options ask for, in one order.

    A page of a folder is rendered in all views (sizes, themes, scales), or in `views` of them. A generated page is
    rendered in one view that is drawn, or in `views`; views of it differ in language, too.

    Raises:
        InputError: a source or a name is unknown.
    """
    sizes = [size for text in options.sizes for size in Size.parsed(text)]
    apps = applications(options)
    missing = sorted(set(options.test_apps) - {app.name for app in apps})
    if missing:
        raise InputError(f"unknown: {', '.join(missing)}", who="--test-apps", fix="give names of applications")
    rows: list[list[Screen]] = []
    for app in apps:
        test = is_test(app.name, options)
        spoken = options.languages if app.root is None else ("",)
        views = [
            (size, theme, scale, language)
            for size in sizes
            for theme in options.themes
            for scale in options.scales
            for language in spoken
        ]
        wanted = options.views if options.views is not None else (1 if app.root is None else len(views))
        rows.append([])
        for page in app.pages:
            drawn = views
            if wanted < len(views):
                drawn = Random(f"{options.seed}/{app.name}/{page}").sample(views, wanted)
            rows[-1] += [Screen(app, page, *view, test) for view in drawn]
    if options.limit is None:
        return list(chain(*rows))
    turns = zip_longest(*rows)  # some of each application
    return [screen for turn in turns for screen in turn if screen is not None][: options.limit]
