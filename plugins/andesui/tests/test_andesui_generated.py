"""Generated pages and their words: no browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest
from andes_andesui.generated import html
from andes_andesui.icons import ICONS, PURPOSES
from andes_andesui.layouts import LAYOUTS
from andes_andesui.screens import Options, plan
from andes_andesui.words import HELD, Words, held_out, languages, read_words

from andes_sdk.errors import InputError

VOID = {"meta", "input", "path", "circle", "rect", "br"}


class Checked(HTMLParser):
    """Tags must close in order; texts are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Shapes of icons."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] not in ("style", "title"):
            self.texts += data.split()


def texts(page: str) -> list[str]:
    parser = Checked()
    parser.feed(page)
    assert parser.open == []
    return parser.texts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["224x224", "390x844", "1280x800"])
def test_every_layout_is_html_with_words_at_every_size(layout: str, size: str) -> None:
    for screen in plan(Options(sources=("generated:3",), sizes=(size,), pages=1, layouts=(layout,))):
        assert len(texts(html(screen, Options(sources=(), layouts=(layout,))))) >= 2


def test_a_seed_gives_one_page_and_a_theme_changes_only_its_style() -> None:
    options = Options(sources=("generated:2:5",), sizes=("336x336",), pages=1, views=2)
    light, dark = sorted(
        (s for s in plan(options) if s.app.name == "generated-5-0"), key=lambda s: s.theme, reverse=True
    )
    assert html(light, options) == html(light, options)
    assert html(light, options) != html(dark, options)

    def without(page: str) -> str:
        return re.sub("<style>.*?</style>", "", page, flags=re.DOTALL)

    assert without(html(light, options)) == without(html(dark, options))
    other = Options(sources=("generated:2:5",), sizes=("336x336",), pages=1, views=2, seed=1)
    assert html(light, options) != html(light, other)


@pytest.mark.parametrize("code", languages())
def test_words_of_training_and_tests_are_never_the_same(code: str) -> None:
    train, test = (Words(languages()[code], Random(0), test=part) for part in (False, True))
    assert {held_out(train.word()) for _ in range(300)} == {False}
    assert {held_out(test.word()) for _ in range(300)} == {True}


def test_a_tenth_of_all_words_is_held_out() -> None:
    words = {languages()["en"].made(Random(n)) for n in range(3000)}
    share = sum(map(held_out, words)) / len(words)
    assert abs(share - HELD / 100) < 0.02  # 3.5 standard deviations
    assert held_out("Straße") == held_out("STRASSE")


def test_pages_of_test_applications_show_held_out_words_only() -> None:
    options = Options(
        sources=("generated:6",), sizes=("1280x800",), pages=1, layouts=("entries",), usual=0.0, test_share=1.0
    )
    for screen in plan(options):
        words = [w for w in texts(html(screen, options)) if re.fullmatch("[A-Za-z]+", w)]
        assert words
        assert all(map(held_out, words))


def test_words_of_a_file_take_the_place_of_the_languages(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(f"qx{n}" for n in range(400)))
    own = read_words(path)
    options = Options(sources=("generated:3",), sizes=("390x844",), pages=1, layouts=("article",), usual=0.0)
    for screen in plan(options):
        words = [w.strip(".").lower() for w in texts(html(screen, options, own))]
        assert words
        assert set(words) <= {*own}
    path.write_text("one\ntwo\n")
    with pytest.raises(InputError, match="too few words"):
        read_words(path)


def test_every_icon_has_a_purpose_and_every_label_is_of_a_known_action() -> None:
    assert set(ICONS) == set(PURPOSES)
    assert set(ICONS) <= set(languages()["en"].labels)
    known = set(languages()["en"].labels)
    assert {code: set(one.labels) - known for code, one in languages().items() if set(one.labels) - known} == {}


def test_languages_that_run_from_right_to_left_say_so() -> None:
    options = Options(sources=("generated:1",), sizes=("390x844",), pages=1, languages=("ar",))
    (screen,) = plan(options)
    assert '<html lang="ar" dir="rtl">' in html(screen, options)
