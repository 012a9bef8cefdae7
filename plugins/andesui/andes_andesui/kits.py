"""Kits of others whose pages are rendered: where they come from, under which licence, and which pages are screens."""

from __future__ import annotations

from attrs import frozen

KIT_FILE = "andesui.json"
"""In the folder of a fetched kit: what it is."""


@frozen
class Kit:
    """A package of a registry.

    Attributes:
        registry: npm or pypi.
        package, version: of the registry.
        licence: as the package states it; another one is refused.
        pages: patterns of the pages that are screens.
        needs: further npm packages, each with the folder in which pages look for it.
        ready: what a page must run before it shows anything.
    """

    registry: str
    package: str
    version: str
    licence: str
    pages: tuple[str, ...]
    needs: tuple[tuple[str, str], ...] = ()
    ready: str = ""


KITS: dict[str, Kit] = {}
