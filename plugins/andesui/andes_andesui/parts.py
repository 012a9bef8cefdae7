"""Parts of generated pages: buttons, icons, fields, switches, pictures. Each draws its words and its looks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from random import Random

from attrs import define, field

from andes_andesui.icons import ICONS, drawn
from andes_andesui.looks import Look
from andes_andesui.words import Words


@define
class Parts:
    """What pages of one application are put together from.

    Attributes:
        width, height: of the screen, in pixels of the page.
    """

    random: Random
    words: Words
    look: Look
    width: int
    height: int
    ids: int = field(default=0, init=False)

    @property
    def small(self) -> bool:
        """Whether there is room for a few things only."""
        return min(self.width, self.height) < 300

    @property
    def line(self) -> float:
        """Height of a line with its distance, in pixels."""
        return self.look.size * 1.35 + self.look.gap * 1.4

    def count(self, height: float, least: int = 1, most: int = 20) -> int:
        """How many things of a height fit below each other on three quarters of the screen; often fewer."""
        fit = max(least, min(most, int(self.height * 0.75 / height)))
        return self.random.randint(max(least, fit // 2), fit)

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self.random.random() < share

    def icon(self, name: str) -> str:
        """A picture alone."""
        return drawn(name, self.look.stroke, self.look.filled, self.look.round_ends)

    def actions(self, count: int) -> list[str]:
        """Different things that an icon can do."""
        return self.random.sample(sorted(ICONS), count)

    def icon_button(self, action: str, style: str = "bare") -> str:
        """A button that shows only an icon; its accessible name is what it does, in English."""
        return f'<button class="{style}" aria-label="{action}">{self.icon(action)}</button>'

    def button(self, action: str = "", style: str = "", off: float = 0.05) -> str:
        """A button with words, sometimes with an icon, sometimes disabled."""
        text = self.words.label(action) if action else self.words.phrase(1, 2)
        icon = self.icon(action) if action in ICONS and self.chance(0.35) else ""
        disabled = " disabled" if self.chance(off) else ""
        return f'<button class="{style}"{disabled}>{icon}<span>{escape(text)}</span></button>'

    def tab(self, text: str, selected: bool, icon: str = "") -> str:
        """One of several views."""
        mark = ' aria-selected="true"' if selected else ""
        inner = self.icon(icon) if icon else ""
        label = f"<span>{escape(text)}</span>" if text else ""
        name = "" if text else f' aria-label="{icon}"'
        return f'<button class="bare" role="tab"{mark}{name}>{inner}{label}</button>'

    def link(self, action: str = "") -> str:
        """Words that lead elsewhere."""
        return f'<a href="#">{escape(self.words.label(action) if action else self.words.phrase(1, 3))}</a>'

    def text(self, text: str, tag: str = "p", style: str = "") -> str:
        """Words."""
        return f'<{tag} class="{style}">{escape(text)}</{tag}>' if style else f"<{tag}>{escape(text)}</{tag}>"

    def field(self, action: str, kind: str = "text", filled: float = 0.4) -> str:
        """A labelled field to type into; its label stands above it or in it."""
        label = escape(self.words.label(action))
        value = f' value="{escape(self.value(action))}"' if self.chance(filled) and kind == "text" else ""
        if self.chance(0.35):
            return f'<input type="{kind}" aria-label="{label}" placeholder="{label}"{value}>'
        self.ids += 1
        place = f' placeholder="{escape(self.words.phrase(1, 2))}"' if self.chance(0.3) else ""
        return (
            f'<div class="field"><label class="faint" for="f{self.ids}">{label}</label>'
            f'<input type="{kind}" id="f{self.ids}"{place}{value}></div>'
        )

    def value(self, action: str) -> str:
        """What somebody typed into a field."""
        word = self.words.word()
        return {
            "email": f"{word}@{self.words.word()}.org", "date": self.words.date(), "time": self.words.time(),
            "name": self.words.name(), "amount": self.words.price(),
            "phone": f"+{self.random.randrange(10**9, 10**11)}",
        }.get(action, word)  # fmt: skip

    def choice(self, kind: str, checked: bool | None = None) -> str:
        """A check box or a radio button with its words."""
        self.ids += 1
        on = " checked" if (self.chance(0.5) if checked is None else checked) else ""
        text = escape(self.words.phrase(1, 3))
        return (
            f'<div class="row"><input type="{kind}" id="f{self.ids}"{on}><label for="f{self.ids}">{text}</label></div>'
        )

    def switch(self, action: str = "") -> str:
        """A line with words and a switch."""
        text = escape(self.words.label(action) if action else self.words.phrase(1, 3))
        on = "true" if self.chance(0.5) else "false"
        detail = self.text(self.words.phrase(2, 4), "div", "faint") if self.chance(0.25) and not self.small else ""
        icon = self.icon(action) if action in ICONS and self.chance(0.5) else ""
        return (
            f'<div class="row entry">{icon}<div class="grow"><div>{text}</div>{detail}</div>'
            f'<button class="switch" role="switch" aria-checked="{on}" aria-label="{text}"></button></div>'
        )

    def select(self, action: str, options: Sequence[str] = ()) -> str:
        """A list that opens."""
        self.ids += 1
        shown = options or [self.words.phrase(1, 2) for _ in range(3)]
        inner = "".join(f"<option>{escape(text)}</option>" for text in shown)
        label = escape(self.words.label(action))
        return (
            f'<div class="field"><label class="faint" for="f{self.ids}">{label}</label>'
            f'<select id="f{self.ids}">{inner}</select></div>'
        )

    def picture(self, height: int) -> str:
        """A drawing in place of a photograph; nothing names it."""
        r, shapes = self.random, ""
        for _ in range(r.randint(2, 5)):
            colour = f"hsl({r.randrange(360)} {r.randint(20, 90)}% {r.randint(30, 80)}%)"
            x, y, size = r.randrange(100), r.randrange(60), r.randint(8, 45)
            shapes += r.choice(
                (
                    f'<circle cx="{x}" cy="{y}" r="{size}" fill="{colour}"/>',
                    f'<rect x="{x - size}" y="{y}" width="{size * 2}" height="{size}" fill="{colour}"/>',
                    f'<path d="M{x} {y}l{size} {size * 2}h-{size * 2}z" fill="{colour}"/>',
                )
            )
        ground = f"hsl({r.randrange(360)} {r.randint(20, 80)}% {r.randint(40, 85)}%)"
        return (
            f'<svg class="picture" style="height:{height}px" viewBox="0 0 100 60" preserveAspectRatio="xMidYMid slice">'
            f'<rect width="100" height="60" fill="{ground}"/>{shapes}</svg>'
        )

    def bars(self, height: int) -> str:
        """A small chart."""
        count = self.random.randint(4, 10)
        shapes = "".join(
            f'<rect x="{100 / count * n + 1:.1f}" y="{60 - tall}" width="{100 / count - 2:.1f}" height="{tall}" '
            f'fill="hsl(var(--main))"/>'
            for n, tall in enumerate(self.random.randint(5, 58) for _ in range(count))
        )
        style = f'class="picture" style="height:{height}px"'
        return f'<svg {style} viewBox="0 0 100 60" preserveAspectRatio="none">{shapes}</svg>'

    def face(self) -> str:
        """A round picture of a person."""
        return '<div class="face"></div>'
