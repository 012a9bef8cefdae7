"""Generated pages: from a seed to HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from random import Random

from andes_andesui.layouts import page
from andes_andesui.looks import Look
from andes_andesui.parts import Parts
from andes_andesui.screens import Options, Screen
from andes_andesui.words import Words, languages


def html(screen: Screen, options: Options, own: Sequence[str] = ()) -> str:
    """The page of a screen. One screen always gives one page; a theme changes its colours only.

    Args:
        own: words in place of the language's.
    """
    small = min(screen.size.width, screen.size.height) < 480 and not screen.size.touch
    look = Look.drawn(Random(f"{options.seed}/{screen.app.name}"), small)
    random = Random(f"{options.seed}/{screen.app.name}/{screen.page}/{screen.size}/{screen.language}")
    language = languages()[screen.language]
    words = Words(language, random, screen.test, options.usual, options.invented, own)
    parts = Parts(random, words, look, screen.size.width, screen.size.height)
    inner = page(parts, random.choice(options.layouts))
    direction = "rtl" if language.right_to_left else "ltr"
    return (
        f'<!doctype html><html lang="{language.code}" dir="{direction}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1,minimum-scale=1">'
        f"<title>{escape(words.phrase(1, 2))}</title><style>{look.css(screen.theme == 'dark', language.right_to_left)}"
        f"</style></head><body>{inner}</body></html>"
    )
