"""Work cut into shards: the same command on a laptop, in a Slurm array, over several machines.

A job is a number of items (samples; members × initial times), each a function of its number alone. A *shard* is a range of
items that one process makes. What makes the result the same for any number of shards is that an item does not depend on its
shard; what makes it whole is an order of writing:

1. a process takes the shard's lock (`perrin.run.lock`);
2. it writes the shard's data under a temporary name and renames it, or writes chunks of a store that are its alone;
3. it writes the shard's *receipt*, with a digest of the data, atomically. A shard is done when it has a receipt.

Whatever ends a process in between, the shard has no receipt and is made again, from what its scratch folder holds. The
folder of a run:

    job.json               what is made: command, identity, shards
    job.sh, logs/          for Slurm
    shards/00003.…         data of shard 3 (or regions of a store)
    shards/00003.json      its receipt
    scratch/00003/         unfinished work
    locks/00003.1          who is at work
    manifest.json          after the merge: all receipts
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perrin.errors import PerrinError
from perrin.run.atomic import atomic_path, create_text, sweep, write_json
from perrin.run.lock import Lock, Taken, holder
from perrin.run.record import file_digest, versions

FORMAT = "perrin-job-1"


@dataclass(frozen=True)
class Shard:
    """Items that one process makes.

    Arguments:
        number: from 0; the index of the array task.
        items: the numbers of its items.
    """

    number: int
    items: range

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.number:05d}"


def cut(total: int, count: int, align: int = 1) -> list[Shard]:
    """`total` items in `count` consecutive shards of equal size, but for `align`, of which every cut is a multiple.

    Raises:
        PerrinError: there are fewer pieces than shards.
    """
    pieces = -(-total // align)
    if not 1 <= count <= pieces:
        raise PerrinError(f"expected 1 to {pieces} shards, given {count}: change --shards")
    edges = [min(total, i * pieces // count * align) for i in range(count + 1)]
    return [Shard(i, range(edges[i], edges[i + 1])) for i in range(count)]


class ShardedJob(ABC):
    """How a verb's work is cut: what a modality returns from `Modality.shards`.

    An object is made anew, from the command line, in every process. Item i must be a function of the command and of i
    alone: the same bits in any shard. Making it must not write outside the run's folder.

    Attributes:
        total: number of items.
        align: shards are cut at multiples of it: the items in a chunk of the output.
        rates: the verb's word for items, in reports.
    """

    total: int
    align: int = 1
    items_name: str = "samples"

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes the items what they are, as plain JSON: hashes of bundles and inputs, seed, options. A process that
        finds another identity than the job was submitted with refuses to work."""

    def prepare(self, folder: Path) -> None:  # noqa: B027 (most jobs need none)
        """Make what all shards share, such as an empty store; called once, before any shard is made."""

    @abstractmethod
    def write(self, shard: Shard, folder: Path, scratch: Path) -> None:
        """Make the shard's items and put them where they belong. `scratch` is for unfinished work, of this shard alone, and
        holds what a process that was stopped has left there."""

    @abstractmethod
    def digest(self, shard: Shard, folder: Path) -> str:
        """A SHA-256 of the shard's data as they are stored; it tells whether they are intact.

        Raises:
            OSError: they are not there, or unreadable.
        """

    @abstractmethod
    def merge(self, shards: Sequence[Shard], folder: Path, output: Path | None) -> Path:
        """One output of all shards, streaming; `output` is the user's name for it, if there is one. Returns its path."""


class FileShards(ShardedJob):
    """A job whose shards are one file each.

    Attributes:
        suffix: of the files.
    """

    suffix: str

    def path(self, shard: Shard, folder: Path) -> Path:
        """The shard's file."""
        return folder / "shards" / (shard.name + self.suffix)

    @abstractmethod
    def make(self, items: range, path: Path, scratch: Path) -> None:
        """Write the items into the new file `path`, which is renamed afterwards."""

    def write(self, shard: Shard, folder: Path, scratch: Path) -> None:
        """See `ShardedJob`."""
        target = self.path(shard, folder)
        sweep(target)
        with atomic_path(target) as temporary:
            self.make(shard.items, temporary, scratch)

    def digest(self, shard: Shard, folder: Path) -> str:
        """See `ShardedJob`."""
        return file_digest(self.path(shard, folder))


