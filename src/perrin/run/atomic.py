"""Files that are written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name in the same folder, renamed to `path` when the block ends well and removed when it does not.

    Raises:
        PerrinError: the path is a directory, cannot be written, or the disk is full.
    """
    target = Path(path)
    if os.path.isdir(target):  # unlike the method, it takes names that are too long
        raise PerrinError(f"expected an output file, given the directory {target}: add a file name")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # on the disk before the name says so
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors makes files that nobody else may read
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PerrinError(
            f"expected to write {target}, met: {reason}; free some space or choose another path"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_tensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write torch tensors as safetensors, atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; safetensors would let only the owner read
        try:
            save_file(dict(tensors), str(temporary), metadata=dict(metadata) if metadata else None)
            temporary.chmod(mode)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(str(error)) from error
