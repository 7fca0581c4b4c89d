"""Progress: a bar on a terminal, plain lines in a log; both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int, *, every: float = 10.0) -> Iterator[Callable[[int], None]]:
    """Yields a function that is called with how much was done since it was called last.

    Arguments:
        what: shown in front.
        total: how much there is to do.
        every: seconds between plain lines.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n: bar.advance(task, n)
        return
    done, begin, last = 0, time.perf_counter(), time.perf_counter()

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.perf_counter()
        if now - last >= every or done >= total:
            last = now
            print(f"{what}: {done} of {total} after {now - begin:.0f} s", file=sys.stderr, flush=True)

    yield advance