class RunFolder:
    """The folder of a run.

    Raises:
        PerrinError: there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        try:
            content = json.loads((self.path / "job.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise PerrinError(
                f"expected the folder of a run, given {path}, which has no job.json: check the path, or 'perrin submit' one"
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no JSON"
            raise PerrinError(
                f"expected the folder of a run with its job.json, given {path} ({reason}): check the path"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise PerrinError(
                f"expected a job.json of format {FORMAT} in {path}, given another: update perrin"
            )
        self.content: dict[str, Any] = content
        edges = content["edges"]
        self.shards = [Shard(i, range(edges[i], edges[i + 1])) for i in range(len(edges) - 1)]

    @classmethod
    def create(cls, path: str | Path, job: ShardedJob, shards: Sequence[Shard], **more: Any) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            PerrinError: it holds one already, or cannot be written.
        """
        folder = Path(path).resolve()
        content = {
            "format": FORMAT,
            "id": hashlib.sha256(f"{folder}{time.time_ns()}{os.getpid()}".encode()).hexdigest()[:8],
            **more,
            "identity": job.identity(),
            "items": job.total,
            "items_name": job.items_name,
            "edges": [0, *(s.items.stop for s in shards)],
            "versions": versions(),
            "created": _now(),
        }
        refusal = f"expected a new folder, given {path}, which holds a run: 'perrin run resume {path}' goes on with it"
        if (folder / "job.json").exists():
            raise PerrinError(refusal)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            job.prepare(folder)
            created = create_text(
                folder / "job.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            )
        except OSError as error:
            raise PerrinError(
                f"expected to make the folder {path}, met: {error.strerror}; choose another"
            ) from error
        if not created:
            raise PerrinError(refusal)
        return cls(folder)

    @property
    def name(self) -> str:
        """The job's name for Slurm."""
        return f"perrin-{self.content['id']}"

    def check_identity(self, job: ShardedJob) -> None:
        """Raise a `PerrinError` unless `job` is what was submitted."""
        found, given = self.content["identity"], json.loads(json.dumps(job.identity()))
        if found != given:
            names = sorted(k for k in {*found, *given} if found.get(k) != given.get(k))
            raise PerrinError(
                f"expected the job that was submitted to {self.path}, given another ({', '.join(names)} changed): restore "
                "it, or submit to a new folder"
            )

    def shard(self, number: int) -> Shard:
        """One shard.

        Raises:
            PerrinError: there is no such shard.
        """
        if not 0 <= number < len(self.shards):
            raise PerrinError(f"expected a shard from 0 to {len(self.shards) - 1}, given {number}")
        return self.shards[number]

    def receipt(self, shard: Shard) -> dict[str, Any] | None:
        """The shard's receipt, if it is done."""
        try:
            content = json.loads(self._receipt(shard).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        own = isinstance(content, dict) and content.get("job") == self.content["id"]
        return content if own and content.get("items") == [shard.items.start, shard.items.stop] else None

    def missing(self) -> list[Shard]:
        """Shards that are not done."""
        return [s for s in self.shards if self.receipt(s) is None]

    def intact(self, job: ShardedJob, shard: Shard) -> bool:
        """Whether the data of a finished shard are those that its receipt was written for."""
        receipt = self.receipt(shard)
        try:
            return receipt is not None and receipt["digest"] == job.digest(shard, self.path)
        except OSError:
            return False

    def forget(self, shard: Shard) -> None:
        """Take back a shard's receipt, so that it is made again."""
        self._receipt(shard).unlink(missing_ok=True)

    def scratch(self, shard: Shard) -> Path:
        """Where its unfinished work is."""
        return self.path / "scratch" / shard.name

    def lock(self, name: str, what: str) -> Lock:
        """The lock of a shard, the merge or a resumption."""
        return Lock(self.path / "locks" / name, what)

    def at_work(self, shard: Shard) -> dict[str, Any] | None:
        """Who is making a shard, if anybody is."""
        return holder(self.path / "locks" / shard.name)

    def run(self, job: ShardedJob, shard: Shard) -> bool:
        """Make one shard, unless it is done; says whether it had to be made.

        Raises:
            Taken: another process is at work on it.
            PerrinError: the disk is full, or what the job raises.
        """
        if self.receipt(shard) is not None:
            return False
        lock = self.lock(shard.name, f"shard {shard.number} of {self.path}")
        with lock:
            if self.receipt(shard) is not None:
                return False
            scratch = self.scratch(shard)
            scratch.mkdir(parents=True, exist_ok=True)
            started, begin = _now(), time.perf_counter()
            job.write(shard, self.path, scratch)
            receipt = {
                "job": self.content["id"],
                "shard": shard.number,
                "items": [shard.items.start, shard.items.stop],
                "digest": job.digest(shard, self.path),
                "started": started,
                "finished": _now(),
                "seconds": round(time.perf_counter() - begin, 3),
                "memory_MiB": _memory(),
                **place(),
                "versions": versions(),
            }
            if not lock.mine():
                raise Taken(
                    f"expected shard {shard.number} for this process alone, but another has taken it over, which thought "
                    "this one dead: that one goes on"
                )
            sweep(self._receipt(shard))
            write_json(self._receipt(shard), receipt)
        shutil.rmtree(scratch, ignore_errors=True)
        lock.remove()
        return True

    def work(self, job: ShardedJob) -> int:
        """Make one shard after another until none is free; returns how many. Any number of processes may do this at once."""
        done = 0
        for shard in [*self.missing()]:
            if self.at_work(shard) is None:
                try:
                    done += self.run(job, shard)
                except Taken:
                    continue
        return done

    def merge(self, job: ShardedJob, output: Path | None, command: Sequence[str] = ()) -> Path:
        """One output of all shards, and `manifest.json`.

        Raises:
            PerrinError: a shard is missing or damaged.
        """
        with self.lock("merge", f"the merge of {self.path}"):
            if missing := self.missing():
                raise PerrinError(
                    f"expected {len(self.shards)} finished shards, given {len(self.shards) - len(missing)} (missing "
                    f"{numbers(missing)}): 'perrin run status {self.path}' says why, 'perrin run resume {self.path}' goes on"
                )
            damaged = [s for s in self.shards if not self.intact(job, s)]
            if damaged:
                raise PerrinError(
                    f"expected shards as they were written, given damaged ones ({numbers(damaged)}: other checksums): "
                    f"'perrin run resume {self.path}' makes them again"
                )
            begin = time.perf_counter()
            try:
                path = job.merge(self.shards, self.path, output)
            except OSError as error:
                raise PerrinError(f"expected to merge {self.path}, met: {error.strerror or error}") from error
            receipts = [self.receipt(s) or {} for s in self.shards]
            manifest = {
                **{k: self.content[k] for k in ("id", "argv", "identity", "items", "versions", "created")},
                "output": str(path),
                "merged": {"time": _now(), "seconds": round(time.perf_counter() - begin, 3), **place()},
                "seconds": round(sum(r.get("seconds", 0) for r in receipts), 3),
                "nodes": sorted({r.get("node", "") for r in receipts}),
                "shards": receipts,
            }
            sweep(self.path / "manifest.json")
            write_json(self.path / "manifest.json", manifest)
            others = {json.dumps(r.get("versions"), sort_keys=True) for r in receipts}
            if len(others) > 1:
                print(
                    f"shards were made with {len(others)} sets of versions: see {self.path}/manifest.json",
                    file=sys.stderr,
                )
            return path

    def _receipt(self, shard: Shard) -> Path:
        return self.path / "shards" / f"{shard.name}.json"


def numbers(shards: Sequence[Shard]) -> str:
    """Numbers of shards as Slurm writes them: `0-3,7`."""
    return ranges([s.number for s in shards])


def ranges(values: Sequence[int]) -> str:
    """Whole numbers as `0-3,7`."""
    out: list[list[int]] = []
    for value in sorted(values):
        if out and out[-1][1] == value - 1:
            out[-1][1] = value
        else:
            out.append([value, value])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def place() -> dict[str, Any]:
    """Where this process runs."""
    environment = os.environ
    task = environment.get("SLURM_ARRAY_TASK_ID")
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID")
    out: dict[str, Any] = {"node": environment.get("SLURMD_NODENAME") or socket.gethostname()}
    if job:
        out["slurm"] = f"{job}_{task}" if task else job
        out["restarts"] = int(environment.get("SLURM_RESTART_COUNT") or 0)
    return out


def _memory() -> int:
    """The most memory that this process or one of its children has used, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        // unit
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def argv_of(content: Mapping[str, Any]) -> list[str]:
    """The command of a job."""
    return [str(word) for word in content["argv"]]
