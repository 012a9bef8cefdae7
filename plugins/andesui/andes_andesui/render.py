"""Render screens into a folder: pictures, a line per screen, rows of tasks, a report. A stopped run goes on."""

from __future__ import annotations

import io
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from andes_sdk.errors import InputError
from andes_sdk.files import Journal, write_atomically, writing
from andes_andesui.browser import Browser, chromium, served
from andes_andesui.elements import counted
from andes_andesui.screens import Options, Screen, plan
from andes_andesui.words import read_words

SETTINGS, SCREENS = "render.json", "screens.jsonl"

log = logging.getLogger(__name__)


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
    journal = Journal(out / SCREENS)
    wanted = {screen.id: screen for screen in screens}
    done = {row["id"] for row in journal.keep(lambda row: row["id"] in wanted)}
    missing = [screen for screen in screens if screen.id not in done]
    begin = time.perf_counter()
    if missing:
        chromium()
        show(len(done), len(screens))
        for number, row in enumerate(_rendered(missing, options, words, out, jobs), 1):
            journal.add(row)
            show(len(done) + number, len(screens))
    seconds = time.perf_counter() - begin
    return {"screens": len(screens), "rendered": len(missing), "seconds": round(seconds, 2)}


def _settle(options: Options, out: Path) -> None:
    """Write down what `out` is made with.

    Raises:
        InputError: it was made with something else.
    """
    path, now = out / SETTINGS, options.to_dict()
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
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
    from playwright.sync_api import Error

    facts = {
        "id": screen.id, "app": screen.app.name, "page": screen.page, "split": "test" if screen.test else "train",
        "size": str(screen.size), "kind": screen.size.kind, "touch": screen.size.touch, "theme": screen.theme,
        "scale": screen.scale, "language": screen.language,
    }  # fmt: skip
    try:
        content, found = browser.shoot(screen)
    except Error as error:
        return {**facts, "error": str(error).partition("\n")[0]}
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
