"""`run.json`: what was run, with what, so that it can be run again."""

from __future__ import annotations

import hashlib
import platform
import sys
from argparse import Namespace
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from perrin.run.atomic import write_json

_PACKAGES = ("perrin", "torch", "numpy", "rdkit", "ase", "lightning-fabric", "safetensors")


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that can change a result."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(verb: str, a: Namespace, **more: Any) -> dict[str, Any]:
    """The content of `run.json`: verb, parsed arguments, `a.argv`, whatever else is given, versions, command line."""
    return {
        "verb": verb,
        "arguments": {k: v for k, v in vars(a).items() if k not in ("argv", "overwrite")},
        "argv": a.argv,
        **more,
        "versions": versions(),
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_record(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write `run.json` atomically."""
    write_json(path, content)
