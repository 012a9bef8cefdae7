"""Chromium, driven by playwright: a screen in, its picture and what is on it out."""

from __future__ import annotations

import base64
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import define, field

from andes_andesui.generated import html
from andes_andesui.kits import KITS
from andes_andesui.screens import Options, Screen, Size
from andes_sdk.errors import BackendUnavailable

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--hide-scrollbars", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
"""Pages reach this machine only."""

SECONDS = 20.0
"""A page that has not loaded by then has failed."""

STILL = """for (const sheet of [document.createElement("style")]) {
  sheet.textContent = "*,*::before,*::after{animation:none!important;transition:none!important;" +
    "caret-color:transparent!important;scroll-behavior:auto!important}";
  document.head.append(sheet);
}
for (const meta of [document.querySelector("meta[name=viewport]") ?? document.createElement("meta")]) {
  meta.name = "viewport";
  meta.content = "width=device-width,initial-scale=1,minimum-scale=1";
  document.head.append(meta);
}"""
"""Nothing moves, and a phone shows a page in its size: Chromium takes no true picture of one that is zoomed out."""

DARK = """for (const e of [document.documentElement, document.body]) {
  e.classList.add("dark", "dark-mode", "dark-version");
  for (const name of ["data-bs-theme", "data-coreui-theme", "data-theme"]) e.setAttribute(name, "dark");
}"""
"""How kits are told to be dark, beside what the browser tells them."""

SETTLED = """async () => {
  await document.fonts.ready;
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""


def chromium() -> str:
    """The program to run.

    Raises:
        BackendUnavailable: playwright or Chromium is not installed.
    """
    try:
        import playwright  # noqa: F401
    except ImportError:
        fix = "pip install 'andes-andesui[chromium]'"
        raise BackendUnavailable("playwright is not installed", who="andes ui render", fix=fix) from None
    for name in PROGRAMS:
        if path := shutil.which(name):
            return path
    why = f"none of {', '.join(PROGRAMS)} is on the PATH"
    raise BackendUnavailable(
        "Chromium is not installed", who="andes ui render", why=why, fix="apt-get install chromium"
    )


def check_fonts(languages: Sequence[str]) -> None:
    """Refuse languages that no installed font can show; where fontconfig is missing, nothing is known.

    Raises:
        BackendUnavailable: there is none for one of them.
    """
    program = shutil.which("fc-list")
    for code in languages if program else ():
        if not subprocess.run(
            [str(program), f":lang={code}", "family"], capture_output=True, check=False
        ).stdout.strip():
            fix = f"apt-get install {'fonts-noto-cjk' if code in ('zh', 'ja') else 'fonts-noto-core'}"
            raise BackendUnavailable(f"no font for {code} is installed", who="--languages", fix=fix)


class PageFailed(Exception):
    """A page that cannot be rendered; the text says why."""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks for much that a kit does not have."""


@contextmanager
def served(root: Path) -> Iterator[str]:
    """A folder on the loopback address -> its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@define
class Browser:
    """One Chromium with a page for each kind of screen. Of one thread only."""

    options: Options
    words: Sequence[str]
    addresses: dict[Path, str]
    playwright: Any
    browser: Any
    pages: dict[tuple[Size, str, float], tuple[Any, Any]] = field(factory=dict)
    script: str = field(factory=lambda: (Path(__file__).parent / "extract.js").read_text(encoding="utf-8"))

    @classmethod
    @contextmanager
    def opened(cls, options: Options, words: Sequence[str], addresses: dict[Path, str]) -> Iterator[Browser]:
        """A browser that is closed at the end.

        Raises:
            BackendUnavailable: it is not installed, or does not start.
        """
        program = chromium()
        from playwright.sync_api import Error, sync_playwright

        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        with sync_playwright() as playwright:
            try:
                browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS, *sandbox])
            except Error as error:
                what, fix = "Chromium does not start", "run it by hand with --headless and see what it says"
                raise BackendUnavailable(what, who=program, why=str(error), fix=fix) from None
            try:
                yield cls(options, words, addresses, playwright, browser)
            finally:
                browser.close()

    def shoot(self, screen: Screen) -> tuple[bytes, dict[str, Any]]:
        """The picture of a screen as a file's content, and what `extract.js` found.

        Raises:
            PageFailed: the page does not load, or is not shown in its size.
        """
        from playwright.sync_api import Error

        try:
            return self._shot(screen)
        except Error as error:
            if not self.browser.is_connected():
                what, fix = "Chromium has ended", "start the same command again: it goes on"
                raise BackendUnavailable(what, who=screen.id, why=str(error), fix=fix) from None
            self._forget(screen)
            raise PageFailed(str(error).partition("\n")[0]) from None

    def _shot(self, screen: Screen) -> tuple[bytes, dict[str, Any]]:
        page, session = self._page(screen)
        if screen.app.root is None:
            page.set_content(html(screen, self.options, self.words), wait_until="domcontentloaded")
        else:
            answer = page.goto(f"{self.addresses[screen.app.root]}/{quote(screen.page)}", wait_until="load")
            if answer is None or not answer.ok:
                raise PageFailed("the page is no longer there")
            page.evaluate(STILL)
            if screen.theme == "dark":
                page.evaluate(DARK)
            if screen.app.kit in KITS and KITS[screen.app.kit].ready:
                page.evaluate(KITS[screen.app.kit].ready)
            page.evaluate(SETTLED)
        found: dict[str, Any] = page.evaluate(self.script, {"characters": self.options.characters})
        if abs(found["scale"] / screen.scale - 1) > 0.01:
            raise PageFailed("the page is zoomed")
        kind = {"jpg": "jpeg"}.get(self.options.format, self.options.format)
        quality = {} if kind == "png" else {"quality": 90}
        how = {"format": kind, "optimizeForSpeed": kind == "png", "clip": found["seen"], **quality}
        shot = session.send("Page.captureScreenshot", how)
        return base64.b64decode(shot["data"]), found

    def _forget(self, screen: Screen) -> None:
        """Give up the page that a screen failed on: what is left of it must not spoil the next."""
        page, _ = self.pages.pop((screen.size, screen.theme, screen.scale))
        page.context.close()

    def _page(self, screen: Screen) -> tuple[Any, Any]:
        key = (screen.size, screen.theme, screen.scale)
        if key not in self.pages:
            context = self.browser.new_context(
                viewport={"width": screen.size.width, "height": screen.size.height},
                device_scale_factor=screen.scale,
                is_mobile=screen.size.touch,
                has_touch=screen.size.touch,
                color_scheme=screen.theme,
                reduced_motion="reduce",
                service_workers="block",
            )
            context.set_default_timeout(SECONDS * 1000)
            page = context.new_page()
            page.on("dialog", lambda dialog: dialog.dismiss())
            session = context.new_cdp_session(page)
            # a session that takes pictures sets the screen back to what it knows, so it must know it
            width, height = screen.size.width, screen.size.height
            known = {"width": width, "height": height, "deviceScaleFactor": screen.scale, "mobile": screen.size.touch}
            session.send("Emulation.setDeviceMetricsOverride", known)
            self.pages[key] = (page, session)
        return self.pages[key]
