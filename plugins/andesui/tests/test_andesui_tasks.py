"""Elements that count, rows of tasks and the split, from lists of elements: no browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from andes_andesui.browser import check_fonts
from andes_andesui.elements import Element, counted
from andes_andesui.lines import Lines
from andes_andesui.render import render
from andes_andesui.report import write_report
from andes_andesui.screens import Options, Screen, Size, is_test, plan
from andes_andesui.tasks import place, rows, turns
from andes_andesui.writing import write_rows
from andes_training.data.boxes import find_boxes
from andes_training.data.inspection import problems
from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe
from PIL import Image

from andes_sdk.errors import BackendUnavailable, InputError

FINE = {"visible": True, "cut": False, "hit": True, "covered": False, "name": "", "icon": False, "state": {}}


def raw(text: str, box: tuple[float, ...], role: str = "button", **more: Any) -> dict[str, Any]:
    return {**FINE, "text": text, "box": list(box), "role": role, **more}


def element(text: str, box: tuple[float, float, float, float], role: str = "button", **more: Any) -> dict[str, Any]:
    return Element(box=box, role=role, text=text, **more).to_dict()


def screen(number: int, split: str, elements: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": f"s{number}", "app": f"app{number}", "page": "0", "split": split, "size": "100x50", "kind": "small",
        "touch": False, "theme": "light", "scale": 1.0, "language": "en", "image": f"screens/s{number}.png",
        "width": 100, "height": 50, "digest": str(number), "title": "t", "refused": {}, "elements": elements, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"visible": False}, "hidden"),
        ({"box": [60, 10, 102, 30]}, "outside"),
        ({"box": [60, 10, 90, 21.9]}, "small"),
        ({"cut": True}, "cut"),
        ({"hit": False, "covered": True}, "covered"),
        ({"covered": True}, "covered"),
        ({"text": ""}, "nameless"),
        ({"text": "", "name": "…"}, "nameless"),
    ],
)
def test_an_element_that_nobody_sees_whole_is_refused_with_its_reason(change: dict[str, Any], reason: str) -> None:
    kept, refused = counted([{**raw("Save", (10, 10, 50, 30)), **change}], 100, 50, 2.0)
    assert (kept, refused) == ([], {reason: 1})


def test_a_text_is_unique_only_if_nothing_else_that_is_seen_says_it() -> None:
    found = [
        raw("Save", (0, 0, 20, 10)),
        raw("SAVE", (0, 45, 20, 60)),  # half below the screen, but a person reads it
        raw("Open", (30, 0, 50, 10)),
        raw("Open", (30, 60, 50, 70)),  # not on the screen at all
        raw("Mail", (60, 0, 80, 10), "text"),
        raw("", (60, 12, 90, 22), "field", name="Mail"),  # a field is told from its label
    ]
    kept, refused = counted(found, 100, 50, 1.0)
    assert [(e.called, e.role, e.unique) for e in kept] == [
        ("Save", "button", False),
        ("Open", "button", True),
        ("Mail", "text", True),
        ("Mail", "field", True),
    ]
    assert refused == {"outside": 2}


def test_a_box_is_kept_within_its_picture() -> None:
    (kept,), _ = counted([raw("Save", (-0.5, 3.25, 20, 50.9))], 100, 50, 1.0)
    assert kept.box == (0, 3.2, 20, 50)


def test_grounding_asks_for_unique_elements_only_and_answers_with_their_box_in_pixels() -> None:
    seen = screen(1, "train", [element("Save", (10.4, 5, 29.6, 15)), element("Save", (40, 5, 60, 15), unique=False)])
    (row,) = rows(seen, 8, 0)["grounding"]
    assert (row["box"], row["text"], row["kind"], row["role"]) == ([10, 5, 30, 15], "Save", "text", "button")
    assert "“Save”" in row["instruction"]
    assert (row["width"], row["height"], row["size"], row["id"]) == (100, 50, "100x50", "s1-g0")


def test_an_icon_is_called_by_its_name_and_asked_for_by_what_it_does() -> None:
    seen = screen(1, "train", [element("", (0, 0, 10, 10), name="search", icon=True)])
    made = rows(seen, 8, 0)
    assert made["grounding"][0]["kind"] == "icon"
    assert made["referring"][0]["text"] == "search"
    assert [row["instruction"] for row in made["qa"]] == ["Which icon do you press to look for something?"]


def test_questions_ask_for_neighbours_states_values_and_cells() -> None:
    seen = screen(
        1, "train",
        [
            element("Name", (0, 0, 20, 10), "cell"),
            element("Price", (40, 0, 60, 10), "cell"),
            element("Apple", (0, 12, 20, 22), "cell"),
            element("3.50", (40, 12, 60, 22), "cell", row="Apple", column="Price"),
            element("", (0, 30, 10, 40), "checkbox", name="Fresh", state={"checked": True}),
            element("", (20, 30, 30, 40), "checkbox", name="Sour", state={"checked": False}),
            element("red", (50, 30, 90, 40), "field", name="Colour", state={"value": "red"}),
        ],
    )  # fmt: skip
    asked = {row["instruction"]: row["box"] for row in rows(seen, 60, 0)["qa"]}
    assert asked["Where is “Price” of “Apple”?"] == [40, 12, 60, 22]
    assert asked["Which check box is ticked?"] == [0, 30, 10, 40]
    assert asked["Which field says “red”?"] == [50, 30, 90, 40]
    assert asked["What is directly to the right of the cell “Apple”?"] == [40, 12, 60, 22]
    assert asked["What is directly below the cell “Name”?"] == [0, 12, 20, 22]
    assert "What is directly below the cell “3.50”?" not in asked  # two thirds of the field lie elsewhere


def test_what_stands_to_the_right_is_not_told_where_two_elements_share_the_place() -> None:
    both = [element("b", (30, 0, 60, 10)), element("c", (40, 1, 50, 11), "text")]
    seen = screen(1, "train", [element("a", (0, 0, 20, 10)), *both])
    assert not [row for row in rows(seen, 60, 0)["qa"] if "right of the button “a”" in row["instruction"]]


def test_a_description_tells_role_place_neighbour_and_state() -> None:
    seen = screen(
        1,
        "train",
        [element("", (80, 30, 99, 49), "switch", name="Sound", state={"checked": True}), element("Go", (0, 0, 9, 9))],
    )
    answers = [row["answer"] for row in rows(seen, 8, 0)["description"]]
    assert answers[0] == "It has a switch (“Sound”) and a button (“Go”)."
    assert sorted(answers[1:]) == [
        "The button “Go”, at the top left of the screen.",
        "The switch “Sound”, at the bottom right of the screen. It is on.",
    ]


def test_boxes_in_texts_are_thousandths_that_training_reads() -> None:
    text = place([10, 5, 30, 50], 100, 50)
    assert text == "<|box_start|>(100,100),(300,1000)<|box_end|>"
    assert find_boxes(text) == [(100, 100, 300, 1000)]


def test_rows_become_conversations_with_the_box_in_answer_or_question() -> None:
    seen = screen(1, "train", [element("Save", (10, 5, 30, 15))])
    made = rows(seen, 8, 0)
    box = "<|box_start|>(100,100),(300,300)<|box_end|>"
    assert turns("grounding", made["grounding"][0])[1]["content"] == box
    asked, answer = turns("referring", made["referring"][0])
    assert asked["content"][0] == {"type": "image"}
    assert asked["content"][1]["text"].endswith(box)
    assert answer["content"] == "Save"
    assert box not in turns("description", made["description"][0])[0]["content"][1]["text"]  # of the whole screen


def written(folder: Path, screens: list[dict[str, Any]]) -> Any:
    for number, seen in enumerate(s for s in screens if "image" in s):
        path = folder / seen["image"]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (seen["width"], seen["height"]), (number * 40, 0, 0)).save(path)
    return write_rows(lambda: iter(screens), folder, 8, 0)


def test_files_are_split_and_training_reads_every_line(tmp_path: Path) -> None:
    counts = written(
        tmp_path,
        [
            screen(1, "train", [element("Save", (10, 5, 30, 15)), element("Open", (40, 5, 60, 15))]),
            screen(2, "test", [element("save", (10, 5, 30, 15)), element("Print", (40, 5, 60, 15))]),
            screen(3, "test", [element("Save", (10, 5, 30, 15))], digest="1"),
            {"id": "s4", "app": "app4", "page": "p", "split": "train", "size": "100x50", "error": "timeout"},
        ],
    )
    assert (counts.duplicates, counts.failed, counts.new) == (["s3"], {"app4/p 100x50": "timeout"}, 1)
    assert counts.tasks["train"] == {"grounding": 2, "referring": 2, "description": 3, "qa": 1}
    rows_of = {
        s: [json.loads(line) for line in (tmp_path / s / "grounding.jsonl").read_text().splitlines()]
        for s in ("train", "test")
    }
    assert {r["app"] for r in rows_of["train"]} == {"app1"}
    assert {r["app"] for r in rows_of["test"]} == {"app2"}
    assert {r["text"]: r["new"] for r in rows_of["test"]} == {"save": False, "Print": True}
    assert (tmp_path / "train" / rows_of["train"][0]["image"]).is_file()
    for split in ("train", "test"):
        samples = stage_samples([DataRecipe(path=tmp_path / split / "lines")], Path())
        assert len(samples) == 4
        assert list(problems(samples)) == []


def test_the_report_tells_what_was_refused_and_shows_a_contact_sheet(tmp_path: Path) -> None:
    seen = screen(1, "train", [element("Save", (10, 5, 30, 15))], refused={"covered": 3})
    write_report(written(tmp_path, [seen]), [seen], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "3 of 4 elements were refused (75.0%)" in page
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["shorter_side"]["below 16"] == 1
    assert facts["roles"] == {"button": 1}
    with Image.open(tmp_path / "contact.png") as sheet:
        assert sheet.getpixel((10, 5)) == (0, 102, 204)  # the corner of the box, in the colour of controls


def test_applications_are_split_whole_and_always_in_the_same_way() -> None:
    options = Options(sources=("generated:60:3",), test_share=0.3, sizes=("small", "mobile"))
    splits: dict[str, set[bool]] = {}
    for one in plan(options):
        splits.setdefault(one.app.name, set()).add(one.test)
    assert all(len(parts) == 1 for parts in splits.values())
    assert 8 <= sum(True in parts for parts in splits.values()) <= 28  # 18 expected, 3 standard deviations
    named = Options(sources=("generated:9:3",), test_apps=("generated-3-4",))
    assert [app for app in splits if is_test(app, named)] == ["generated-3-4"]


def test_every_view_of_a_folder_is_planned_and_one_of_a_generated_page(tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "a.html").write_text("<p>a</p>")
    options = Options(sources=(str(tmp_path / "kit"), "generated:2:1"), sizes=("mobile", "1280x800"), pages=3)
    found = plan(options)
    assert [len([s for s in found if s.app.name == name]) for name in ("kit", "generated-1-0")] == [6, 3]
    assert len({s.id for s in found}) == len(found)
    limited = plan(Options(sources=options.sources, sizes=options.sizes, pages=3, limit=4))
    assert [s.app.name for s in limited] == ["kit", "generated-1-0", "generated-1-1", "kit"]


@pytest.mark.parametrize("text", ["{", "[]", '{"name": 1}', '{"pages": "*.html"}', '{"pages": ["../*.html"]}'])
def test_what_a_folder_says_of_itself_is_checked(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.html").write_text("<p>a</p>")
    (tmp_path / "andesui.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read") as caught:
        plan(Options(sources=(str(tmp_path),)))
    assert caught.value.who.endswith("andesui.json")


def test_sizes_that_are_upright_and_narrow_are_phones() -> None:
    assert Size.parsed("mobile") == [Size(390, 844, True), Size(360, 740, True)]
    assert Size.parsed("1280x800") == [Size(1280, 800, False)]
    assert Size.parsed("820x1180m") == [Size(820, 1180, True)]
    assert [size.kind for size in Size.parsed("small")] == ["small", "small", "small"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sizes": ("huge",)}, "no size: 'huge'"),
        ({"themes": ("blue",)}, "unknown: blue"),
        ({"languages": ("xx",)}, "unknown: xx"),
        ({"scales": (9.0,)}, "no scale"),
        ({"sources": ("/nowhere",)}, "no such source"),
        ({"sources": ("generated:1:1", "generated:1:1")}, "two applications are called generated-1-0"),
        ({"test_apps": ("kit",)}, "unknown: kit"),
    ],
)
def test_what_cannot_be_rendered_is_told_before_a_browser_starts(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan(Options(**{"sources": ("generated:1",), **change}))


def test_a_torn_last_line_is_cut_off_and_the_others_are_found_in_any_order(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "screens.jsonl")
    assert lines.places({"a"}) == {}
    for name in "abc":
        lines.add({"id": name, "text": "é" * 3})
    whole = lines.path.read_bytes()
    lines.path.write_bytes(whole + b'{"id": "d", "te')
    places = lines.places({"a", "c", "d"})
    assert set(places) == {"a", "c"}
    assert lines.path.read_bytes() == whole
    assert [row["id"] for row in lines.read([places["c"], places["a"]])] == ["c", "a"]
    lines.add({"id": "a", "error": "timeout"})
    assert lines.places({"a"}, failed=False) == {"a": 0}
    assert lines.places({"a"})["a"] == len(whole)
    lines.path.write_bytes(whole + b"[1]\n")
    with pytest.raises(InputError, match="is no line of a screen") as caught:
        lines.places({"a"})
    assert caught.value.who.endswith(":4")


def test_without_chromium_the_command_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed: pip install 'andes-andesui[chromium]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="Chromium is not installed") as caught:
        render(Options(sources=("generated:1",)), tmp_path / "out")
    assert caught.value.fix == "apt-get install chromium"


def test_without_playwright_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "playwright", None)
    with pytest.raises(BackendUnavailable, match="playwright is not installed") as caught:
        render(Options(sources=("generated:1",)), tmp_path / "out")
    assert caught.value.fix == "pip install 'andes-andesui[chromium]'"


def test_a_folder_of_other_options_is_refused_and_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "playwright", None)
    with pytest.raises(BackendUnavailable):
        render(Options(sources=("generated:1",)), tmp_path)
    with pytest.raises(InputError, match="holds screens of other options") as caught:
        render(Options(sources=("generated:1",), seed=5), tmp_path)
    assert caught.value.why == "seed was 0, now 5"


def test_a_language_without_a_font_is_told_with_the_package_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fc-list").write_text('#!/bin/sh\n[ "$1" = ":lang=ja" ] || echo "A Font"\n')
    (tmp_path / "fc-list").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    check_fonts(["en", "ar"])
    with pytest.raises(BackendUnavailable, match="no font for ja") as caught:
        check_fonts(["en", "ja"])
    assert caught.value.fix == "apt-get install fonts-noto-cjk"


def test_the_identity_of_a_screen_is_that_of_what_it_shows() -> None:
    (one,) = plan(Options(sources=("generated:1",), pages=1, sizes=("224x224",), themes=("dark",)))
    (again,) = plan(Options(sources=("generated:1",), pages=1, sizes=("224x224",), themes=("dark",)))
    (other,) = plan(Options(sources=("generated:1",), pages=1, sizes=("224x224",), themes=("light",)))
    assert isinstance(one, Screen)
    assert one.id == again.id != other.id
