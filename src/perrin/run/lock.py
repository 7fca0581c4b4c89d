"""A lock in a shared folder, for jobs on any nodes, that outlives neither its owner nor NFS.

File locks of the operating system are not to be relied on over NFS, and a file that is merely there stays when its owner is
killed. Here the lock `name` is a row of files `name.1`, `name.2`, …; the last one says who has it. To take a lock that is
free, or whose owner is dead, is to create the next file of the row, which one process alone can do (`create_text`). No file
of the row is deleted or replaced by anybody but its owner, so there is nothing to race for.

An owner is dead if its process is gone (on the same node), if Slurm has started its very task again, or if it gave no sign
of life for `LEASE` seconds: it touches its file every `BEAT` seconds, and the watcher measures by its own clock.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from perrin.errors import PerrinError
from perrin.run.atomic import create_text, sweep, write_text
from perrin.run.pool import QUIET

LEASE = 120.0
"""Seconds without a sign of life after which an owner on another node is dead; NFS may show the past for 60."""

BEAT = 15.0


class Taken(PerrinError):
    """Somebody who is alive has the lock."""


class Lock:
    """A lock; use it as a context.

    Arguments:
        path: of the lock; its files are `path.1`, `path.2`, ….
        what: what is locked, for the message.
        lease, beat: see the module's text.

    Raises (on entry):
        Taken: its owner is alive.
    """

    def __init__(self, path: str | Path, what: str, *, lease: float = LEASE, beat: float = BEAT) -> None:
        self.path, self.what, self.lease, self.beat = Path(path), what, lease, beat
        self._me = {"token": secrets.token_hex(8), **_identity()}
        self._number = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lock:
        begin = time.monotonic()
        seen: tuple[int, float] | None = None
        text = json.dumps(self._me) + "\n"
        while True:
            number, owner, sign = last(self.path)
            if not _held(owner) or _is_dead(owner, self._me) or time.monotonic() - begin > self.lease:
                if create_text(self._file(number + 1), text):
                    break
                begin, seen = time.monotonic(), None
                continue
            if (number, sign) != seen:
                if seen is not None or _same_place(owner, self._me):
                    raise Taken(_refusal(self.what, owner, self.path))
                begin, seen = time.monotonic(), (number, sign)  # may be dead: look whether it moves
            time.sleep(min(1.0, self.lease / 20))
        self._number = number + 1
        self._thread = threading.Thread(target=self._live, name=QUIET, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.mine():
            try:
                write_text(self._file(self._number), "{}\n")
            except (PerrinError, OSError):  # a full disk, or the folder is gone: the dead process will say it
                return

    def mine(self) -> bool:
        """Whether nobody has taken the lock over, thinking that this process is dead."""
        return last(self.path)[0] == self._number

    def remove(self) -> None:
        """Delete the row's files: for work that is done for good, so that nobody needs the lock any more."""
        for number in range(self._number, 0, -1):
            sweep(self._file(number))
            self._file(number).unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._stop.wait(self.beat):
            try:
                os.utime(self._file(self._number))
            except OSError:
                continue

    def _file(self, number: int) -> Path:
        return _file(self.path, number)


def last(path: Path) -> tuple[int, dict[str, Any], float]:
    """Number, owner (empty: none) and last sign of life of the last file of a lock's row; number 0 when there is none."""
    number, sign = 0, 0.0
    owner: dict[str, Any] = {}
    while True:
        try:
            with open(
                _file(path, number + 1), encoding="utf-8"
            ) as file:  # opened, so that NFS asks the server
                sign = os.fstat(file.fileno()).st_mtime
                text = file.read()
        except OSError:
            return number, owner, sign
        number += 1
        try:
            owner = json.loads(text)
        except ValueError:
            owner = {}


def holder(path: Path) -> dict[str, Any] | None:
    """Who has a lock, as far as can be told at once: `None` if it is free or its owner known to be dead."""
    _, owner, sign = last(path)
    if not _held(owner) or _is_dead(owner, _identity()):
        return None
    return owner if _same_place(owner, _identity()) or time.time() - sign < 2 * LEASE else None


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _held(owner: dict[str, Any]) -> bool:
    return "token" in owner


def _identity() -> dict[str, Any]:
    task = [os.environ.get(k, "") for k in ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID")]
    return {
        "host": socket.gethostname(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pid": os.getpid(),
        "space": _namespace(),
        "began": _began(os.getpid()),
        "slurm": "/".join(task) if task[1] else "",
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }


def _is_dead(owner: dict[str, Any], me: dict[str, Any]) -> bool:
    if owner.get("slurm") and owner["slurm"] == me["slurm"] and owner.get("restarts", 0) < me["restarts"]:
        return True  # Slurm has ended it and started it again
    if not _same_place(owner, me):
        return False
    if owner.get("boot") != me["boot"]:
        return True
    return _began(int(owner.get("pid", 0))) != owner.get("began")  # gone, or its number given to another


def _same_place(owner: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether the owner's process number means something here."""
    return owner.get("host") == me["host"] and owner.get("space") == me["space"]


def _began(pid: int) -> str:
    """When a process began, in ticks since the start of the machine; empty if it is gone (or a zombie)."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if fields:
        return "" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "alive"
    return "alive" if not os.path.isdir("/proc/self") else ""


def _namespace() -> str:
    """Which process numbers are meant: containers of one node have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _refusal(what: str, owner: dict[str, Any], path: Path) -> str:
    job = f", Slurm job {owner['slurm'].rpartition('/')[2]}" if owner.get("slurm") else ""
    return (
        f"expected {what} for this process alone, given one at work on it (process {owner.get('pid')} on "
        f"{owner.get('host')}{job}): wait for it; if it is surely dead, delete {path}.*"
    )
