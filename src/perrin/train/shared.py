"""Data that many processes train on, without a copy in each.

One rank prepares the tensors and writes them into one safetensors file; every rank maps that file into its memory. Ranks on
a node share its pages, which the kernel may drop and read again: memory does not grow with the number of ranks, and the
data may be larger than it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perrin.errors import PerrinError
from perrin.run.atomic import sweep, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "perrin.key"


def shared_tensors(
    path: str | Path,
    key: str,
    make: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, str]]],
    *,
    rank: int,
    patience: float = 7200.0,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of `make`, mapped from a file.

    Arguments:
        path: of the file, where every rank sees it.
        key: what the data are; a file of another key is made anew.
        make: prepares the data; called by rank 0, unless the file is there.
        rank: of this process.
        patience: seconds to wait for rank 0.

    Raises:
        PerrinError: rank 0 has not written the file, or it cannot be written.
    """
    stop = time.monotonic() + patience
    while (found := mapped(path, key)) is None:
        if rank == 0:
            tensors, metadata = make()
            sweep(path)
            write_tensors(path, tensors, {**metadata, _KEY: key})
        elif time.monotonic() > stop:
            raise PerrinError(
                f"expected rank 0 to prepare {path} within {patience:.0f} s, given none: see its messages"
            )
        else:
            time.sleep(0.2)
    return found


def mapped(path: str | Path, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors of a file as views of its pages; `None` if it is not there, damaged or of another key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.pop(_KEY, None) != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
