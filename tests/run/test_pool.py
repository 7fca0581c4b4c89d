"""Work spread over processes: every result once, errors and interrupts end the pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

if sys.platform != "linux":
    pytest.skip("looks for processes in /proc", allow_module_level=True)

from perrin.errors import PerrinError
from perrin.run import pool
from perrin.run.pool import cpu_count, map_unordered

OFFSET = [0]


def setup(offset: int) -> None:
    OFFSET[0] = offset


def work(item: int) -> tuple[int, int, int]:
    return item * item + OFFSET[0], os.getpid(), torch.get_num_threads()


def fail_on_three(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    time.sleep(0.01 if item < 3 else 60.0)
    return item


def die_on_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def wait(item: int) -> int:
    time.sleep(0.01 if item == 0 else 60.0)
    return item


def children() -> set[int]:
    """Living child processes, as Linux lists them."""
    out = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                out.add(int(path.parent.name))
    return out


def gone(before: set[int], seconds: float = 60.0) -> bool:
    """Whether no new child is left, apart from multiprocessing's own resource tracker."""
    from multiprocessing import resource_tracker

    own = {getattr(resource_tracker._resource_tracker, "_pid", None)}
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        if not children() - before - own:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_item_once(workers: int) -> None:
    before = children()
    found = dict(map_unordered(work, list(range(7)), workers=workers, setup=setup, arguments=(100,)))
    assert {k: v[0] for k, v in found.items()} == {k: k * k + 100 for k in range(7)}
    if workers == 1:
        assert {v[1] for v in found.values()} == {os.getpid()}
    else:
        assert os.getpid() not in {v[1] for v in found.values()}
        assert {v[2] for v in found.values()} == {1}
    assert gone(before)


@pytest.mark.slow
def test_spawned_processes_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_fork_is_safe", lambda: False)
    before = children()
    found = dict(map_unordered(work, [1, 2, 3], workers=2, setup=setup, arguments=(7,)))
    assert {k: v[0] for k, v in found.items()} == {1: 8, 2: 11, 3: 16}
    assert {v[2] for v in found.values()} == {1}
    assert gone(before)


@pytest.mark.parametrize("items", [[], [5]])
def test_little_work_is_done_here(items: list[int]) -> None:
    found = dict(map_unordered(work, items, workers=4, setup=setup, arguments=(0,)))
    assert {k: v[:2] for k, v in found.items()} == {k: (k * k, os.getpid()) for k in items}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_arrives_and_ends_the_pool(workers: int) -> None:
    before, begin = children(), time.monotonic()
    with pytest.raises(ValueError, match="three"):
        list(map_unordered(fail_on_three, [1, 2, 3, 4, 5], workers=workers, setup=setup, arguments=(0,)))
    assert gone(before)
    assert time.monotonic() - begin < 30


def test_a_worker_that_is_killed_is_one_line() -> None:
    before = children()
    with pytest.raises(PerrinError, match="expected every worker to finish"):
        list(map_unordered(die_on_three, [1, 2, 3, 4], workers=2, setup=setup, arguments=(0,)))
    assert gone(before)


@pytest.mark.parametrize("taken", [0, 1])
def test_results_that_nobody_waits_for_end_the_pool(taken: int) -> None:
    before = children()
    results = map_unordered(wait, [0, 1, 2, 3], workers=2, setup=setup, arguments=(0,))
    for _ in range(taken):
        assert next(results) == (0, 0)
    assert not gone(before, seconds=0.1)
    results.close()  # type: ignore[attr-defined]
    assert gone(before)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_everybody_is_the_parents_to_handle(number: int, tmp_path: Path) -> None:
    """As a terminal's Ctrl-C and Slurm do it: every process of the group gets it. No worker says a word."""
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\n"
        "from perrin.run.pool import map_unordered\n"
        "def setup(): print('up', flush=True)\n"
        "def work(item): time.sleep(60)\n"
        "def stop(number, frame): raise SystemExit(number)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)\n"
        "    list(map_unordered(work, [1, 2, 3], workers=2, setup=setup, arguments=()))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (number, "")
    with pytest.raises(ProcessLookupError):  # nobody is left in the group
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("fork", [True, False])
def test_workers_do_not_outlive_a_parent_that_is_killed(fork: bool, tmp_path: Path) -> None:
    """kill −9 of the parent alone, with workers that are busy and one that waits for work."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from perrin.run import pool\n"
        f"pool._fork_is_safe = lambda: {fork}\n"
        "def setup(): os.write(1, b'%d\\n' % os.getpid())\n"  # one write: lines of three processes stay whole
        "def work(item): time.sleep(item)\n"
        "if __name__ == '__main__':\n"
        "    list(pool.map_unordered(work, [0, 60, 60], workers=3, setup=setup, arguments=()))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(3)]
    assert all(alive(pid) for pid in workers)
    process.kill()
    process.wait()
    stop = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < stop:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which waits for somebody to ask for its code, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_cores_of_this_process() -> None:
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)
