"""The shards of a run in processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType

from perrin.errors import PerrinError
from perrin.run.pool import cpu_count
from perrin.run.progress import progress
from perrin.run.shards import RunFolder, numbers
from perrin.run.signals import Interrupted


def run_locally(folder: RunFolder, processes: int | None = None) -> None:
    """Start processes that make one shard after another, and wait for them; as many as there are GPUs, or else cores.

    Raises:
        Interrupted: a signal came; it was handed on, and the processes have saved their work.
        PerrinError: a shard could not be made.
    """
    cards = [] if _on_cpu(folder.content["argv"]) else gpus()
    count = max(1, min(processes or len(cards) or cpu_count(), len(folder.missing())))
    logs = folder.path / "logs"
    logs.mkdir(exist_ok=True)
    environment = {**os.environ, "PERRIN_CPUS": str(max(1, cpu_count() // count))}
    environment.setdefault("OMP_NUM_THREADS", "1")
    heard: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = {n: signal.signal(n, handler) for n in (signal.SIGTERM, signal.SIGINT)}
    children: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(count):
            words = [sys.executable, "-m", "perrin", "run", "work", str(folder.path)]
            card = {"CUDA_VISIBLE_DEVICES": cards[i % len(cards)]} if cards else {}
            with open(_log(logs, i), "ab") as log:
                children.append(
                    subprocess.Popen(
                        words, env=environment | card, stdout=log, stderr=log, start_new_session=True
                    )
                )
        total, done = folder.content["items"], 0
        with progress(folder.content["argv"][0], total) as advance:
            while any(child.poll() is None for child in children):
                if heard:
                    for child in children:
                        if child.poll() is None:
                            child.terminate()
                    for child in children:
                        child.wait()
                    raise Interrupted(heard[0], f"stopped; 'perrin run resume {folder.path}' goes on")
                time.sleep(0.2)
                now = total - sum(len(s.items) for s in folder.missing())
                if now > done:
                    advance(now - done)
                    done = now
    except BaseException:
        for child in children:
            if child.poll() is None:
                child.terminate()
        raise
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if missing := folder.missing():
        bad = next((i for i, child in enumerate(children) if child.returncode), 0)
        raise PerrinError(
            f"expected every shard to be made, but {numbers(missing)} are not: {last_line(_log(logs, bad))} (see {logs}); "
            f"'perrin run resume {folder.path}' goes on"
        )


def gpus() -> list[str]:
    """Names of the GPUs that this process may use, without importing torch."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    return sorted(p.name.removeprefix("nvidia") for p in Path("/dev").glob("nvidia[0-9]*"))


def _on_cpu(argv: Sequence[str]) -> bool:
    """Whether a command asks for the CPU."""
    return "--device=cpu" in argv or any(pair == ("--device", "cpu") for pair in pairwise(argv))


def _log(logs: Path, i: int) -> Path:
    return logs / f"local-{i}.log"


def last_line(path: Path) -> str:
    """The last line of a log; empty if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
