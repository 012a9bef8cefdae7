"""Render screens into a folder: pictures, a line per screen, rows of tasks, a report. A stopped run goes on."""

from __future__ import annotations

import io
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from andes_andesui.browser import Browser, PageFailed, check_fonts, chromium, served
from andes_andesui.elements import counted
from andes_andesui.lines import Lines
from andes_andesui.report import write_report
from andes_andesui.screens import Options, Screen, plan
from andes_andesui.words import read_words
from andes_andesui.writing import write_rows
from andes_sdk.errors import InputError
from andes_sdk.files import write_atomically, writing
from andes_sdk.reading import parse_json

SETTINGS, SCREENS = "render.json", "screens.jsonl"

SHOWN = 36
"""Screens on the contact sheet."""


def render(
    options: Options, out: Path, jobs: int = 1, show: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Render what is missing in `out`, then write rows and the report -> counts.

    Args:
        jobs: browsers at a time.
        show: told how many of how many screens are done.

    Raises:
        InputError: a source is unknown, or `out` holds screens of other options.
        BackendUnavailable: there is no Chromium.
    """
    screens = plan(options)
    words = read_words(Path(options.words)) if options.words else ()
    _settle(options, out)
    lines, wanted = Lines(out / SCREENS), [screen.id for screen in screens]
    done = lines.places(set(wanted), failed=False)
    missing = [screen for screen in screens if screen.id not in done]
    begin = time.perf_counter()
    show(len(done), len(screens))
    if missing:
        chromium()
        check_fonts(sorted({screen.language for screen in missing if screen.language}))
        for number, row in enumerate(_rendered(missing, options, words, out, jobs), 1):
            lines.add(row)
            show(len(done) + number, len(screens))
    seconds = time.perf_counter() - begin
    return {
        "screens": len(screens), "rendered": len(missing), "seconds": round(seconds, 2),
        "per_second": round(len(missing) / seconds, 2), **_written(options, lines, wanted, out),
    }  # fmt: skip


def _written(options: Options, lines: Lines, wanted: list[str], out: Path) -> dict[str, Any]:
    """Write rows and the report -> what they hold, counted."""
    places = lines.places(set(wanted))
    order = [places[name] for name in wanted]
    counts = write_rows(lambda: lines.read(order), out, options.questions, options.seed)
    step = max(1, len(order) // SHOWN)
    shown = [screen for screen in lines.read(order[::step]) if "image" in screen]
    write_report(counts, shown[:SHOWN], out)
    return {
        "elements": counts.elements, "refused": sum(counts.refused.values()), "duplicates": len(counts.duplicates),
        "failed": len(counts.failed), "applications": len(counts.apps),
        **{f"{split}_{task}": n for split, part in counts.tasks.items() for task, n in part.items()},
    }  # fmt: skip


def _settle(options: Options, out: Path) -> None:
    """Write down what `out` is made with.

    Raises:
        InputError: it was made with something else.
    """
    path, now = out / SETTINGS, options.to_dict()
    if path.exists():
        try:
            before = parse_json(path.read_bytes())
            if not isinstance(before, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError) as error:
            fix = "remove it, if you know that the options are the same"
            raise InputError("cannot be read", who=str(path), why=str(error), fix=fix) from None
        other = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
        if other:
            why = ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in other)
            fix = "give the same options, or another --out"
            raise InputError("holds screens of other options", who=str(out), why=why, fix=fix)
    with writing(path):
        write_atomically(path, json.dumps(now, indent=2, ensure_ascii=False).encode())


def _rendered(
    screens: list[Screen], options: Options, words: tuple[str, ...], out: Path, jobs: int
) -> Iterator[dict[str, Any]]:
    """Rows of screens, as browsers in threads of their own finish them."""
    todo: queue.SimpleQueue[Screen | None] = queue.SimpleQueue()
    made: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
    jobs = min(jobs, len(screens))
    for screen in [*screens, *[None] * jobs]:
        todo.put(screen)
    stop = threading.Event()

    def work() -> None:
        try:
            with Browser.opened(options, words, addresses) as browser:
                while not stop.is_set() and (screen := todo.get()) is not None:
                    made.put(_row(browser, screen, out))
        except BaseException as error:
            made.put(error)
        else:
            made.put(None)

    with ExitStack() as stack:
        roots = {screen.app.root for screen in screens if screen.app.root}
        addresses = {root: stack.enter_context(served(root)) for root in roots}
        threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        try:
            working = jobs
            while working:
                row = made.get()
                if isinstance(row, BaseException):
                    raise row
                if row is None:
                    working -= 1
                else:
                    yield row
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _row(browser: Browser, screen: Screen, out: Path) -> dict[str, Any]:
    """Render one screen, write its picture -> its line. A page that fails has a line that says why."""
    facts = {
        "id": screen.id, "app": screen.app.name, "page": screen.page, "split": "test" if screen.test else "train",
        "size": str(screen.size), "kind": screen.size.kind, "touch": screen.size.touch, "theme": screen.theme,
        "scale": screen.scale, "language": screen.language,
    }  # fmt: skip
    try:
        content, found = browser.shoot(screen)
    except PageFailed as error:
        return {**facts, "error": str(error)}
    name = f"screens/{screen.id}.{browser.options.format}"
    with writing(out / name):
        write_atomically(out / name, content)
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
    elements, refused = counted(found["elements"], width, height, screen.scale)
    digest = blake2b(content, digest_size=12).hexdigest()
    return {
        **facts, "image": name, "width": width, "height": height, "digest": digest, "title": found["title"],
        "refused": refused, "elements": [element.to_dict() for element in elements],
    }  # fmt: skip
