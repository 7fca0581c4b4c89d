"""Stopping on request: SIGTERM and Ctrl-C finish the step at hand, save, and leave."""

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


class StopFlag:
    """Which signal has asked to stop, or `None`."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Within the block SIGTERM and SIGINT set the flag; a second SIGINT interrupts at once."""
    flag = StopFlag()

    def handler(number: int, frame: FrameType | None) -> None:
        if flag.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.number = number

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: the caller's signals stay as they are
        yield flag
        return
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, old)
