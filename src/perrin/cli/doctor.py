"""`perrin doctor`: what this machine has, each with a verdict.

`ok` is fine, `warns` works but may not be what you want, `fails` has to be mended and makes the exit code 2.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from perrin.errors import PerrinError, install
from perrin.modalities import modalities

Finding = tuple[str, str, str]
"""Verdict, what was looked at, what was found."""

NETWORKED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "ceph", "fuse.sshfs", "afs", "pvfs2", "panfs")


def doctor(a: Namespace) -> int:
    """Look at everything; 0 if nothing fails, else 2."""
    from perrin.run.record import versions

    print("  ".join(f"{k} {v}" for k, v in versions().items()))
    verdicts = []
    for look in (_cpu, _memory, _cuda, _threads, _files, _slurm, _packages):
        for verdict, what, found in look():
            verdicts.append(verdict)
            print(f"{verdict:<5} {what}: {found}", flush=True)
    return 2 if "fails" in verdicts else 0


def _cpu() -> Iterator[Finding]:
    from perrin.run.pool import cpu_count

    cores, here = cpu_count(), os.cpu_count() or 1
    share = f"{cores} of {here} cores are this process's" if cores < here else f"{cores} cores"
    try:
        load = os.getloadavg()[0]
    except OSError:
        load = 0.0
    busy = load > here + 0.5
    text = f"{share}, {_model()}" + (f", load {load:.0f}: others are at work" if busy else "")
    yield "warns" if busy else "ok", "CPU", text


def _model() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> Iterator[Finding]:
    facts = {line.partition(":")[0]: line.partition(":")[2].split()[0] for line in _lines("/proc/meminfo")}
    if "MemAvailable" not in facts:
        yield "ok", "memory", "cannot be told here"
        return
    total, free = (int(facts[k]) / 2**20 for k in ("MemTotal", "MemAvailable"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        for line in _lines(path):
            if line.strip().isdecimal():
                total = min(total, int(line) / 2**30)
    free = min(free, total)
    text = f"{free:.1f} of {total:.1f} GiB free"
    yield ("warns", "memory", text + ": use few workers") if free < 2 else ("ok", "memory", text)


def _cuda() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield "fails", "torch", str(error)
        return
    driver = shutil.which("nvidia-smi") is not None
    if not torch.cuda.is_available():
        built = torch.version.cuda
        if driver and built is None:
            yield (
                "warns",
                "CUDA",
                f"there is a GPU's driver, but torch {torch.__version__} is built without CUDA: see tools/setup_env.py",
            )
        elif driver:
            yield (
                "warns",
                "CUDA",
                f"there is a driver, but torch (CUDA {built}) finds no GPU: is one allotted to this job?",
            )
        else:
            yield "ok", "CUDA", "no GPU here; everything runs on the CPU"
        return
    for i in range(torch.cuda.device_count()):
        try:
            free, total = (x / 2**30 for x in torch.cuda.mem_get_info(i))
            x = torch.eye(64, device=f"cuda:{i}")
            right = bool((x @ x == x).all())
            text = f"{torch.cuda.get_device_name(i)}, {free:.1f} of {total:.1f} GiB free, CUDA {torch.version.cuda}"
            yield (
                "ok" if right else "fails",
                f"CUDA {i}",
                text if right else text + ": computes wrong numbers",
            )
        except Exception as error:
            yield "fails", f"CUDA {i}", str(error).splitlines()[0]


def _threads() -> Iterator[Finding]:
    import torch

    from perrin.run.pool import cpu_count

    count, cores = torch.get_num_threads(), cpu_count()
    text = f"torch uses {count}, OMP_NUM_THREADS is {os.environ.get('OMP_NUM_THREADS', 'not set')}"
    if count > cores:
        yield "warns", "threads", f"{text}, for {cores} cores: export OMP_NUM_THREADS={cores}"
    else:
        yield "ok", "threads", text


def _files() -> Iterator[Finding]:
    import platformdirs

    root = Path(os.environ.get("PERRIN_CACHE") or platformdirs.user_cache_dir("perrin")).expanduser()
    while not root.is_dir():
        root = root.parent
    for what, path in (
        ("this folder", Path.cwd()),
        ("cache", root),
        ("temporary files", Path(tempfile.gettempdir())),
    ):
        yield _folder(what, path)


def _folder(what: str, path: Path) -> Finding:
    """Whether files can be written, renamed and made by one process alone here, and how quickly."""
    from perrin.run.atomic import create_text, write_text

    kind = _kind(path)
    try:
        free = shutil.disk_usage(path).free / 2**30
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=".perrin-", dir=path) as folder:
            file = Path(folder) / "a"
            write_text(file, "a")
            alone = create_text(Path(folder) / "b", "b") and not create_text(Path(folder) / "b", "c")
        seconds = time.perf_counter() - begin
    except (OSError, PerrinError) as error:
        return (
            "fails",
            what,
            f"{path} ({kind}) cannot be written: {getattr(error, 'strerror', None) or error}",
        )
    text = f"{path} ({kind}), {free:.1f} GiB free, files made and renamed in {1000 * seconds:.0f} ms"
    if not alone:
        return "fails", what, text + "; two processes can make the same file, so locks do not hold here"
    if free < 1:
        return "warns", what, text + ": little room"
    if kind in NETWORKED and what == "temporary files":
        return "warns", what, text + ": a network's file system; set TMPDIR to a local one"
    return "ok", what, text


def _kind(path: Path) -> str:
    """The type of the file system, from the longest mount point above a path."""
    best = ("", "unknown")
    for line in _lines("/proc/self/mounts"):
        _, mount, kind = line.split()[:3]
        inside = mount == "/" or str(path.resolve()).startswith(mount.rstrip("/") + "/") or str(path) == mount
        if inside and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def _slurm() -> Iterator[Finding]:
    if job := os.environ.get("SLURM_JOB_ID"):
        node, cpus = os.environ.get("SLURMD_NODENAME", "?"), os.environ.get("SLURM_CPUS_PER_TASK", "1")
        yield "ok", "Slurm job", f"{job} on {node}, {cpus} CPUs for each task"
    if shutil.which("sbatch") is None:
        yield "ok", "Slurm", "not here: perrin submit --engine local"
        return
    version = _output("sbatch", "--version") or "sbatch is here"
    nodes = _output("sinfo", "-h", "-o", "%P %D %t")
    if nodes is None:
        yield "warns", "Slurm", f"{version}, but no controller answers (sinfo)"
        return
    partitions = sorted({line.split()[0] for line in nodes.splitlines() if line.split()})
    config = _output("scontrol", "show", "config") or ""
    facts = {k.strip(): v.strip() for k, _, v in (line.partition("=") for line in config.splitlines())}
    limit = f", arrays up to {facts['MaxArraySize']}" if "MaxArraySize" in facts else ""
    text = f"{version}, partitions {' '.join(partitions)}{limit}"
    if not config:
        yield (
            "warns",
            "Slurm",
            text + "; without scontrol preempted tasks cannot come back by themselves: perrin run resume",
        )
    elif facts.get("JobRequeue") == "0":
        yield "warns", "Slurm", text + "; the site does not requeue jobs by itself"
    else:
        yield "ok", "Slurm", text


def _packages() -> Iterator[Finding]:
    for name, modality in modalities().items():
        missing = [p for p in modality.requirements() if importlib.util.find_spec(p) is None]
        remedy = f"missing {', '.join(missing)}; {install(name)}"
        yield "fails" if missing else "ok", name, remedy if missing else "packages are there"
        for bundle in modality.bundles():
            yield _bundle(f"{name}/{bundle}")


def _bundle(reference: str) -> Finding:
    from perrin.bundle import read_bundle
    from perrin.modalities import find_bundle

    try:
        bundle = read_bundle(find_bundle(reference))
    except PerrinError as error:
        return "fails", reference, str(error)
    return "ok", reference, f"{len(bundle.data) / 1e6:.1f} MB, hash as stated"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _output(*words: str) -> str | None:
    """What a command prints; `None` if it fails."""
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
