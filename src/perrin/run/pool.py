"""Work spread over processes of one thread each: on a shared machine two threads can be far slower than one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from perrin.errors import PerrinError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

T = TypeVar("T")

QUIET = "perrin-beat"
"""Name of a thread that does so little that its process may be forked."""

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def cpu_count() -> int:
    """Cores this process may use: those of its affinity, but no more than `PERRIN_CPUS` or the job's (Slurm, PBS) say."""
    try:
        here = len(os.sched_getaffinity(0))
    except AttributeError:
        here = os.cpu_count() or 1
    for name in ("PERRIN_CPUS", "SLURM_CPUS_PER_TASK", "NCPUS"):
        if os.environ.get(name, "").isdecimal():
            return max(1, min(here, int(os.environ[name])))
    return here


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread within the block: for small tensors more cost time, on a busy machine a great deal of it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_unordered(
    work: Callable[[T], Any],
    items: Sequence[T],
    *,
    workers: int,
    setup: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Iterator[tuple[T, Any]]:
    """Yield `(item, work(item))` as results arrive. The processes start when this is called, not at the first result.

    With one worker everything happens here; with more, in processes that each call `setup(*arguments)` once, take one
    thread, end when the parent is gone, and ignore Ctrl-C, which is the parent's to handle. Processes are forked where that
    is safe (Linux, no CUDA context), so that nothing is imported or loaded twice, and spawned elsewhere. Call it before any
    thread is started.
    """
    if workers <= 1 or len(items) <= 1:
        return _here(work, items, setup, arguments)
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("fork" if _fork_is_safe() else "spawn")
    count = min(workers, len(items))
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(setup, arguments))
    with _signals_held():  # children do not run the parent's handlers, and no process is left to itself
        results = _collect(pool, {pool.submit(work, item): item for item in items})
        next(results)
    return results


def _here(
    work: Callable[[T], Any], items: Sequence[T], setup: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[tuple[T, Any]]:
    setup(*arguments)
    for item in items:
        yield item, work(item)


def _collect(pool: ProcessPoolExecutor, futures: dict[Future[Any], T]) -> Iterator[Any]:
    from concurrent.futures import as_completed
    from concurrent.futures.process import BrokenProcessPool

    try:
        yield None  # taken at once by the caller: from here on, closing the generator ends the processes
        for future in as_completed(list(futures)):
            yield futures.pop(future), future.result()  # popped: results must not pile up
        pool.shutdown()
    except BaseException as error:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise PerrinError(
                "expected every worker to finish, but one was ended from outside, perhaps for lack of memory: "
                "use fewer workers or smaller batches; the same command goes on from what is done"
            ) from error
        raise


@contextmanager
def _signals_held() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork_is_safe() -> bool:
    import torch

    alone = all(t is threading.main_thread() or t.name == QUIET for t in threading.enumerate())
    return sys.platform == "linux" and not torch.cuda.is_initialized() and alone


def _start(setup: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    torch.set_num_threads(1)
    threading.Thread(target=_follow_parent, name=QUIET, daemon=True).start()
    setup(*arguments)


def _follow_parent() -> None:
    """End with the parent: one that was killed (kill −9, no memory) closes nothing, and its workers would wait for ever.

    The sentinel is a pipe of which the parent has the other end, and so have workers that were forked later: the last
    ends first, then the one before.
    """
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
