"""Reasoning and answer told apart while text comes in pieces."""

from __future__ import annotations

from attrs import define

OPEN, CLOSE = "<think>", "</think>"


@define
class Splitter:
    """Pieces of an answer -> what is reasoning and what is content. Joined, they are `Answer`'s two texts.

    Attributes:
        state: "start" (nothing but white space came), "inside" of a `<think>`, "after" it, or "plain".
    """

    state: str = "start"
    _held: str = ""
    _begun: bool = False

    @property
    def reasoning(self) -> bool:
        """Whether what comes now is reasoning."""
        return self.state == "inside"

    def feed(self, piece: str, *, final: bool = False) -> tuple[str, str]:
        """-> (reasoning, content) that are certain."""
        text, self._held = self._held + piece, ""
        if self.state == "start":
            stripped = text.lstrip()
            if stripped.startswith(OPEN):
                self.state, text = "inside", stripped.removeprefix(OPEN)
            elif final or (stripped and not OPEN.startswith(stripped)):
                self.state = "plain"
            else:
                self._held = text
                return "", ""
        if self.state == "inside":
            return self._inside(text, final)
        return "", self._after(text)

    def _inside(self, text: str, final: bool) -> tuple[str, str]:
        before, closed, rest = text.partition(CLOSE)
        if closed:
            self.state, reasoning = "after", self._reasoning(before).rstrip()
            self._begun = False
            return reasoning, self._after(rest)
        if final:
            return self._reasoning(text).rstrip(), ""
        certain = text
        for n in range(len(CLOSE) - 1, 0, -1):
            if text.endswith(CLOSE[:n]):
                certain = text[:-n]
                break
        certain = certain.rstrip()  # white space before the end is no part of the reasoning
        self._held = text[len(certain) :]
        return self._reasoning(certain), ""

    def _reasoning(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text

    def _after(self, text: str) -> str:
        if self.state == "after" and not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text
