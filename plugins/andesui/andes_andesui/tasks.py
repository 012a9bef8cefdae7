"""Four tasks about a screen: grounding, referring, description, and questions whose answer is a place.

Every answer follows from what the browser said of the elements. Instructions are English, the texts of any language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from andes_andesui.elements import NAMED, Element
from andes_andesui.icons import PURPOSES

TASKS = ("grounding", "referring", "description", "qa")

LONGEST = 80
"""Characters of a text that names an element; a longer one is a paragraph."""

POINT = {
    "button": ("Click “{}”.", "Press the button “{}”.", "Where is the button “{}”?"),
    "link": ("Open the link “{}”.", "Click “{}”.", "Where is the link “{}”?"),
    "tab": ("Go to “{}”.", "Select the tab “{}”.", "Where is the tab “{}”?"),
    "menu item": ("Choose “{}”.", "Where is the menu item “{}”?"),
    "option": ("Choose “{}”.", "Where is the option “{}”?"),
    "field": ("Type into the field “{}”.", "Where do you enter “{}”?", "Click the field “{}”."),
    "list": ("Open the list “{}”.", "Where do you choose “{}”?"),
    "checkbox": ("Tick the check box “{}”.", "Where is the check box of “{}”?"),
    "radio button": ("Choose the radio button “{}”.", "Where is the radio button of “{}”?"),
    "switch": ("Switch “{}” on or off.", "Where is the switch of “{}”?"),
    "slider": ("Drag the slider “{}”.", "Where is the slider “{}”?"),
    "heading": ("Find the heading “{}”.", "Where does it say “{}”?"),
    "cell": ("Find the table cell “{}”.", "Where does it say “{}”?"),
    "text": ("Find the text “{}”.", "Where does it say “{}”?"),
    "icon": ("Find the {} icon.", "Where is the {} icon?", "Click the {} icon."),
    "image": ("Find the picture “{}”.", "Where is the picture “{}”?"),
}
"""Role -> how somebody asks for an element."""

REFER = ("What is the element in the box called?", "Name what is in the box.", "What does the box show?")
DESCRIBE = ("Describe what is in the box.", "What is in the box, and where is it?")
SCREEN = "Describe this screen."


def rows(screen: dict[str, Any], questions: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Task -> rows of a screen, each with `instruction`, `box` in pixels, `text` and `kind`.

    Args:
        screen: a line of `screens.jsonl`.
        questions: rows of each task, at most.
        seed: of what is chosen.
    """
    elements = [Element.from_dict(facts) for facts in screen["elements"]]
    random = Random(f"{seed}/{screen['id']}")
    unique = [e for e in elements if e.unique and len(e.called) <= LONGEST]
    found = {
        "grounding": [_grounding(e, random) for e in _chosen(unique, questions, random)],
        "referring": [_referring(e, random) for e in _chosen(unique, questions, random)],
        "description": _descriptions(screen, elements, unique, questions, random),
        "qa": _answers(elements, unique, questions, random),
    }
    shared = {key: screen[key] for key in ("image", "width", "height", "size", "app", "language")}
    return {
        task: [{"id": f"{screen['id']}-{task[0]}{n}", **shared, **row} for n, row in enumerate(part)]
        for task, part in found.items()
    }


