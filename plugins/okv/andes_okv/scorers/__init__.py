"""Scorers by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Scorer

_PLACES = {
    "streaming": ("streaming", "Streaming"), "snapkv": ("snapkv", "SnapKV"), "h2o": ("h2o", "HeavyHitters"),
    "keynorm": ("keynorm", "KeyNorm"), "critical": ("critical", "CriticalKV"), "kvzip": ("kvzip", "KVzip"),
    "kvzip+": ("kvzip_plus", "KVzipPlus"), "dropkv": ("dropkv", "DropKV"), "restkv": ("restkv", "ReSTKV"),
    "rkv": ("rkv", "RKV"), "learned": ("learned", "Learned"),
}  # fmt: skip


def scorer_class(name: str) -> type[Scorer]:
    """The class of a scorer of `options.WINDOWS`."""
    module, cls = _PLACES[name]
    found: type[Scorer] = getattr(import_module(f"andes_okv.scorers.{module}"), cls)
    return found
