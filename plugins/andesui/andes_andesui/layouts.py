"""Layouts of generated pages: each puts parts together to a kind of screen that applications have."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from andes_andesui.parts import Parts

Layout = Callable[[Parts], str]


def _joined(count: int, part: Callable[[], str]) -> str:
    return "".join(part() for _ in range(count))


def entries(p: Parts) -> str:
    """A list of entries with something to do on each."""
    action = p.random.choice(("delete", "more", "favourite", "next", "edit", "share", "bookmark"))
    picture, tail = p.chance(0.5), p.random.choice(("icon", "badge", "text", "button", ""))

    def entry() -> str:
        text = p.text(p.words.phrase(1, 3), "div")
        detail = p.text(p.words.phrase(2, 4), "div", "faint") if p.chance(0.5) else ""
        end = {
            "icon": p.icon_button(action),
            "badge": f'<span class="badge">{escape(p.words.phrase(1, 1))}</span>',
            "text": p.text(p.words.time(), "div", "faint"),
            "button": p.button(),
        }.get(tail, "")
        return f'<div class="row entry">{p.face() if picture else ""}<div class="grow">{text}{detail}</div>{end}</div>'

    head = p.text(p.words.phrase(1, 3), "h2") if p.chance(0.5) else ""
    return head + _joined(p.count(p.line * 1.7), entry)


def cards(p: Parts) -> str:
    """Cards side by side."""
    columns = max(1, p.width // p.random.randint(180, 320))

    def card() -> str:
        picture = p.picture(p.random.randint(40, 110)) if p.chance(0.5) and not p.small else ""
        text = p.text(p.words.sentence(3, 8), style="faint") if p.chance(0.6) else ""
        buttons = _joined(p.random.randint(1, 2), p.button)
        head = p.text(p.words.phrase(1, 3), "h3")
        return f'<div class="card">{picture}{head}{text}<div class="row wrap">{buttons}</div></div>'

    return _grid(columns, _joined(columns * p.count(130, most=3), card))


def _grid(columns: int, inner: str) -> str:
    return f'<div class="grid" style="grid-template-columns:repeat({columns},minmax(0,1fr))">{inner}</div>'


FIELDS = ("name", "email", "phone", "address", "city", "country", "date", "time", "amount", "username", "order")


def form(p: Parts) -> str:
    """Fields to fill in, and what to do with them."""
    wanted = p.random.sample(FIELDS, min(len(FIELDS), p.count(p.line * 2.1)))
    parts = [p.select(name) if p.chance(0.2) else p.field(name) for name in wanted]
    parts += [p.choice(p.random.choice(("checkbox", "radio"))) for _ in range(p.random.randint(0, 2))]
    end = f'<div class="row end">{p.button("cancel", "second")}{p.button("save")}</div>'
    inner = "".join(parts)
    if p.width > 700:
        inner = _grid(2, inner)
    return f'<div class="card">{inner}{end}</div>'


def table(p: Parts) -> str:
    """Rows of figures."""
    columns = max(2, min(6, p.width // 130))
    kinds = [p.random.choice((p.words.number, p.words.price, p.words.date, p.words.word)) for _ in range(columns - 1)]
    head = "".join(f"<th>{escape(p.words.label(name))}</th>" for name in p.random.sample(FIELDS, columns))

    def row() -> str:
        cells = "".join(f"<td>{escape(kind())}</td>" for kind in kinds)
        return f"<tr><td>{escape(p.words.phrase(1, 2))}</td>{cells}</tr>"

    rows = _joined(p.count(p.line), row)
    tools = f'<div class="row between">{p.button("add")}{p.field("search")}</div>' if p.chance(0.5) else ""
    return f"{tools}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def dialog(p: Parts) -> str:
    """A question before a page that can wait."""
    close = p.icon_button("close") if p.chance(0.6) else ""
    head = f'<div class="row between">{p.text(p.words.phrase(1, 4), "h2")}{close}</div>'
    inner = p.field("name") if p.chance(0.3) else p.text(p.words.sentence())
    ends = p.random.choice((("cancel", "ok"), ("cancel", "delete"), ("back", "save"), ("ok",)))
    buttons = "".join(p.button(a, "second" if n + 1 < len(ends) else "") for n, a in enumerate(ends))
    behind = entries(p)
    box = f'<div class="card" role="dialog">{head}{inner}<div class="row end">{buttons}</div></div>'
    return f'{behind}<div class="veil">{box}</div>'


def settings(p: Parts) -> str:
    """Switches and what else can be set."""
    known = ["notifications", "dark", "sound", "privacy", "display", "network", "language", "update", "general", "lock"]
    p.random.shuffle(known)
    lines = [p.switch(name) for name in known[: p.count(p.line * 1.5, 2, len(known))]]
    if p.chance(0.4):
        lines.insert(1, f'<label class="field">{escape(p.words.label("volume"))}<input type="range"></label>')
    if p.chance(0.4):
        lines.append(p.select("language"))
    return f'<div class="card">{"".join(lines)}</div>' if p.chance(0.5) else "".join(lines)


def chat(p: Parts) -> str:
    """A conversation and a field to go on."""

    def bubble() -> str:
        text = p.words.sentence(1, 7) if p.chance(0.8) else p.words.time()
        return f'<div class="bubble{" mine" if p.chance(0.5) else ""}">{escape(text)}</div>'

    bubbles = _joined(p.count(p.line * 1.8), bubble)
    label = escape(p.words.label("reply"))
    tools = "".join(map(p.icon_button, p.random.sample(["attach", "camera", "microphone", "gallery"], 1)))
    foot = f'<div class="row">{tools}<input aria-label="{label}" placeholder="{label}">{p.icon_button("send")}</div>'
    return f'<div class="column grow">{bubbles}</div>{foot}'


def gallery(p: Parts) -> str:
    """Pictures with their titles."""
    side = p.random.randint(70, 200)
    columns = max(2, p.width // side)

    def picture() -> str:
        title = p.text(p.words.phrase(1, 2), "div") if p.chance(0.8) else ""
        return f'<div class="column">{p.picture(int(side * 0.6))}{title}</div>'

    chips = "".join(p.tab(p.words.phrase(1, 1), n == 0) for n in range(min(4, p.width // 110)))
    return f'<div class="row wrap">{chips}</div>' + _grid(columns, _joined(columns * p.count(side, most=4), picture))


def dashboard(p: Parts) -> str:
    """Figures, a chart and the latest entries."""
    columns = max(1, min(4, p.width // 170))

    def figure() -> str:
        icon = p.icon(p.random.choice(("chart", "profile", "cart", "wallet", "view", "star"))) if p.chance(0.6) else ""
        head = f'<div class="row between">{p.text(p.words.phrase(1, 2), "div", "faint")}{icon}</div>'
        return f'<div class="card">{head}{p.text(p.words.number(), "div", "large")}</div>'

    figures = _grid(columns, _joined(columns * (1 if p.height < 500 else 2), figure))
    if p.small:
        return figures
    chart = f'<div class="card">{p.text(p.words.phrase(1, 3), "h2")}{p.bars(p.height // 5)}</div>'
    return figures + chart + (table(p) if p.chance(0.5) else entries(p))


def login(p: Parts) -> str:
    """Who are you?"""
    logo = f'<div class="row middle" style="font-size:1.6em">{p.icon(p.actions(1)[0])}</div>' if p.chance(0.5) else ""
    more = p.choice("checkbox") if p.chance(0.5) else ""
    inner = (
        f"{logo}{p.text(p.words.phrase(1, 3), 'h1')}{p.field(p.random.choice(('email', 'username', 'phone')))}"
        f"{p.field('password', 'password')}{more}{p.button('login')}"
    )
    if not p.small:
        inner += f'<div class="row between wrap">{p.link("forgot")}{p.link("register")}</div>'
    card = f'<div class="card" style="width:min(100%,24em);margin:auto">{inner}</div>'
    return f'<div class="column grow" style="justify-content:center">{card}</div>'


def keypad(p: Parts) -> str:
    """Digits, of a phone or a calculator."""
    keys = p.random.choice(("123456789*0#", "789÷456×123−0.=+", "1234567890"))
    columns = 4 if len(keys) == 16 else 3
    tall = max(20, int(p.height * 0.6 / (len(keys) / columns)) - p.look.gap)
    buttons = "".join(f'<button style="height:{tall}px;font-size:1.3em">{key}</button>' for key in keys)
    value = p.text(p.words.number(), "div", "large")
    foot = (
        f'<div class="row middle">{p.icon_button("call", "")}{p.icon_button("remove")}</div>' if p.chance(0.5) else ""
    )
    return f'<div class="row end">{value}</div>{_grid(columns, buttons)}{foot}'


def calendar(p: Parts) -> str:
    """A month."""
    start, days, today = p.random.randrange(7), p.random.choice((28, 30, 31)), p.random.randint(1, 28)
    names = "".join(p.text(p.words.word()[:2], "div", "faint") for _ in range(7))
    blank = "<span></span>" * start
    cells = "".join(
        f'<button class="bare"{" aria-current=date" if d == today else ""}>{d}</button>' for d in range(1, days + 1)
    )
    head = p.text(f"{p.words.phrase(1, 1)} {p.random.randint(2020, 2030)}", "h2")
    top = f'<div class="row between">{p.icon_button("back")}{head}{p.icon_button("next")}</div>'
    foot = "" if p.small else entries(p)
    style = "grid-template-columns:repeat(7,1fr);gap:1px;text-align:center"
    return f'{top}<div class="grid" style="{style}">{names}{blank}{cells}</div>{foot}'


def player(p: Parts) -> str:
    """A song and what to do with it."""
    buttons = "".join(map(p.icon_button, ("previous", p.random.choice(("play", "pause")), "next")))
    more = "".join(map(p.icon_button, p.random.sample(["favourite", "share", "volume", "add", "download", "more"], 3)))
    times = f'<div class="row between faint"><span>{p.words.time()}</span><span>{p.words.time()}</span></div>'
    return (
        f"{p.picture(int(p.height * 0.3))}<div>{p.text(p.words.phrase(1, 4), 'h2')}"
        f"{p.text(p.words.name(), 'div', 'faint')}</div><input type='range' aria-label='position'>{times}"
        f'<div class="row middle" style="font-size:1.4em">{buttons}</div><div class="row middle">{more}</div>'
    )


def shop(p: Parts) -> str:
    """Things to buy."""
    columns = max(1, p.width // p.random.randint(140, 260))

    def item() -> str:
        picture = p.picture(p.random.randint(40, 120)) if not p.small else ""
        buy = p.icon_button("cart", "") if p.chance(0.3) else p.button("buy")
        line = f'<div class="row between"><b>{escape(p.words.price())}</b>{buy}</div>'
        return f'<div class="card">{picture}{p.text(p.words.phrase(1, 3), "h3")}{line}</div>'

    search = f'<div class="row">{p.field("search")}{p.icon_button("filter")}</div>' if p.chance(0.6) else ""
    return search + _grid(columns, _joined(columns * p.count(150, most=3), item))


def mail(p: Parts) -> str:
    """Letters that came."""
    picked = p.random.sample(["inbox", "sent", "drafts", "delete"], 2 if p.width < 400 else 4)
    folders = "".join(p.tab(p.words.label(name), n == 0) for n, name in enumerate(picked))

    def letter() -> str:
        box = f'<input type="checkbox" aria-label="{escape(p.words.phrase(2, 3))}">' if p.width > 600 else ""
        text = f"<b>{escape(p.words.name())}</b><div class='faint'>{escape(p.words.phrase(2, 5))}</div>"
        time = f'<span class="faint">{p.words.time()}</span>'
        return f'<div class="row entry">{box}<div class="grow">{text}</div>{time}</div>'

    return f'<div class="row wrap" role="tablist">{folders}</div>' + _joined(p.count(p.line * 1.8), letter)


def article(p: Parts) -> str:
    """Paragraphs under headings."""

    def part() -> str:
        text = " ".join(p.words.sentence(4, 9) for _ in range(p.random.randint(1, 1 if p.small else 4)))
        return p.text(p.words.phrase(1, 4), "h2") + p.text(text)

    parts = _joined(p.count(p.line * 5), part)
    return parts + (f'<div class="row wrap">{p.link()}{p.link()}</div>' if p.chance(0.6) else "")


def scattered(p: Parts) -> str:
    """A few words and controls anywhere: what small models learn to read and to find from."""
    sizes = (0.8, 1, 1.2, 1.5, 2.0, 2.6)

    def thing() -> str:
        inner = p.random.choices(
            (
                lambda: p.text(p.words.phrase(1, 2), "div"),
                p.button,
                lambda: p.icon_button(p.actions(1)[0]),
                lambda: p.text(p.words.number(), "div"),
                p.link,
                lambda: p.choice("checkbox"),
            ),
            (6, 3, 3, 1, 1, 1),
        )[0]()
        size = p.random.choice(sizes[: 4 if p.small else 6])
        return (
            f'<div style="font-size:{size}em;margin:{p.random.randrange(8)}px {p.random.randrange(24)}px">{inner}</div>'
        )

    count = max(1, p.random.randint(2, 4 + p.width * p.height // 12_000))
    spread = p.random.choice(("space-around", "space-between", "flex-start", "center"))
    style = f"align-content:{spread};justify-content:{spread}"
    return f'<div class="row wrap grow" style="{style}">{_joined(count, thing)}</div>'


LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout
    for layout in (
        entries, cards, form, table, dialog, settings, chat, gallery, dashboard, login, keypad, calendar, player, shop,
        mail, article, scattered,
    )
}  # fmt: skip
"""Layouts by name."""


def page(p: Parts, layout: str) -> str:
    """The inside of a page: a layout within what its application has around it."""
    inner = f"<main>{LAYOUTS[layout](p)}</main>"
    around = layout not in ("login", "dialog") and not (p.small and p.chance(0.6))
    top = _top(p) if around and p.chance(0.85) else ""
    side = ""
    if around and p.width > 700 and p.chance(0.6):
        actions = p.actions(p.random.randint(3, 8))
        buttons = "".join(p.tab(p.words.label(a), n == 0, a if p.chance(0.8) else "") for n, a in enumerate(actions))
        side = f'<nav class="side">{buttons}</nav>'
    foot = ""
    if around and p.width < 500 and p.height > 300 and p.chance(0.5):
        labelled = p.chance(0.6)
        actions = p.actions(p.random.randint(3, 5 if p.width > 300 else 3))
        tabs = "".join(p.tab(p.words.label(a) if labelled else "", n == 0, a) for n, a in enumerate(actions))
        foot = f'<nav class="bar tabs">{tabs}</nav>'
    return f'{top}<div class="body">{side}{inner}</div>{foot}'


def _top(p: Parts) -> str:
    """The bar at the top: a title, and a few things to do."""
    first = p.icon_button(p.random.choice(("menu", "back", "home"))) if p.chance(0.7) else ""
    count = p.random.randint(0, 2 if p.width < 400 else 4)
    rest = [a for a in p.actions(count) if a not in ("menu", "back", "home")]
    ends = "".join(p.button(a) if p.chance(0.15) and not p.small else p.icon_button(a) for a in rest)
    line = " line" if p.chance(0.4) else ""
    return f'<header class="bar{line}">{first}<h1 class="grow">{escape(p.words.phrase(1, 2))}</h1>{ends}</header>'
