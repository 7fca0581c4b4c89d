"""Perrin: a scientific diffusion toolkit. Importing it imports no torch; every name below is loaded on first use."""

from __future__ import annotations

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["PerrinError", "__version__", "load", "modalities"]

_LAZY = {
    "PerrinError": "perrin.errors",
    "load": "perrin.modalities",
    "modalities": "perrin.modalities",
}


def _keep_bits() -> None:
    """Ask MKL for products of matrices whose rows do not depend on how many there are, nor on where they lie in memory.

    On Intel's processors they do otherwise, by a last bit, and with them samples on the size of a batch. It costs no time
    there; on others, where they do not, it is left alone. A value that is there already stays.
    """
    try:
        with open("/proc/cpuinfo") as file:
            intel = "GenuineIntel" in file.read(400)
    except OSError:
        return
    if intel:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


_keep_bits()  # before MKL's first product: it reads it once


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'perrin' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
