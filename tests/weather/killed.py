"""Commands that are killed, and what they leave."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_CODE = "import sys; from perrin.cli import main; sys.exit(main(sys.argv[1:]))"


def kill_when(ready: Callable[[], bool], words: list[str]) -> None:
    """Start a command, and kill −9 it as soon as it is ready for that."""
    process = subprocess.Popen([sys.executable, "-c", _CODE, *words])
    while process.poll() is None and not ready():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def assert_same_bytes(a: Path, b: Path) -> int:
    """Two stores have the same files; returns how many."""
    files = [sorted(p.relative_to(s) for p in s.rglob("*") if p.is_file()) for s in (a, b)]
    assert files[0] == files[1]
    for path in files[0]:
        assert (a / path).read_bytes() == (b / path).read_bytes(), path
    return len(files[0])
