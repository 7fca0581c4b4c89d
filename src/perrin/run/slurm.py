"""Slurm through its own commands: a script for `sbatch`, the queue's state, and coming back after a preemption.

Each task of an array is `exec python`, so that the batch shell's process is ours and hears the signals. USR1 and USR2 mean
"save, and come back": the task asks for its own requeue, as ARRAY_TASK and never by the job's number, which one task shares
with the whole array. TERM means "save and exit": it is what `scancel` sends, and whoever comes back then fights the user.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perrin.errors import PerrinError

REQUEUE = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals that mean: save, then come back."""


@dataclass(frozen=True)
class Task:
    """An array task in the queue.

    Arguments:
        name: as `scontrol` wants it, `12_3`.
        index: of the shard.
        state: Slurm's, such as RUNNING or PENDING.
        reason: why it waits.
    """

    name: str
    index: int
    state: str
    reason: str

    @property
    def held(self) -> bool:
        """Whether it waits for a person."""
        return "held" in self.reason.lower()


def script(
    folder: Path,
    name: str,
    *,
    shards: int,
    whole: bool = False,
    throttle: int | None = None,
    options: str = "",
    setup: Sequence[str] = (),
    launcher: str | None = None,
    title: str = "",
) -> str:
    """The text of `job.sh`.

    Arguments:
        folder: of the run.
        name: of the job.
        shards: tasks in the array.
        whole: not an array, but one job of one or more ranks, started by `srun`.
        throttle: tasks at a time.
        options: further words for `sbatch`.
        setup: shell lines before the work, such as `module load cuda`.
        launcher: the words that start Python, such as `apptainer exec perrin.sif python`.
        title: the command, for the reader.
    """
    words = [
        f"--job-name={name}",
        f"--output={folder}/logs/{'%j' if whole else '%a'}.log",
        "--open-mode=append",
        "--requeue",
        "--signal=USR1@120" if whole else "--signal=B:USR1@60",
    ]
    if not whole:
        words.insert(1, f"--array=0-{shards - 1}{f'%{throttle}' if throttle else ''}")
        words.append("--ntasks=1")
    words += _grouped(options)
    python = launcher or shlex.quote(sys.executable)
    run = f"{python} -m perrin run shard {shlex.quote(str(folder))}"
    # a rank that fails must not leave the others waiting; 60 s are enough to save and ask for the requeue
    last = f"exec srun --wait=60 {run} 0" if whole else f'exec {run} "$SLURM_ARRAY_TASK_ID"'
    threads = [] if whole else ['export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"']
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {word}" for word in words),
        f"# {title}",
        *(f"export {k}={shlex.quote(v)}" for k, v in _environment().items()),
        *threads,
        *setup,
        last,
    ]
    return "\n".join(lines) + "\n"


def _grouped(options: str) -> list[str]:
    """Words of `--slurm`, an option and its value on one line."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise PerrinError(f"expected options of sbatch for --slurm, given {options!r}: {error}") from error
    out: list[str] = []
    for word in words:
        if word.startswith("-"):
            out.append(word)
        elif out:
            out[-1] += " " + shlex.quote(word)
        else:
            raise PerrinError(f"expected options of sbatch for --slurm, given {options!r}: start with a dash")
    return out


def _environment() -> dict[str, str]:
    """What a task must see as the submitter does, should the site not pass the environment on."""
    return {k: os.environ[k] for k in ("PYTHONPATH", "PERRIN_CACHE") if os.environ.get(k)}


def submit(path: Path, indices: str | None = None) -> str:
    """Call `sbatch`; returns the job's number.

    Arguments:
        path: of the script.
        indices: the tasks, if not those that the script says.

    Raises:
        PerrinError: there is no `sbatch`, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise PerrinError(
            "expected Slurm's sbatch on this machine, found none: submit from a login node, or use --engine local"
        )
    words = ["sbatch", "--parsable", *([f"--array={indices}"] if indices else []), str(path)]
    # inside a job, sbatch would take that job's options for the new one's
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"
    }
    found = subprocess.run(words, capture_output=True, text=True, env=clean)
    if found.returncode:
        reason = found.stderr.strip().replace("\n", "; ").removeprefix("sbatch: error: ")
        hint = "correct --slurm, or use fewer shards: sites limit an array"
        if "array" not in reason.lower():
            folder = path.parent
            hint = f"correct --slurm in a new folder, or without Slurm: perrin run resume {folder} --engine local"
        raise PerrinError(f"expected sbatch to take {path}, met: {reason}: {hint}")
    return found.stdout.strip().partition(";")[0]


def queue(name: str) -> list[Task] | None:
    """Tasks of that name in the queue; `None` where the queue cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    words = ["squeue", "-h", "-r", "-n", name, "-o", "%F|%K|%T|%r"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    if found.returncode:
        return None
    out = []
    for line in found.stdout.splitlines():
        job, index, state, reason = line.strip().split("|", 3)
        array = index.isdecimal()
        out.append(Task(f"{job}_{index}" if array else job, int(index) if array else 0, state, reason))
    return out


def requeue() -> str | None:
    """Ask Slurm to run this job, or this task of an array, again; what was asked for, or `None` where it cannot be."""
    environment = os.environ
    if any(environment.get(k, "0") != "0" for k in ("SLURM_PROCID", "RANK")):
        return None  # the first rank asks
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID")
    if not name or shutil.which("scontrol") is None:
        return None
    try:
        found = subprocess.run(["scontrol", "requeue", name], capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return name if found.returncode == 0 else None
