"""Work spread over processes of one thread each: on a shared machine two threads can be far slower than one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def cpu_count() -> int:
    """Cores this process may use (affinity and Slurm's cgroups counted in)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def map_unordered(
    work: Callable[[T], Any],
    items: Sequence[T],
    *,
    workers: int,
    setup: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Iterator[tuple[T, Any]]:
    """Yield `(item, work(item))` as results arrive.

    With one worker everything happens here; with more, in spawned processes that each call `setup(*arguments)` once, take
    their share of the threads and ignore Ctrl-C, which is the parent's to handle.
    """
    if workers <= 1 or len(items) <= 1:
        setup(*arguments)
        for item in items:
            yield item, work(item)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_start, initargs=(setup, arguments)
    )
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
        pool.shutdown()
    except BaseException:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise


def _start(setup: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    setup(*arguments)
