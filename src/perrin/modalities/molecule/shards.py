"""`perrin submit sample molecule/…`: a shard is an SDF.gz of consecutive molecules.

A shard is made in blocks of consecutive molecules, each kept in the scratch folder when it is done, so that neither memory
nor what a stop can cost grows with the number of molecules. Within a block, batches are kept too (`perrin.run.partial`).
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError
from perrin.modalities.molecule.commands import (
    _labelled,
    _pack,
    _run,
    _setup,
    _unpack,
    prepare_sampling,
)
from perrin.modalities.molecule.files import check_suffix, sdf_records
from perrin.modalities.molecule.predicted import MET
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.telling import judge, row_of, spoken
from perrin.modalities.molecule.textfile import is_packed, kind
from perrin.run.atomic import atomic_path, sweep
from perrin.run.blocks import BlockWriter, read_blocks
from perrin.run.outputs import record_path
from perrin.run.partial import PartialStore
from perrin.run.pool import cpu_count, map_unordered
from perrin.run.progress import progress
from perrin.run.record import record, write_record
from perrin.run.shards import FileShards, Shard

_WAVE = 16
"""Blocks whose batches are planned together."""


def block_size(batch: int) -> int:
    """Molecules in a block: enough for full batches of most sizes."""
    return max(1024, 16 * batch)


_INDEX = "> <index>\n"
_MET = f"> <{MET}>\n".encode()


class SampleShards(FileShards):
    """Sampled molecules, by number; see `perrin.run.shards.FileShards`.

    Arguments:
        a: of `perrin sample`.

    Raises:
        PerrinError: as `perrin sample` does.
    """

    suffix = ".sdf.gz"
    items_name = "molecules"

    def __init__(self, a: Namespace) -> None:
        for name in ("view", "evaluate"):
            if getattr(a, name):
                raise PerrinError(
                    f"expected no --{name} with 'submit', given one: merge, then 'perrin {name}' the file"
                )
        self.arguments = a
        self.work = prepare_sampling(a)
        self.total = a.n

    def identity(self) -> dict[str, Any]:
        """Weights, seed, number and options."""
        a = self.arguments
        return {"verb": "sample", "target": a.target, "n": a.n, **self.work.key}

    def make(self, items: range, path: Path, scratch: Path) -> None:
        """See `perrin.run.shards.FileShards`."""
        size = block_size(self.work.batch)
        blocks = [range(k, min(k + size, items.stop)) for k in range(items.start, items.stop, size)]
        kept = [scratch / f"{block.start}.sdf.gz" for block in blocks]
        todo = [(b, p) for b, p in zip(blocks, kept, strict=True) if not _whole(p, b)]
        with progress(f"sampling {self.arguments.target}", len(items)) as advance:
            advance(len(items) - sum(len(b) for b, _ in todo))
            for k in range(0, len(todo), _WAVE):
                for part, text in self._blocks(todo[k : k + _WAVE], scratch, advance):
                    with atomic_path(part) as temporary, BlockWriter(temporary) as file:
                        for line in text:
                            file.write(line)
        with BlockWriter(path) as out:
            for part in kept:
                for piece in read_blocks(part):
                    out.write(piece)

    def _blocks(
        self, todo: Sequence[tuple[range, Path]], scratch: Path, advance: Callable[[int], None]
    ) -> Iterator[tuple[Path, Iterator[str]]]:
        """The files of blocks that are to be made, and their text, as they are finished."""
        a, work = self.arguments, self.work
        found: dict[range, dict[int, Molecule]] = {}
        stores: dict[range, PartialStore] = {}
        owner: dict[tuple[int, ...], range] = {}
        units = []
        for block, _ in todo:
            stores[block] = PartialStore(scratch / str(block.start), work.key)
            made: dict[int, Molecule] = {}
            for indices, part in stores[block].load():
                made |= zip(indices, _unpack(part, work.model.name, a.seed, indices), strict=True)
            found[block] = made
            sizes = work.model.sizes(a.seed, len(block), work.atoms, work.options.want, first=block.start)
            done = [i - block.start for i in made]
            for unit in work.model.units(sizes, batch=work.batch, done=done, first=block.start):
                units.append(unit)
                owner[unit.indices] = block
            if len(made) < len(block):  # what is on disk is read again when its turn comes
                found[block] = {}
        count = 1 if len(units) < 4 else a.workers or (cpu_count() if work.device == "cpu" else 1)
        settings = (work.model, a.seed, work.options, 1 if work.device == "cpu" else None)
        left = {block: sum(1 for o in owner.values() if o == block) for block, _ in todo}
        paths = dict(todo)

        def finished(block: range) -> tuple[Path, Iterator[str]]:
            made = found.pop(block)
            if len(made) < len(block):
                for indices, part in stores[block].load():
                    made |= zip(indices, _unpack(part, work.model.name, a.seed, indices), strict=True)
            labelled = [_labelled(made[i], a.target, a.seed, i) for i in block]
            verdict = judge(work.model, work.options, a.want or (), labelled)
            return paths[block], sdf_records(verdict.molecules)

        for block in [b for b, n in left.items() if n == 0]:
            yield finished(block)
            stores[block].remove()
        advance(sum(len(b) for b, _ in todo) - sum(len(u.indices) for u in units))
        for unit, molecules in map_unordered(_run, units, workers=count, setup=_setup, arguments=settings):
            block = owner[unit.indices]
            stores[block].save(unit.indices, _pack(molecules))
            left[block] -= 1
            advance(len(unit.indices))
            if left[block] == 0:
                yield finished(block)
                stores[block].remove()

    def merge(self, shards: Sequence[Shard], folder: Path, output: Path | None) -> Path:
        """One SDF or SDF.gz, the bytes that `perrin sample` would have written, and its `run.json`."""
        a = self.arguments
        given = Path(a.out)
        path = output or (folder / "sample.sdf.gz" if given.absolute() == folder else given.absolute())
        check_suffix(path)
        if kind(path) != ".sdf":
            raise PerrinError(f"expected an output file with the suffix .sdf or .sdf.gz, given {path}")
        count = 0
        met = judged = 0
        sweep(path)
        sweep(record_path(path))
        with atomic_path(path) as temporary:
            out: Any = BlockWriter(temporary) if is_packed(path) else open(temporary, "wb")  # noqa: SIM115
            with out:
                for shard in shards:
                    number = shard.items.start
                    for record_text in _records(self.path(shard, folder)):
                        if _index(record_text) != number:
                            raise PerrinError(
                                f"expected molecule {number} in {self.path(shard, folder)}, given {_index(record_text)}: "
                                f"delete {shard.name}.json beside it, then 'perrin run resume {folder}'"
                            )
                        out.write(record_text)
                        judged += _MET in record_text
                        met += _MET + b"1\n" in record_text
                        number += 1
                    if number != shard.items.stop:
                        raise PerrinError(
                            f"expected {len(shard.items)} molecules in {self.path(shard, folder)}, given "
                            f"{number - shard.items.start}: delete {shard.name}.json beside it, then 'perrin run resume "
                            f"{folder}'"
                        )
                    count += len(shard.items)
        wishes: dict[str, Any] = {
            w.name: row_of(w) for w in spoken(self.work.model, self.work.options, a.want or ())
        }
        if judged:
            wishes["all"] = {"met": met / judged}
        words = ["sample", a.target, *_without_target(a.argv[1:], a.target), "-o", str(path)]
        content = record(
            "sample",
            Namespace(**(vars(a) | {"out": str(path), "argv": words})),
            bundle={"path": a.target, "sha256": self.work.model.sha256},
            sampling=self.work.options.to_json(),
            result={
                "molecules": count,
                "evaluations": self.work.options.evaluations(self.work.plan),
                "shards": len(shards),
                **({"wishes": wishes} if wishes else {}),
            },
            manifest=str(folder / "manifest.json"),
        )
        write_record(record_path(path), content)
        return path


def _without_target(words: Sequence[str], target: str) -> list[str]:
    """The verb's options, less its output."""
    out = list(words)
    out.remove(target)
    place = len(out) - 1 - out[::-1].index("--out")
    del out[place : place + 2]
    return out


def _records(path: Path) -> Iterator[bytes]:
    """The records of an SDF.gz, streaming."""
    rest = b""
    for piece in read_blocks(path):
        *whole, rest = (rest + piece).split(b"$$$$\n")
        for text in whole:
            yield text + b"$$$$\n"
    if rest:
        raise OSError(f"{path} ends within a record")


def _index(text: bytes) -> int | None:
    """The data item `index` of a record."""
    _, mark, rest = text.partition(_INDEX.encode())
    word = rest.partition(b"\n")[0]
    return int(word) if mark and word.isdigit() else None


def _whole(path: Path, block: range) -> bool:
    """Whether a block's file is there and has its molecules; its unfinished parts are then of no use."""
    try:
        fine = [_index(text) for text in _records(path)] == list(block)
    except OSError:
        return False
    if fine:
        shutil.rmtree(path.with_name(f"{block.start}.partial"), ignore_errors=True)
    return fine
