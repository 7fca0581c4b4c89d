"""Where the prepared QM9 lives. Apart from `qm9`, so that a look at the place needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

FILE = "qm9-v1.safetensors"


def cache_dir() -> Path:
    """Where the prepared data set lives: `$PERRIN_CACHE/qm9`, or the user's cache directory."""
    if root := os.environ.get("PERRIN_CACHE"):
        return Path(root).expanduser() / "qm9"
    import platformdirs

    return Path(platformdirs.user_cache_dir("perrin")) / "qm9"