def _chosen(elements: Sequence[Element], count: int, random: Random) -> list[Element]:
    """Some elements by chance, half of them things to press or fill in, where there are so many."""
    texts = [e for e in elements if e.role in ("text", "heading", "cell")]
    rest = [e for e in elements if e not in texts]
    random.shuffle(texts)
    random.shuffle(rest)
    half = max(count // 2, count - len(texts))
    picked = [*rest[:half], *texts[: count - min(half, len(rest))]]
    random.shuffle(picked)
    return picked


def _row(element: Element, instruction: str, **more: Any) -> dict[str, Any]:
    box = [round(side) for side in element.box]
    kind = "icon" if element.icon else "text"
    return {"instruction": instruction, "box": box, "text": element.called, "kind": kind, "role": element.role, **more}


def _grounding(element: Element, random: Random) -> dict[str, Any]:
    role = "icon" if element.icon and element.role == "button" else element.role
    return _row(element, random.choice(POINT.get(role, POINT["text"])).format(element.called))


def _referring(element: Element, random: Random) -> dict[str, Any]:
    return _row(element, random.choice(REFER))


def _named(element: Element) -> str:
    """An element within a sentence."""
    if element.icon:
        role = element.role if element.role in ("icon", "image") else f"{element.role} with an icon"
        return f"{role}, “{element.called}”"
    return f"{element.role} “{element.called}”"


def _place(element: Element, width: int, height: int) -> str:
    """Where on the screen, in thirds."""
    x, y = element.centre
    across = ("left", "", "right")[min(2, int(3 * x / width))]
    down = ("top", "", "bottom")[min(2, int(3 * y / height))]
    if not across and not down:
        return "in the middle of the screen"
    return f"at the {' '.join(part for part in (down, across) if part)} of the screen"


def _descriptions(
    screen: dict[str, Any], elements: list[Element], unique: list[Element], questions: int, random: Random
) -> list[dict[str, Any]]:
    width, height = screen["width"], screen["height"]
    found: list[dict[str, Any]] = []
    if elements:
        whole = {"box": [0, 0, width, height], "text": screen["title"], "kind": "screen", "role": "screen"}
        found.append({"instruction": SCREEN, **whole, "answer": _summary(elements)})
    for element in _chosen(unique, questions - 1, random):
        answer = f"The {_named(element)}, {_place(element, width, height)}."
        near = _right(element, elements)
        if near is not None and near.unique and len(near.called) <= LONGEST:
            answer += f" To its right is the {_named(near)}."
        answer += "".join(f" It is {words}." for words in _states(element))
        found.append(_row(element, random.choice(DESCRIBE), answer=answer))
    return found


def _states(element: Element) -> list[str]:
    state, said = element.state, []
    if "checked" in state:
        on, off = ("on", "off") if element.role == "switch" else ("ticked", "not ticked")
        said.append(on if state["checked"] else off)
    if state.get("selected"):
        said.append("selected")
    if state.get("disabled"):
        said.append("disabled")
    if state.get("value") and state["value"] != element.called:
        said.append(f"filled in with “{state['value']}”")
    return said


def _summary(elements: list[Element]) -> str:
    """What a screen has, with the first names; not how many, since some may be cut off."""
    heads = [e.called for e in elements if e.role == "heading" and len(e.called) <= LONGEST]
    said = f"The screen is headed “{heads[0]}”. " if heads else ""
    parts = []
    for role, count in Counter(e.role for e in elements if e.role != "heading").most_common():
        names = [e.called for e in elements if e.role == role and e.unique and len(e.called) <= LONGEST][:3]
        listed = f" ({', '.join(f'“{name}”' for name in names)}{', …' if count > len(names) else ''})" if names else ""
        parts.append(f"{_some(role, count)}{listed}")
    return said + (f"It has {_listed(parts)}." if parts else "It has nothing else.")


def _some(role: str, count: int) -> str:
    if count == 1:
        return f"an {role}" if role[0] in "aeiou" else f"a {role}"
    return {"checkbox": "checkboxes", "switch": "switches"}.get(role, f"{role}s")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _right(element: Element, elements: Sequence[Element]) -> Element | None:
    """The next element on the same line to the right, if it is clear which one that is."""
    _, y1, x2, y2 = element.box
    line = [
        e
        for e in elements
        if e.box[0] >= x2 - 1 and min(y2, e.box[3]) - max(y1, e.box[1]) > 0.6 * max(y2 - y1, e.box[3] - e.box[1])
    ]
    return _nearest(line, 0, x2)


def _below(element: Element, elements: Sequence[Element]) -> Element | None:
    """The next element in the same column below, if it is clear which one that is."""
    x1, _, x2, y2 = element.box
    column = [
        e
        for e in elements
        if e.box[1] >= y2 - 1 and min(x2, e.box[2]) - max(x1, e.box[0]) > 0.6 * max(x2 - x1, e.box[2] - e.box[0])
    ]
    return _nearest(column, 1, y2)


def _nearest(found: list[Element], side: int, edge: float) -> Element | None:
    ordered = sorted(found, key=lambda e: e.box[side] - edge)
    if not ordered or (len(ordered) > 1 and ordered[1].box[side] < ordered[0].box[side + 2]):
        return None
    return ordered[0]


def _answers(elements: list[Element], unique: list[Element], questions: int, random: Random) -> list[dict[str, Any]]:
    """Questions whose answer is a place: purpose, state, value, table, neighbours."""
    found: list[dict[str, Any]] = []
    for e in unique:
        if e.icon and e.called in PURPOSES and e.role == "button":
            found.append(_row(e, f"Which icon do you press to {PURPOSES[e.called]}?"))
        if (value := e.state.get("value")) and sum(o.state.get("value") == value for o in elements) == 1:
            found.append(_row(e, f"Which field says “{value}”?"))
    cells = Counter((e.row, e.column) for e in elements)
    named = Counter(e.text for e in elements)
    for e in elements:
        if e.row and e.column and cells[e.row, e.column] == 1 and named[e.row] == named[e.column] == 1:
            found.append(_row(e, f"Where is “{e.column}” of “{e.row}”?"))
    for question, picked in (
        ("Which check box is ticked?", [e for e in elements if e.role == "checkbox" and e.state.get("checked")]),
        ("Which switch is on?", [e for e in elements if e.role == "switch" and e.state.get("checked")]),
        ("Which tab is selected?", [e for e in elements if e.role == "tab" and e.state.get("selected")]),
        ("Which button cannot be pressed?", [e for e in elements if e.role == "button" and e.state.get("disabled")]),
        ("Where can you type?", [e for e in elements if e.role == "field"]),
    ):
        if len(picked) == 1 and picked[0].called:
            found.append(_row(picked[0], question))
    facts = found[:]
    random.shuffle(facts)
    facts = facts[: max(1, questions * 2 // 3)]
    near = []
    for e in random.sample(unique, len(unique)):
        if e.role in NAMED:
            continue
        for words, other in (("to the right of", _right(e, elements)), ("below", _below(e, elements))):
            if other is not None and other.called:
                near.append(_row(other, f"What is directly {words} the {_named(e)}?"))
    return [*facts, *near[: questions - len(facts)]]


def place(box: Sequence[float], width: int, height: int) -> str:
    """A box in pixels as AndesVL writes one: in thousandths of width and height."""
    x1, y1, x2, y2 = (
        min(1000, max(0, round(1000 * side / whole))) for side, whole in zip(box, (width, height) * 2, strict=True)
    )
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def turns(task: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row as a conversation for training."""
    where = place(row["box"], row["width"], row["height"])
    asked, answer = row["instruction"], row.get("answer", row["text"])
    if task in ("grounding", "qa"):
        answer = where
    elif row["kind"] != "screen":
        asked = f"{asked} {where}"
    return [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]},
        {"role": "assistant", "content": answer},
    ]
