"""Ensembles in shards: members × initial times, written concurrently as regions of one Zarr store.

Item `i` is member `i mod M` of initial time `i // M`. Every array of the store that holds results has the dimensions (time,
member, …), and its chunks hold one time and `chunk` members; shards are cut at chunks, so no two processes ever write the
same file. A chunk that was being written when its process was killed is written again, since the shard has no receipt.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perrin.errors import PerrinError, install
from perrin.run.atomic import write_text
from perrin.run.shards import Shard, ShardedJob

if TYPE_CHECKING:
    import numpy as np


class StoreShards(ShardedJob):
    """A job that fills one Zarr store.

    Attributes:
        times, members: initial times and members in each.
        chunk: members in a chunk, a divisor of `members`.
        variables: names of the arrays that are filled, each of shape `[times, members, …]`.
        store_name: of the store in the run's folder.

    Raises:
        PerrinError: `chunk` does not divide `members`.
    """

    items_name = "members"
    store_name = "forecast.zarr"

    def __init__(self, *, times: int, members: int, chunk: int, variables: Sequence[str]) -> None:
        if chunk < 1 or members < 1 or times < 1 or members % chunk:
            raise PerrinError(
                f"expected members in whole chunks, given {members} in chunks of {chunk}: change one of them"
            )
        self.times, self.members, self.chunk, self.variables = times, members, chunk, tuple(variables)
        self.total, self.align = times * members, chunk

    @abstractmethod
    def create(self, path: Path) -> None:
        """Make the empty store at `path`: coordinates, attributes, and the arrays `variables` with their chunks."""

    @abstractmethod
    def compute(self, time: int, members: range) -> Mapping[str, np.ndarray]:
        """The members (one chunk of them) of one initial time: for each variable an array `[len(members), …]`.

        Member m of time t must be a function of t and m alone.
        """

    def store(self, folder: Path) -> Path:
        """Where the store is."""
        return folder / self.store_name

    def prepare(self, folder: Path) -> None:
        """Make the empty store, whole or not at all.

        Raises:
            PerrinError: its chunks are not one time and `chunk` members.
        """
        path = self.store(folder)
        if path.exists():
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.create(temporary)
            for name, array in self._arrays(temporary, "r").items():
                if array.shape[:2] != (self.times, self.members) or array.chunks[:2] != (1, self.chunk):
                    raise PerrinError(
                        f"expected {name} of {self.times} times × {self.members} members in chunks of 1 × {self.chunk}, "
                        f"given shape {array.shape[:2]} in chunks of {array.chunks[:2]}"
                    )
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write(self, shard: Shard, folder: Path, scratch: Path) -> None:
        """See `ShardedJob`. A chunk that was finished before is not computed again."""
        arrays = self._arrays(self.store(folder), "r+")
        for time, members in self.chunks(shard.items):
            mark = scratch / f"{time}-{members.start}"
            if mark.is_file() and mark.read_text() == self._digest(arrays, time, members):
                continue
            found = self.compute(time, members)
            try:
                for name in self.variables:
                    arrays[name][time, members.start : members.stop] = found[name]
            except OSError as error:
                raise PerrinError(
                    f"expected to write {self.store(folder)}, met: {error.strerror or error}; free some space"
                ) from error
            write_text(mark, self._digest(arrays, time, members))

    def chunks(self, items: range) -> Iterator[tuple[int, range]]:
        """Initial time and members of every chunk of a shard."""
        for start in range(items.start, items.stop, self.chunk):
            time, member = divmod(start, self.members)
            yield time, range(member, member + self.chunk)

    def digest(self, shard: Shard, folder: Path) -> str:
        """A hash of the numbers, as they are read back; see `ShardedJob`."""
        found = hashlib.sha256()
        try:
            arrays = self._arrays(self.store(folder), "r")
            for time, members in self.chunks(shard.items):
                found.update(self._digest(arrays, time, members).encode())
        except Exception as error:  # zarr and its codecs have no common class
            raise OSError(f"{self.store(folder)} is damaged ({error})") from error
        return found.hexdigest()

    def merge(self, shards: Sequence[Shard], folder: Path, output: Path | None) -> Path:
        """Nothing is copied: the store is whole."""
        path = self.store(folder)
        if output is not None and output != path:
            raise PerrinError(
                f"expected no -o, given {output}: the store is whole at {path}; move it if you like"
            )
        consolidate(path)
        return path

    def _digest(self, arrays: Mapping[str, Any], time: int, members: range) -> str:
        found = hashlib.sha256()
        for name in self.variables:
            found.update(arrays[name][time, members.start : members.stop].tobytes())
        return found.hexdigest()

    def _arrays(self, path: Path, mode: Any) -> dict[str, Any]:
        try:
            import zarr
        except ImportError as error:
            raise PerrinError(f"expected the package zarr, found none: {install('weather')}") from error
        group = zarr.open_group(path, mode=mode, use_consolidated=False)
        return {name: group[name] for name in self.variables}


def consolidate(store: Path) -> None:
    """Copy all metadata of a finished store into one file, so that it opens quickly, and in xarray without a warning."""
    import zarr

    with (
        warnings.catch_warnings()
    ):  # the third version's specification does not have it yet; xarray writes it too
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(store))
