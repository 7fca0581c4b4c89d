"""Files: read whole with errors that say what is wrong, written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from perrin.errors import PerrinError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well, removed when it does not.

    Raises:
        PerrinError: the path is a directory, cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    if target.is_dir():
        raise PerrinError(f"expected an output file, got the directory {target}: add a file name")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PerrinError(
            f"expected to write {target}, got: {reason}; free some space or choose another path"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, text: str) -> None:
    """Write a text file so that it is there completely or not at all; errors as in `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PerrinError(
            f"expected a file of molecules, got {path}, which does not exist: check the path"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise PerrinError(f"expected a readable file of molecules, got {path} ({reason})") from error
    if not text.strip():
        raise PerrinError(f"expected molecules in {path}, got an empty file")
    return text
