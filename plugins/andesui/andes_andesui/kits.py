"""Kits of others whose pages are rendered: where they come from, under which licence, and which pages are screens.

None is part of this distribution. `andes ui fetch` gets them.
"""

from __future__ import annotations

from attrs import frozen

KIT_FILE = "andesui.json"
"""In the folder of a fetched kit: what it is, and which of its pages are screens."""


@frozen
class Kit:
    """A package of a registry.

    Attributes:
        registry: npm or pypi.
        package, version: of the registry.
        licence: as the package states it; another one is refused.
        pages: patterns of the pages that are screens.
        needs: a further npm package with its version and licence, for fonts that pages would load from elsewhere.
        ready: what a page must run before it shows what it has.
        inner: the folder of the package that is served.
    """

    registry: str
    package: str
    version: str
    licence: str
    pages: tuple[str, ...]
    needs: tuple[str, str, str] | None = None
    ready: str = ""
    inner: str = ""


STYLE = """async (path) => {
  const sheet = document.createElement("link");
  sheet.rel = "stylesheet";
  sheet.href = path;
  const loaded = new Promise((done) => { sheet.onload = sheet.onerror = done; });
  document.head.append(sheet);
  await loaded;
}"""
SYMBOLS = f"""async () => {{
  await ({STYLE})("/needed/iconfont/material-icons.css");
  const style = document.createElement("style");
  style.textContent = "[data-glyph]::before{{content:attr(data-glyph)}}";
  document.head.append(style);
  for (const e of document.querySelectorAll("[class*=material-icons]")) {{
    e.dataset.glyph = e.textContent.trim();
    e.setAttribute("aria-label", e.dataset.glyph.replace(/_/g, " "));
    e.textContent = "";
  }}
}}"""
"""The names of icons are no text of the page: they become what stands before an empty element."""

AWESOME = f"""async () => {{
  await ({STYLE})("/needed/css/all.min.css");
  document.querySelector(".preloader")?.remove();
}}"""

START = """() => {
  if (!window.core) return;
  Math.seedrandom?.("andesui");
  core.startEpisodeReal();
  const score = document.getElementById("reward-display");
  if (score) score.style.display = "none";
}"""

FONT = ("@fortawesome/fontawesome-free", "5.15.4", "(CC-BY-4.0 AND OFL-1.1 AND MIT)")

KITS = {
    "admin-lte": Kit(
        "npm", "admin-lte", "3.2.0", "MIT",
        ("index*.html", "starter.html", "pages/*.html", "pages/*/*.html"), FONT, AWESOME,
    ),
    "admin-lte-4": Kit("npm", "admin-lte", "4.0.2", "MIT", ("index*.html", "[!d]*/*.html"), inner="dist"),
    "sb-admin-2": Kit("npm", "startbootstrap-sb-admin-2", "4.1.4", "MIT", ("*.html",)),
    "material-dashboard": Kit(
        "npm", "material-dashboard", "3.1.0", "MIT", ("pages/*.html",), ("material-icons", "1.13.14", "Apache-2.0"),
        SYMBOLS,
    ),
    "soft-ui-dashboard": Kit("npm", "soft-ui-dashboard", "1.0.1", "MIT", ("pages/*.html",), FONT, AWESOME),
    "startbootstrap-agency": Kit("npm", "startbootstrap-agency", "7.0.12", "MIT", ("*.html",), inner="dist"),
    "startbootstrap-creative": Kit("npm", "startbootstrap-creative", "7.0.7", "MIT", ("*.html",), inner="dist"),
    "miniwob": Kit(
        "pypi", "miniwob", "1.1.0", "MIT", ("miniwob/*.html",), ready=START, inner="miniwob/html"
    ),
}  # fmt: skip
"""Kits by name."""
