"""Jobs whose results are known in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perrin.run.atomic import atomic_path, sweep, write_text
from perrin.run.blocks import BlockWriter, read_blocks
from perrin.run.shards import FileShards, Shard
from perrin.run.store import StoreShards


def line(seed: int, i: int) -> str:
    """Item i: its number, and something that is its alone."""
    return f"{i} {np.random.Generator(np.random.Philox(key=[seed, i])).integers(2**62, size=40).tolist()}\n"


class Lines(FileShards):
    """Lines of text; every few of them are kept while the shard is being made."""

    suffix = ".txt.gz"
    items_name = "lines"

    def __init__(self, total: int, seed: int = 0, *, every: int = 4) -> None:
        self.total, self.seed, self.every = total, seed, every
        self.made: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {"total": self.total, "seed": self.seed}

    def make(self, items: range, path: Path, scratch: Path) -> None:
        with BlockWriter(path) as out:
            for start in range(items.start, items.stop, self.every):
                part = scratch / f"{start}.txt"
                if not part.is_file():
                    numbers = range(start, min(start + self.every, items.stop))
                    write_text(part, "".join(self.one(i) for i in numbers))
                out.write(part.read_text())

    def one(self, i: int) -> str:
        self.made.append(i)
        return line(self.seed, i)

    def merge(self, shards: Sequence[Shard], folder: Path, output: Path | None) -> Path:
        path = output or folder / "lines.txt.gz"
        sweep(path)
        with atomic_path(path) as temporary, BlockWriter(temporary) as out:
            for shard in shards:
                for piece in read_blocks(self.path(shard, folder)):
                    out.write(piece)
        return path

    def truth(self, path: Path) -> bytes:
        """What the merged file must be, written in one go."""
        with BlockWriter(path) as out:
            out.write("".join(line(self.seed, i) for i in range(self.total)))
        return path.read_bytes()


def numbers(path: Path) -> Iterator[int]:
    """The numbers of the items in a merged file."""
    for text in b"".join(read_blocks(path)).decode().splitlines():
        yield int(text.split()[0])


class Ensemble(StoreShards):
    """Fields `[lead, y, x]`: the initial time, the member, and noise of their own."""

    def __init__(self, times: int = 3, members: int = 8, chunk: int = 2, seed: int = 0) -> None:
        super().__init__(times=times, members=members, chunk=chunk, variables=("t2m", "z500"))
        self.seed = seed
        self.made: list[tuple[int, range]] = []

    def identity(self) -> dict[str, Any]:
        return {"times": self.times, "members": self.members, "chunk": self.chunk, "seed": self.seed}

    def create(self, path: Path) -> None:
        import xarray as xr

        shape = (self.times, self.members, 4, 5, 6)
        dims = ("time", "member", "lead", "lat", "lon")
        empty = {name: (dims, np.full(shape, np.nan, np.float32)) for name in self.variables}
        data = xr.Dataset(empty, coords={"time": np.arange(self.times), "member": np.arange(self.members)})
        encoding = {name: {"chunks": (1, self.chunk, 4, 5, 6)} for name in self.variables}
        data.to_zarr(path, encoding=encoding, compute=True, consolidated=False, zarr_format=3)

    def compute(self, time: int, members: range) -> Mapping[str, np.ndarray]:
        self.made.append((time, members))
        return {
            name: np.stack([self.field(k, time, m) for m in members]) for k, name in enumerate(self.variables)
        }

    def field(self, k: int, time: int, member: int) -> np.ndarray:
        key = [self.seed * 1000 + k, time * 1000 + member]
        noise = np.random.Generator(np.random.Philox(key=key)).standard_normal((4, 5, 6))
        return (100 * time + member + noise).astype(np.float32)
