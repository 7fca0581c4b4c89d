"""Stopping on request: SIGTERM, USR1, USR2 and Ctrl-C finish the step at hand, save, and leave.

Slurm announces a preemption or the end of the time with USR1 or USR2, if asked to; see `perrin.run.slurm`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Work stopped on request, after saving what it had. Carries the exit code (128 + signal)."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def stops() -> list[signal.Signals]:
    """The signals that ask to stop, where they exist."""
    return [getattr(signal, k) for k in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, k)]


class StopFlag:
    """Which signal has asked to stop, or `None`."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Within the block SIGTERM, USR1, USR2 and SIGINT set the flag; a second SIGINT interrupts at once."""
    flag = StopFlag()

    def handler(number: int, frame: FrameType | None) -> None:
        if flag.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.number = number

    before = {}
    try:
        for number in stops():
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: the caller's signals stay as they are
        yield flag
        return
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, old)
