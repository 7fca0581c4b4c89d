"""Names of outputs: NetCDF files and Zarr stores. The command line asks before anything heavy is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from perrin.errors import PerrinError

SUFFIXES = (".nc", ".nc4", ".zarr")
_ZARR = ("zarr.json", ".zgroup")


def check_path(path: str | Path) -> None:
    """Say what is wrong with an output's name before any work is done.

    Raises:
        PerrinError: its suffix is another one, zarr is asked for and missing, or it is a folder that is no store.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise PerrinError(
            f"expected an output that ends in {', '.join(SUFFIXES)}, given {path}: choose one of them"
        )
    if path.suffix == ".zarr" and importlib.util.find_spec("zarr") is None:
        raise PerrinError(f"expected the package zarr for {path}, which is not installed: pip install zarr")
    if path.suffix == ".zarr" and path.exists() and not any((path / n).exists() for n in _ZARR):
        raise PerrinError(
            f"expected a new name or a Zarr store to replace, given {path}, which is something else"
        )
    if path.suffix != ".zarr" and path.is_dir():
        raise PerrinError(f"expected an output file, given the directory {path}: add a file name")
