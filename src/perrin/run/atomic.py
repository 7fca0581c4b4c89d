"""Files that are written completely or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
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
    # not the process's number: another node of the cluster may have the same
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # on the disk before the name says so
        os.chmod(temporary, 0o666 & ~_UMASK)  # safetensors makes files that nobody else may read
        os.replace(temporary, target)
    except OSError as error:
        raise PerrinError(
            f"expected to write {target}, met: {trouble(error)}; free some space or choose another path"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def trouble(error: OSError) -> str:
    """What an error says in few words; libraries (HDF5, safetensors) hide the system's among many."""
    words = error.strerror or " ".join(str(error).split())
    known = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO))
    return next((text for text in known if text in words), words)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def sweep(path: str | Path) -> None:
    """Delete the temporary files that killed processes have left for `path`. Nobody else may be writing it."""
    target = Path(path)
    for old in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(OSError):
            old.unlink()


def create_text(path: str | Path, text: str) -> bool:
    """Create a file with its whole content, unless it is there already; says whether it was created.

    Of several processes that try, on whichever nodes, one succeeds: a hard link is made or not, on NFS too.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, target)
    except (FileExistsError, FileNotFoundError):  # somebody was first, and may have swept up since
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        try:  # a file system without hard links
            with open(target, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


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
