"""What a server accepts, and how much of the machine it may use."""

from __future__ import annotations

import os
import re

from attrs import Factory, field, frozen
from attrs.validators import ge, gt, le

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
NAMES = "a name has letters, digits and _ . - in it, and / between its parts; none begins with . or -"
"""What names of adapters look like: they stand in addresses and in lists of models."""

LONGEST = 1e8
"""Seconds that may be waited for something; timers take no more."""


def memory_of_the_machine() -> int:
    """Bytes of memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@frozen(kw_only=True)
class Limits:
    """Bounds of a server.

    Attributes:
        concurrency: answers in the making at once, each of an `n` counted. queue: requests that may wait for a place.
        memory: bytes for KV rows and picture rows, of answers and of kept prefixes together.
        prefixes: bytes of `memory` that finished conversations may keep for those that continue them.
        features: bytes for rows of pictures, found again by content.
        opening: bytes for pictures of requests that are not in the engine yet, opened and cut into patches; as many
            again for pictures as they come, or `pictures` x `picture` of one request where that is more.
        body: bytes of a request. bodies: of all requests together, from the first byte to the end of the answer.
        pictures: in one request. pixels, picture: of one picture, in pixels and bytes.
        prompt: rows of a prompt, picture rows included. answer: most tokens of one answer. choices: largest `n`.
        rate: requests a minute for each key (each address, where there are no keys); 0: any number.
        timeout: seconds from a request, once its body is there, to the end of its answer, waiting included.
        grace: seconds that answers get at shutdown.
        chunk: rows of prompts in one pass, so that running answers wait no longer than that.
    """

    concurrency: int = field(default=32, validator=ge(1))
    queue: int = field(default=256, validator=ge(0))
    memory: int = field(default=Factory(lambda: memory_of_the_machine() // 4), validator=gt(0))
    prefixes: int = field(default=Factory(lambda self: self.memory // 2, takes_self=True), validator=ge(0))
    features: int = field(default=256 << 20, validator=ge(0))
    opening: int = field(default=Factory(lambda self: self.memory // 4, takes_self=True), validator=gt(0))
    body: int = field(default=32 << 20, validator=gt(0))
    bodies: int = field(
        default=Factory(lambda self: max(self.memory // 4, self.body), takes_self=True), validator=gt(0)
    )
    pictures: int = field(default=16, validator=ge(0))
    pixels: int = field(default=50_000_000, validator=gt(0))
    picture: int = field(default=20 << 20, validator=gt(0))
    prompt: int = field(default=1 << 30, validator=gt(0))
    answer: int = field(default=4096, validator=gt(0))
    choices: int = field(default=8, validator=ge(1))
    rate: int = field(default=0, validator=ge(0))
    timeout: float = field(default=600.0, validator=[gt(0), le(LONGEST)])
    grace: float = field(default=30.0, validator=[ge(0), le(LONGEST)])
    chunk: int = field(default=256, validator=ge(16))
