"""Text files, read whole with errors that say what is wrong."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from perrin.errors import PerrinError


def kind(path: str | Path) -> str:
    """The suffix that says what a file is, in small letters: `.sdf` for `out.sdf` and for `out.sdf.gz`."""
    path = Path(path)
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()


def is_packed(path: str | Path) -> bool:
    """Whether the name says that the file is compressed."""
    return Path(path).suffix.lower() == ".gz"


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, unpacked if it is called `.gz`; `PerrinError` when it is missing, unreadable or empty."""
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if is_packed(path) else data).decode("utf-8-sig")
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as a text file is read
    except FileNotFoundError as error:
        raise PerrinError(
            f"expected a file of molecules, given {path}, which does not exist: check the path"
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        damaged = "damaged or not compressed" if is_packed(path) else "not a text file"
        reason = getattr(error, "strerror", None) or damaged
        raise PerrinError(f"expected a readable file of molecules, given {path} ({reason})") from error
    if not text.strip():
        raise PerrinError(f"expected molecules in {path}, given an empty file")
    return text
