"""Texts that know where their characters come from, through what a chat template does with them.

What a template writes itself may be a special token; what people wrote never is, wherever the template puts it, and
only what the assistant wrote is learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Self, SupportsIndex

Source = int | str | None
"""None: the template. n: turn n. -1 - n: slot n. `MIXED`: several, which cannot be told apart."""
MIXED = "mixed"


class Text(str):
    """A text in spans: how many characters come from which source. Jinja's own `str(…)` leaves it as it is."""

    _spans: tuple[tuple[int, Source], ...]

    def __new__(cls, text: str = "", spans: Iterable[tuple[int, Source]] | None = None) -> Self:
        """Without spans it is the template's."""
        made = super().__new__(cls, text)
        made._spans = tuple(spans) if spans is not None else ((len(text), None),) if text else ()
        return made

    @classmethod
    def of(cls, text: str) -> Text:
        """The same text; the template's, where it is a plain one."""
        return text if isinstance(text, Text) else cls(text)

    @classmethod
    def joined(cls, parts: Iterable[str]) -> Text:
        """Texts one after another."""
        held = [cls.of(part) for part in parts]
        spans: list[tuple[int, Source]] = []
        for length, source in (span for part in held for span in part._spans):
            if spans and spans[-1][1] == source:
                length += spans.pop()[0]
            spans.append((length, source))
        return cls("".join(held), spans)

    def pieces(self) -> list[tuple[str, Source]]:
        """Plain texts and their sources."""
        found, at = [], 0
        for length, source in self._spans:
            found.append((str.__getitem__(self, slice(at, at + length)), source))
            at += length
        return found

    def sources(self) -> set[Source]:
        """Where it comes from, but for the template."""
        return {source for _, source in self._spans if source is not None}

    def cut(self, start: int, stop: int) -> Text:
        """Characters `start` to `stop`."""
        spans, at = [], 0
        for length, source in self._spans:
            first, last = max(start, at), min(stop, at + length)
            if first < last:
                spans.append((last - first, source))
            at += length
        return Text(str.__getitem__(self, slice(start, max(start, stop))), spans)

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self.cut(start, stop) if step == 1 else Text.joined(self[i] for i in range(start, stop, step))
        found = str.__getitem__(self, key)
        at = key.__index__() % len(self)
        return Text(found, [(1, self._source(at))])

    def _source(self, at: int) -> Source:
        for length, source in self._spans:
            if at < length:
                return source
            at -= length
        return None

    def __iter__(self) -> Iterator[str]:
        for piece, source in self.pieces():
            for character in piece:
                yield Text(character, [(1, source)])

    def __add__(self, other: str) -> str:
        return Text.joined([self, other]) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return Text.joined([other, self]) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return Text.joined([self] * count.__index__())

    __rmul__ = __mul__

    def lstrip(self, chars: str | None = None, /) -> str:
        """As `str.lstrip`."""
        return self.cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        """As `str.rstrip`."""
        return self.cut(0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None, /) -> str:
        """As `str.strip`."""
        return Text.of(self.lstrip(chars)).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> str:
        """As `str.removeprefix`."""
        return self.cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        """As `str.removesuffix`."""
        return self.cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.split`."""
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.rsplit`."""
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def _found(self, parts: list[str], sep: str | None) -> list[str]:
        found: list[str] = []
        at = 0
        for part in parts:
            at = at if sep is not None else str.index(self, part, at)
            found.append(self.cut(at, at + len(part)))
            at += len(part) + len(sep or "")
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As `str.splitlines`."""
        found: list[str] = []
        at = 0
        for whole, line in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            found.append(self.cut(at, at + len(line)))
            at += len(whole)
        return found

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.partition`."""
        return self._parted(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.rpartition`."""
        return self._parted(str.rpartition(self, sep))

    def _parted(self, three: tuple[str, str, str]) -> tuple[str, str, str]:
        one, two = len(three[0]), len(three[0]) + len(three[1])
        return self.cut(0, one), self.cut(one, two), self.cut(two, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """As `str.replace`."""
        if not old:
            return derived(str.replace(self, old, new, count), self, new)
        return Text.of(new).join(self.split(old, count))

    def join(self, parts: Iterable[str], /) -> str:
        """As `str.join`."""
        held = list(parts)
        return Text.joined(islice((text for part in held for text in (self, part)), 1, None) if held else ())


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(one)


def derived(result: Any, *inputs: Any) -> Any:
    """What was made of other values without their spans: from their source, or, of several or longer, `MIXED`."""
    spans = [span for text in texts_in(inputs) if isinstance(text, Text) for span in text._spans if span[1] is not None]
    if not spans:
        return result
    longer = sum(map(len, texts_in(result))) > sum(length for length, _ in spans)
    return _marked(result, MIXED if longer or len({source for _, source in spans}) > 1 else spans[0][1])


def _marked(result: Any, source: Source) -> Any:
    if isinstance(result, str):
        return result if isinstance(result, Text) else Text(result, [(len(result), source)] if result else [])
    if isinstance(result, list | tuple):
        return type(result)([_marked(one, source) for one in result]) if type(result) in (list, tuple) else result
    return {k: _marked(v, source) for k, v in result.items()} if type(result) is dict else result


__all__ = ["MIXED", "Source", "Text", "derived"]
