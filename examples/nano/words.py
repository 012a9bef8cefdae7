"""Words for pages, split in two: those that training may see, and those that it must never see."""

from __future__ import annotations

import hashlib
import random

PLAIN = """
account add address advanced album alert all apply archive article audio back backup badge balance basket battery bill
block blog bold book bookmark bright browse budget button buy calendar call camera cancel card cart category change
chart chat check city clear clock close cloud code color comment compare contact contrast copy country cover create
credit crop dark dashboard data date day delete design desktop details device dialog disable discount display document
done download draft drive edit email empty enable error event exit export face family favorite feedback field file
filter find finish first flag folder follow font form forum forward friend full gallery game general gift global grade
graph green grid group guest help hide history home hotel hour icon image import inbox index info insert install
invite invoice item join keyboard label language last layout learn left letter level library light like limit link
list live load local location lock login logout loop mail main map mark market media member memory menu merge message
mobile mode money month more move movie music mute name network new news next night note notice number offer office
open option order other output owner page paint paper password paste path pause pay people phone photo pin place plan
play plus post power press price print privacy product profile project public quality query queue quick quit radio
rate read record red refresh region remind remove rename repeat reply report request reset result resume review right
role room rotate rule sale save scale scan score screen scroll search secure select sell send server service session
settings setup shape share shop show sign size skip sleep sort sound source space speed split sport star start state
status stop storage store stream street style submit support switch sync system table tag task team test text theme
ticket time title today tool top topic total track traffic train trash travel trend type undo unit unlock update
upload user value version video view visit voice volume wallet warning watch weather web week weight welcome widget
width wifi window work world write year zoom
""".split()
"""Words that stand on buttons, menus and cards."""

# ruff: noqa: SIM905
_ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sk sl sm sn sp st str t th tr v w z"
).split()
_VOWELS = "a a a e e e i i o o u y ai ea ee ie oa oo ou".split()
_CODAS = ["", "", "", "", *"b ck d f g l ll m n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t th x".split()]


def held_out(word: str) -> bool:
    """Whether a word is kept for tests: one in eight, by its hash."""
    return hashlib.sha256(word.lower().encode()).digest()[0] < 32


def made_up(rng: random.Random) -> str:
    """A word of one to three syllables that nobody wrote."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(1, 3)))


def word(rng: random.Random, split: str) -> str:
    """A word of a split ("train" or "test"), half of them made up, as it may be written."""
    while True:
        found = rng.choice(PLAIN) if rng.random() < 0.5 else made_up(rng)
        if held_out(found) == (split == "test"):
            break
    kind = rng.random()
    return found if kind < 0.45 else found.capitalize() if kind < 0.9 else found.upper()


def number(rng: random.Random) -> str:
    """A number as pages show them."""
    n = rng.randrange(10 ** rng.randint(1, 4))
    return rng.choice((f"{n}", f"{n}", f"{n}%", f"${n}.{rng.randrange(100):02}", f"{n % 24:02}:{n % 60:02}", f"{n:,}"))


def phrase(rng: random.Random, split: str, most: int = 3) -> str:
    """One to `most` words, now and then with a number."""
    parts = [word(rng, split) for _ in range(rng.randint(1, most))]
    if rng.random() < 0.15:
        parts.insert(rng.randrange(len(parts) + 1), number(rng))
    return " ".join(parts)
