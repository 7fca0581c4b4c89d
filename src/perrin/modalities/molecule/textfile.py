"""Text files, read whole with errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path

from perrin.errors import PerrinError


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; `PerrinError` when it is missing, unreadable or empty."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PerrinError(
            f"expected a file of molecules, given {path}, which does not exist: check the path"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise PerrinError(f"expected a readable file of molecules, given {path} ({reason})") from error
    if not text.strip():
        raise PerrinError(f"expected molecules in {path}, given an empty file")
    return text
