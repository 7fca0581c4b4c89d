"""Shards: the same result for any number of them, nothing lost or made twice, damage found, one process at a time."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.run.toys import Ensemble, Lines, line, numbers

from perrin.errors import PerrinError
from perrin.run import lock as locks
from perrin.run.atomic import create_text
from perrin.run.blocks import BLOCK, END, BlockWriter, read_blocks
from perrin.run.lock import Lock, Taken, holder
from perrin.run.shards import RunFolder, cut, ranges

FORK = multiprocessing.get_context("fork")


def run_of(path: Path, job: object, count: int) -> RunFolder:
    return RunFolder.create(
        path, job, cut(job.total, count, job.align), argv=["toy"], cwd=str(path), engine="local"
    )  # type: ignore[attr-defined, arg-type]


# text whose bytes do not depend on who wrote it


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
@pytest.mark.parametrize("random", [False, True], ids=["text", "noise"])
def test_blocks_are_gzip_and_do_not_depend_on_the_pieces(tmp_path: Path, size: int, random: bool) -> None:
    generator = np.random.default_rng(size)
    data = generator.bytes(size) if random else (b"0.1234 C\n" * (size // 9 + 1))[:size]
    found = set()
    for pieces in (1, 2, 7):
        path = tmp_path / f"{pieces}.gz"
        with BlockWriter(path) as file:
            for part in np.array_split(np.frombuffer(data, np.uint8), pieces):
                file.write(part.tobytes())
        found.add(path.read_bytes())
        assert gzip.decompress(path.read_bytes()) == data == b"".join(read_blocks(path, 1000))
    assert len(found) == 1
    assert found.pop().endswith(END)


def test_the_end_mark_is_that_of_bgzf() -> None:
    """The EOF marker of the SAM specification, section 4.1.2."""
    assert bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000") == END


def test_a_file_that_is_cut_off_or_damaged_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with BlockWriter(path) as file:
        file.write(b"some text\n" * 20_000)
    whole = path.read_bytes()
    for cut_at in (0, 10, len(whole) // 2, len(whole) - 28, len(whole) - 1):
        path.write_bytes(whole[:cut_at])
        with pytest.raises(OSError, match="cut off"):
            list(read_blocks(path))
    for place in (30, len(whole) // 2):
        spoilt = bytearray(whole)
        spoilt[place] ^= 4
        path.write_bytes(spoilt)
        with pytest.raises(OSError, match="damaged"):
            list(read_blocks(path))


# cutting


@pytest.mark.parametrize(
    ("total", "count", "align"), [(10, 3, 1), (7, 7, 1), (24, 5, 2), (100, 6, 16), (5, 1, 1)]
)
def test_shards_cover_every_item_once(total: int, count: int, align: int) -> None:
    shards = cut(total, count, align)
    assert [i for s in shards for i in s.items] == list(range(total))
    assert [s.number for s in shards] == list(range(count))
    assert all(s.items.start % align == 0 and len(s.items) > 0 for s in shards)
    sizes = [-(-len(s.items) // align) for s in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [0, -1, 6])
def test_more_shards_than_pieces_are_refused(count: int) -> None:
    with pytest.raises(PerrinError, match=f"expected 1 to 5 shards, given {count}"):
        cut(10, count, 2)


def test_numbers_as_slurm_writes_them() -> None:
    assert ranges([3, 0, 1, 2, 7, 9, 10]) == "0-3,7,9-10"
    assert ranges([]) == ""


# files


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_the_result_is_the_same_for_any_number_of_shards(tmp_path: Path, count: int) -> None:
    job = Lines(30)
    folder = run_of(tmp_path / "run", job, count)
    assert folder.work(job) == count
    path = folder.merge(job, None)
    assert path.read_bytes() == job.truth(tmp_path / "truth.gz")
    assert sorted(job.made) == list(range(30))
    assert {p.name for p in folder.path.iterdir()} == {
        "job.json", "shards", "scratch", "locks", "lines.txt.gz", "manifest.json",
    }  # fmt: skip
    assert not list((folder.path / "scratch").iterdir())
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert [s["items"] for s in manifest["shards"]] == [[s.items.start, s.items.stop] for s in folder.shards]
    assert manifest["nodes"] == [socket.gethostname()]
    assert all(s["seconds"] >= 0 and s["versions"]["numpy"] for s in manifest["shards"])
    assert folder.work(job) == 0, "finished shards are skipped"


def test_stopped_work_goes_on_where_it_was(tmp_path: Path) -> None:
    class Stopping(Lines):
        def one(self, i: int) -> str:
            if i == 10:
                raise KeyboardInterrupt
            return super().one(i)

    first, second = Stopping(16), Lines(16)
    folder = run_of(tmp_path / "run", first, 1)
    with pytest.raises(KeyboardInterrupt):
        folder.work(first)
    assert not list((folder.path / "shards").iterdir())
    folder.work(second)
    assert second.made == list(range(8, 16)), "the first two parts were kept"
    assert folder.merge(second, None).read_bytes() == second.truth(tmp_path / "truth.gz")


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_shard_is_found_and_made_again(tmp_path: Path, damage: str) -> None:
    job = Lines(20)
    folder = run_of(tmp_path / "run", job, 4)
    folder.work(job)
    shard = folder.shards[2]
    path = job.path(shard, folder.path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "bit" else data[:-30])
    with pytest.raises(PerrinError, match=r"given damaged ones \(2: other checksums\)"):
        folder.merge(job, None)
    assert not (folder.path / "lines.txt.gz").exists()
    assert [s.number for s in folder.shards if not folder.intact(job, s)] == [2]
    folder.forget(shard)
    assert folder.work(job) == 1
    assert folder.merge(job, None).read_bytes() == job.truth(tmp_path / "truth.gz")


def test_a_damaged_receipt_is_none(tmp_path: Path) -> None:
    job = Lines(8)
    folder = run_of(tmp_path / "run", job, 2)
    folder.work(job)
    path = folder.path / "shards" / "00001.json"
    path.write_text(path.read_text()[:20])
    assert [s.number for s in folder.missing()] == [1]
    assert folder.work(job) == 1


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Lines(12)
    folder = run_of(tmp_path / "run", job, 2)
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if target.name in ("00001.txt.gz", "lines.txt.gz", "6.txt") and space == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    space = 0
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PerrinError, match=r"expected to write .* No space left on device; free"):
        folder.work(job)
    assert [s.number for s in folder.missing()] == [1]
    space = 1
    folder.work(job)
    space = 0
    with pytest.raises(PerrinError, match=r"expected to write .*lines.txt.gz, met: No space left"):
        folder.merge(job, None)
    assert not list(folder.path.rglob("*.tmp"))
    assert not (folder.path / "lines.txt.gz").exists()
    space = 1
    assert folder.merge(job, None).read_bytes() == job.truth(tmp_path / "truth.gz")


def test_another_job_is_refused(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", Lines(8), 2)
    with pytest.raises(PerrinError, match=r"expected the job that was submitted to .* \(seed changed\)"):
        folder.check_identity(Lines(8, seed=1))
    with pytest.raises(PerrinError, match=r"expected a new folder, given .* 'perrin run resume"):
        run_of(tmp_path / "run", Lines(8), 2)
    with pytest.raises(
        PerrinError, match=r"expected 2 finished shards, given 0 .missing 0-1.: 'perrin run status"
    ):
        folder.merge(Lines(8), None)
    with pytest.raises(PerrinError, match=r"no job\.json"):
        RunFolder(tmp_path)
    with pytest.raises(PerrinError, match="expected a shard from 0 to 1, given 2"):
        folder.shard(2)


def test_many_processes_share_the_work(tmp_path: Path) -> None:
    """Each takes what is free, and no item is made twice."""

    def work(number: int) -> None:
        job = Lines(60)
        RunFolder(tmp_path / "run").work(job)
        (tmp_path / f"made-{number}").write_text(json.dumps(job.made))

    job = Lines(60)
    folder = run_of(tmp_path / "run", job, 20)
    processes = [FORK.Process(target=work, args=(i,)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    made = [i for k in range(4) for i in json.loads((tmp_path / f"made-{k}").read_text())]
    assert sorted(made) == list(range(60))
    path = folder.merge(job, None)
    assert list(numbers(path)) == list(range(60))


# one Zarr store


def fill(path: Path) -> None:
    RunFolder(path).work(Ensemble())


@pytest.mark.parametrize("count", [1, 5, 12])
def test_an_ensemble_is_written_concurrently_into_one_store(tmp_path: Path, count: int) -> None:
    zarr = pytest.importorskip("zarr")
    xr = pytest.importorskip("xarray")
    job = Ensemble()
    folder = run_of(tmp_path / "run", job, count)

    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=fill, args=(tmp_path / "run",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    path = folder.merge(job, None)
    found = xr.open_zarr(path, chunks=None)
    assert dict(found.sizes) == {"time": 3, "member": 8, "lead": 4, "lat": 5, "lon": 6}
    for k, name in enumerate(job.variables):
        truth = np.stack([[job.field(k, t, m) for m in range(8)] for t in range(3)])
        assert np.array_equal(found[name].values, truth)
    assert zarr.open_group(path, mode="r")["t2m"].chunks[:2] == (1, 2)


def test_a_stopped_member_goes_on_and_a_damaged_chunk_is_found(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    pytest.importorskip("xarray")

    class Stopping(Ensemble):
        def compute(self, time: int, members: range) -> object:  # type: ignore[override]
            if len(self.made) == 2:
                raise KeyboardInterrupt
            return super().compute(time, members)

    folder = run_of(tmp_path / "run", Ensemble(), 3)
    with pytest.raises(KeyboardInterrupt):
        folder.work(Stopping())
    job = Ensemble()
    assert folder.work(job) == 3
    assert len(job.made) == 12 - 2
    chunk = next(
        p for p in (folder.path / "forecast.zarr" / "t2m").rglob("*") if p.parts[-6:-4] == ("c", "1")
    )
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 255
    chunk.write_bytes(data)
    assert [s.number for s in folder.shards if not folder.intact(job, s)] == [1]
    with pytest.raises(PerrinError, match="damaged"):
        folder.merge(job, None)
    folder.forget(folder.shards[1])
    folder.work(job)
    folder.merge(job, None)


def test_chunks_that_two_shards_would_share_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    pytest.importorskip("xarray")
    with pytest.raises(PerrinError, match="expected members in whole chunks, given 8 in chunks of 3"):
        Ensemble(chunk=3)
    job = Ensemble()
    job.chunk = 4  # the store is made with it, the job was cut without
    job.create(tmp_path / "store.zarr")
    job.chunk = 2

    class Other(Ensemble):
        def create(self, path: Path) -> None:
            os.rename(tmp_path / "store.zarr", path)

    with pytest.raises(PerrinError, match="in chunks of 1 × 2, given"):
        run_of(tmp_path / "run", Other(), 2)
    assert not (tmp_path / "run" / "job.json").exists()


# the lock


def test_a_file_is_created_once(tmp_path: Path) -> None:
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(create_text(tmp_path / "a", f"{i}\n")))
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 15 + [True]
    assert len((tmp_path / "a").read_text()) >= 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_lock_is_for_one_and_is_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "merge"
    for _ in range(3):
        with Lock(path, "the merge"):
            owner = holder(path)
            assert owner is not None
            assert owner["pid"] == os.getpid()
            with pytest.raises(
                Taken, match=rf"expected the merge for this process alone, .*\(process {os.getpid()} on"
            ):
                Lock(path, "the merge").__enter__()
        assert holder(path) is None
    with pytest.raises(ValueError), Lock(path, "x"):
        raise ValueError
    assert holder(path) is None


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom perrin.run.lock import Lock\n"
        "with Lock(sys.argv[1], 'x'):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(Taken):
        Lock(tmp_path / "a", "x").__enter__()
    process.kill()  # a zombie still, which is dead enough
    time.sleep(0.1)
    begin = time.monotonic()
    with Lock(tmp_path / "a", "x"):
        assert time.monotonic() - begin < 10
    process.wait()


def test_of_many_who_find_a_dead_owner_one_takes_the_lock(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    owner = {**locks._identity(), "pid": int(dead.stdout), "began": "1", "token": "x"}
    create_text(tmp_path / "a.1", json.dumps(owner))
    gate = FORK.Barrier(8)

    def contend(number: int) -> None:
        gate.wait()
        try:
            with Lock(tmp_path / "a", "x"):
                (tmp_path / f"got-{number}").touch()
                time.sleep(2)
        except Taken:
            return

    processes = [FORK.Process(target=contend, args=(i,)) for i in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("got-*"))) == 1


def test_an_owner_on_another_node_is_dead_when_it_gives_no_sign(tmp_path: Path) -> None:
    owner = {**locks._identity(), "host": "elsewhere", "token": "x"}
    create_text(tmp_path / "a.1", json.dumps(owner))
    begin = time.monotonic()
    with Lock(tmp_path / "a", "x", lease=1.0):
        assert time.monotonic() - begin > 1.0
    create_text(tmp_path / "b.1", json.dumps(owner))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            os.utime(tmp_path / "b.1")

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(Taken, match="on elsewhere"):
        Lock(tmp_path / "b", "x", lease=1.0).__enter__()
    stop.set()
    thread.join()


def test_an_owner_that_slurm_has_started_again_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = {**locks._identity(), "host": "elsewhere", "token": "x", "slurm": "c/12", "restarts": 0}
    create_text(tmp_path / "a.1", json.dumps(owner))
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with Lock(tmp_path / "a", "x"):
        pass


def test_whoever_was_thought_dead_writes_no_receipt(tmp_path: Path) -> None:
    """Its process was stopped for longer than the lease, and another took the shard over."""

    class Slow(Lines):
        def one(self, i: int) -> str:
            if i == 0:
                create_text(folder.path / "locks" / "00000.2", json.dumps(locks._identity() | {"token": "y"}))
            return super().one(i)

    folder = run_of(tmp_path / "run", Slow(4), 1)
    with pytest.raises(Taken, match="another has taken it over"):
        folder.run(Slow(4), folder.shards[0])
    assert folder.receipt(folder.shards[0]) is None


def test_two_jobs_on_one_folder(tmp_path: Path) -> None:
    """The second is told so, and makes nothing twice."""
    ready, go = FORK.Event(), FORK.Event()

    class Waiting(Lines):
        def one(self, i: int) -> str:
            if i == 3:
                ready.set()
                go.wait(60)
            return super().one(i)

    folder = run_of(tmp_path / "run", Lines(8), 2)
    process = FORK.Process(target=lambda: folder.work(Waiting(8)))
    process.start()
    assert ready.wait(60)
    other = Lines(8)
    with pytest.raises(Taken, match=r"expected shard 0 of .* for this process alone"):
        folder.run(other, folder.shards[0])
    assert folder.work(other) == 1, "what is free"
    assert other.made == [4, 5, 6, 7]
    go.set()
    process.join(60)
    assert not folder.missing()
    assert folder.merge(other, None).read_bytes() == other.truth(tmp_path / "truth.gz")


def test_signals_of_a_killed_process_reach_nothing(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing a shard: its temporary file is swept away by whoever makes it again."""

    class Killed(Lines):
        def one(self, i: int) -> str:
            if i == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return line(self.seed, i)

    folder = run_of(tmp_path / "run", Lines(8, every=1), 1)
    process = FORK.Process(target=lambda: folder.work(Killed(8, every=1)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [p.suffix for p in (folder.path / "shards").iterdir()] == [".tmp"]
    job = Lines(8, every=1)
    folder.work(job)
    assert job.made == [5, 6, 7]
    assert not list(folder.path.rglob("*.tmp"))
    assert folder.merge(job, None).read_bytes() == job.truth(tmp_path / "truth.gz")
