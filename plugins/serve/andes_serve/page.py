"""The web page: a few files of this distribution, and what a browser may load with them."""

from __future__ import annotations

from importlib import resources

from starlette.responses import Response

from andes_serve.failures import Failure

TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:"
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Nothing comes from elsewhere, and nothing runs that is not a file of the page."""

FILES = ("index.html", "style.css", "chat.js", "boxes.js", "stream.js")


def page(name: str) -> Response:
    """A file of the page.

    Raises:
        Failure: there is none of that name.
    """
    if name not in FILES:
        raise Failure(404, f"there is no file {name!r}")
    content = (resources.files("andes_serve") / "web" / name).read_bytes()
    return Response(content, media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)
