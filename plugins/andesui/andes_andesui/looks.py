"""How an application looks: colours, fonts, corners, distances, strokes. Drawn once per application."""

from __future__ import annotations

from random import Random

from attrs import frozen

FONTS = (
    "'DejaVu Sans'", "'DejaVu Serif'", "'DejaVu Sans Mono'", "'Liberation Sans'", "'Liberation Serif'",
    "'Liberation Sans Narrow'", "'Noto Sans'", "'Noto Serif'", "'Noto Sans Display'", "sans-serif", "serif",
    "monospace",
)  # fmt: skip
"""Families that a page asks for; where one is not installed, Chromium takes another."""


@frozen
class Look:
    """The style of one application.

    Attributes:
        size: of text, in pixels.
        gap: between things, in pixels.
        stroke, filled, round_ends: how icons are drawn.
    """

    hue: int
    second: int
    saturation: int
    font: str
    title_font: str
    size: int
    gap: int
    radius: int
    border: int
    shadow: int
    button: str
    capitals: bool
    stroke: float
    filled: bool
    round_ends: bool
    tinted: bool
    lines: bool

    @classmethod
    def drawn(cls, random: Random, small: bool) -> Look:
        """A look by chance; on a small screen with small distances."""
        return cls(
            hue=random.randrange(360),
            second=random.randrange(360),
            saturation=random.choice((10, 40, 60, 75, 90)),
            font=random.choice(FONTS),
            title_font=random.choice(FONTS),
            size=random.randint(10, 17) if small else random.randint(12, 18),
            gap=random.randint(3, 8) if small else random.randint(5, 16),
            radius=random.choice((0, 2, 4, 8, 14, 24)),
            border=random.choice((0, 1, 1, 2)),
            shadow=random.choice((0, 0, 2, 6, 14)),
            button=random.choice(("filled", "outlined", "plain", "soft", "underlined")),
            capitals=random.random() < 0.15,
            stroke=random.choice((1.2, 1.6, 2, 2.6, 3.2)),
            filled=random.random() < 0.35,
            round_ends=random.random() < 0.6,
            tinted=random.random() < 0.5,
            lines=random.random() < 0.5,
        )

    def css(self, dark: bool, rtl: bool) -> str:
        """Custom properties and rules for the classes that pages use."""
        h, s, tint = self.hue, self.saturation, 18 if self.tinted else 3
        ground, card, text, faint, line = (
            (f"{h} {tint}% 10%", f"{h} {tint}% 16%", f"{h} 12% 92%", f"{h} 8% 68%", f"{h} {tint}% 30%")
            if dark
            else (f"{h} {tint}% 95%", f"{h} {tint}% 99%", f"{h} 20% 12%", f"{h} 10% 40%", f"{h} {tint}% 82%")
        )
        main = f"{h} {s}% {62 if dark else 38}%"
        second = f"{self.second} {s}% {66 if dark else 36}%"
        on = f"{h} 20% 8%" if dark else "0 0% 100%"
        buttons = {
            "filled": "background:hsl(var(--main));color:hsl(var(--on));border:0",
            "outlined": "background:none;color:hsl(var(--main));border:1px solid hsl(var(--main))",
            "plain": "background:none;color:hsl(var(--main));border:0",
            "soft": "background:hsl(var(--main)/.15);color:hsl(var(--main));border:0",
            "underlined": "background:none;color:hsl(var(--text));border:0;border-bottom:2px solid hsl(var(--main));"
            "border-radius:0",
        }
        bar = "background:hsl(var(--main));color:hsl(var(--on))" if self.filled else "background:hsl(var(--card))"
        return f""":root{{--main:{main};--second:{second};--on:{on};--ground:{ground};--card:{card};--text:{text};
--faint:{faint};--line:{line};--gap:{self.gap}px;--r:{self.radius}px;--size:{self.size}px;
color-scheme:{"dark" if dark else "light"}}}
*{{box-sizing:border-box;animation:none!important;transition:none!important;caret-color:transparent}}
html,body{{margin:0;height:100%;overflow:hidden}}
body{{font:{self.size}px/1.35 {self.font},sans-serif;color:hsl(var(--text));background:hsl(var(--ground));display:flex;
flex-direction:column;direction:{"rtl" if rtl else "ltr"}}}
h1,h2,h3,p{{margin:0;font-family:{self.title_font},sans-serif}}p{{font-family:inherit}}
h1{{font-size:1.35em}}h2{{font-size:1.15em}}h3{{font-size:1em}}
.icon{{width:1.35em;height:1.35em;display:block;flex:none}}
button,input,select,textarea{{font:inherit;color:inherit}}
button{{{buttons[self.button]};padding:calc(var(--gap)*.6) var(--gap);cursor:pointer;display:inline-flex;gap:.4em;
align-items:center;justify-content:center;min-width:1.6em;{"text-transform:uppercase;" if self.capitals else ""}}}
button,.card,input,select,textarea{{border-radius:var(--r)}}.underline button{{border-radius:0}}
button.bare{{background:none;border:0;color:inherit;padding:calc(var(--gap)*.5)}}
button.second{{color:hsl(var(--second));border-color:hsl(var(--second));background:none}}
button:disabled{{opacity:.45}}
a{{color:hsl(var(--main))}}
input,select,textarea{{border:{max(self.border, 1)}px solid hsl(var(--line));background:hsl(var(--card));
padding:calc(var(--gap)*.55) calc(var(--gap)*.8);min-width:0;width:100%}}
input[type=checkbox],input[type=radio]{{width:1.15em;height:1.15em;padding:0;margin:0;flex:none;
accent-color:hsl(var(--main))}}
input[type=range]{{padding:0;accent-color:hsl(var(--main))}}
.bar{{{bar};display:flex;align-items:center;gap:var(--gap);padding:calc(var(--gap)*.7) var(--gap);flex:none}}
.bar h1{{font-size:1.15em}}.bar.line{{border-bottom:1px solid hsl(var(--line))}}
.tabs{{justify-content:space-around}}.tabs button{{flex-direction:column;gap:.1em;font-size:.85em}}
.body{{flex:1;display:flex;min-height:0}}.side{{width:13em;flex:none;display:flex;flex-direction:column;gap:2px;
padding:var(--gap);background:hsl(var(--card))}}.side button{{justify-content:flex-start}}
main{{flex:1;min-width:0;padding:var(--gap);display:flex;flex-direction:column;gap:var(--gap);overflow:hidden}}
.card{{background:hsl(var(--card));border:{self.border}px solid hsl(var(--line));padding:var(--gap);
box-shadow:0 {self.shadow // 3}px {self.shadow}px hsl(0 0% 0%/.25);display:flex;flex-direction:column;
gap:calc(var(--gap)*.6)}}
.row{{display:flex;align-items:center;gap:var(--gap)}}.wrap{{flex-wrap:wrap}}.end{{justify-content:flex-end}}
.middle{{justify-content:center;align-items:center;text-align:center}}.grow{{flex:1;min-width:0}}
.between{{justify-content:space-between}}.column{{display:flex;flex-direction:column;gap:calc(var(--gap)*.4)}}
.entry{{padding:calc(var(--gap)*.6) 0;{"border-bottom:1px solid hsl(var(--line))" if self.lines else ""}}}
.faint{{color:hsl(var(--faint));font-size:.88em}}.large{{font-size:1.6em;font-weight:600}}
.grid{{display:grid;gap:var(--gap)}}
.badge{{background:hsl(var(--second)/.2);color:hsl(var(--second));border-radius:99px;padding:0 .6em;font-size:.85em}}
.face{{width:2.2em;height:2.2em;border-radius:50%;flex:none;background:hsl(var(--second)/.35)}}
.picture{{width:100%;display:block;border-radius:var(--r)}}
.bubble{{max-width:75%;padding:calc(var(--gap)*.6) var(--gap);border-radius:calc(var(--r) + 4px);
background:hsl(var(--card));align-self:flex-start}}.bubble.mine{{align-self:flex-end;background:hsl(var(--main));color:hsl(var(--on))}}
table{{border-collapse:collapse;width:100%}}th,td{{text-align:start;padding:calc(var(--gap)*.5) var(--gap);
{"border-bottom:1px solid hsl(var(--line))" if self.lines else ""}}}
.veil{{position:fixed;inset:0;background:hsl(0 0% 0%/.5);display:flex;align-items:center;justify-content:center}}
.veil .card{{width:min(92%,26em)}}
.switch{{width:2.3em;height:1.3em;border-radius:1em;background:hsl(var(--line));position:relative;padding:0;min-width:0;
border:0;flex:none}}.switch:after{{content:"";position:absolute;width:1em;height:1em;border-radius:50%;top:.15em;left:.15em;
background:hsl(var(--card))}}.switch[aria-checked=true]{{background:hsl(var(--main))}}
.switch[aria-checked=true]:after{{left:1.15em}}
[aria-selected=true],[aria-current]{{font-weight:700;box-shadow:inset 0 -3px hsl(var(--second))}}
.field{{display:flex;flex-direction:column;gap:.15em;min-width:0}}"""
