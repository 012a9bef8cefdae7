"""Versions of the package and of the contract."""

from __future__ import annotations

__version__ = "0.1.0"

CONTRACT = (1, 1)
"""Major and minor version of the contract between core and plugins."""
