"""ROOT files through uproot: one tree of flat, fixed or jagged branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from perrin.errors import PerrinError, install

SUFFIX = ".root"


def needed(name: str) -> Any:
    """A module of the extra `hep`. Raises a `PerrinError` where it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise PerrinError(
            f"expected the package {name}, found none that works ({error}): {install('hep')}"
        ) from error


def write_tree(path: str | Path, name: str, branches: Mapping[str, Any], title: str = "") -> None:
    """Write one tree.

    Arguments:
        path: a file that may be written over; the caller sees to it that it is a temporary one.
        name: of the tree.
        branches: arrays `[N]` or `[N, k]`, or awkward arrays of records, one of each for every entry.
        title: of the tree.
    """
    uproot = needed("uproot")
    with uproot.recreate(str(path)) as file:
        file.mktree(name, {k: _type(v) for k, v in branches.items()}, title=title)
        file[name].extend(dict(branches))


def _type(values: Any) -> Any:
    """Of one entry of a branch."""
    if isinstance(values, np.ndarray):
        return np.dtype((values.dtype, values.shape[1:]))
    return values.type.content


def trees(path: str | Path) -> dict[str, list[str]]:
    """Branches of a file's trees.

    Raises:
        PerrinError: the file is missing or no ROOT file, or uproot is missing.
    """
    with _opened(path) as file:
        return {k: file[k].keys() for k, c in file.classnames(cycle=False).items() if c == "TTree"}


def read_tree(path: str | Path, name: str, branches: Sequence[str], limit: int | None = None) -> Any:
    """Branches of a tree, as an awkward array.

    Raises:
        PerrinError: as `trees` does, or the tree or a branch is missing.
    """
    found = trees(path)
    missing = [k for k in branches if k not in found.get(name, [])]
    if missing:
        raise PerrinError(
            f"expected a tree {name} with branches {', '.join(branches)} in {path}, given none named {missing[0]!r}"
        )
    with _opened(path) as file:
        try:
            return file[name].arrays(list(branches), entry_stop=limit)
        except Exception as error:  # whatever decompression raises
            raise PerrinError(
                f"expected a whole ROOT file, given {path}, which is damaged: get it again"
            ) from error


def _opened(path: str | Path) -> Any:
    uproot = needed("uproot")
    if not Path(path).is_file():
        raise PerrinError(f"expected a ROOT file, given {path}, which is not there: check the path")
    try:
        return uproot.open(str(path))
    except Exception as error:  # it has many
        raise PerrinError(
            f"expected a ROOT file, given {path}, which cannot be read as one: check it"
        ) from error
