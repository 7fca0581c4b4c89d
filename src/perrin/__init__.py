"""Perrin: a scientific diffusion toolkit. Importing it imports no torch; every name below is loaded on first use."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["PerrinError", "__version__", "load", "modalities"]

_LAZY = {
    "PerrinError": "perrin.errors",
    "load": "perrin.modalities",
    "modalities": "perrin.modalities",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'perrin' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
