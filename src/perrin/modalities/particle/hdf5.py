"""Opening HDF5 files with errors that users can act on."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError, install
from perrin.run.atomic import atomic_path


@contextmanager
def new_hdf5(path: str | Path) -> Iterator[Any]:
    """A new HDF5 file, made in memory and written when it is whole: on a full disk the library ends the process.

    Raises:
        PerrinError: it cannot be written.
    """
    import h5py

    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        yield file
    with atomic_path(path) as temporary:
        temporary.write_bytes(memory.getbuffer())


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[Any]:
    """An HDF5 file, open for reading.

    Raises:
        PerrinError: h5py is missing, or the file is missing, damaged or something else.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise PerrinError(f"expected the package h5py, found none: {install('particle')}") from error
    if not Path(path).is_file():
        what = "a directory" if Path(path).is_dir() else "which does not exist"
        raise PerrinError(f"expected an HDF5 file, given {path}, {what}: check the path")
    if not os.access(path, os.R_OK):
        raise PerrinError(f"expected an HDF5 file that you may read, given {path}: mend its permissions")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise PerrinError(
            f"expected an HDF5 file, given {path}, which cannot be read as one: check it"
        ) from error
    try:
        with file:
            yield file
    except OSError as error:  # chunks that were cut off or damaged
        raise PerrinError(
            f"expected a whole HDF5 file, given {path}, which is damaged: get it again"
        ) from error
