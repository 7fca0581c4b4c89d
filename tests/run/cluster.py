"""A real Slurm on loopback, for tests: several simulated nodes, and a partition `urgent` that preempts `main` by requeue.

Needs root and Debian's slurm-wlm and munge; no cgroups, no systemd, every port on 127.0.0.1.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

CONF = """\
ClusterName=perrin
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={port}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF
"""


def tool(name: str) -> str | None:
    """A program, in `sbin` too."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def why_not() -> str | None:
    """What keeps a cluster from being started here."""
    missing = [name for name in NEEDED if tool(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install -y --no-install-recommends slurm-wlm munge"
    return None if os.geteuid() == 0 else "its daemons need root"


@contextmanager
def cluster(root: Path, *, nodes: int = 2, cpus: int = 2) -> Iterator[Path]:
    """Start one; yields its `slurm.conf`. Every daemon that was started is ended."""
    for name in ("state", "log", "run", *(f"spool/n{i + 1}" for i in range(nodes))):
        (root / name).mkdir(parents=True, exist_ok=True)
    for folder in (root, *root.parents):  # the user munge has to reach its socket
        if folder.stat().st_uid == os.geteuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    port = _ports(nodes + 1)
    conf = root / "slurm.conf"
    conf.write_text(
        CONF.format(root=root, port=port, nodes=nodes, cpus=cpus, first=port + 1, last=port + nodes)
    )
    munge = root / "munge"
    munge.mkdir(exist_ok=True)
    (munge / "key").write_bytes(secrets.token_bytes(128))
    (munge / "key").chmod(0o400)
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    try:
        files = [f"--{k}={munge}/{v}" for k, v in {
            "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munge.seed",
            "key-file": "key",
        }.items()]  # fmt: skip
        subprocess.run(["runuser", "-u", "munge", "--", str(tool("munged")), *files], check=True, timeout=60)
        subprocess.run([str(tool("slurmctld")), "-c"], check=True, env=environment, timeout=60)
        for i in range(nodes):
            subprocess.run([str(tool("slurmd")), "-N", f"n{i + 1}"], check=True, env=environment, timeout=60)
        _wait_for_nodes(root, nodes)
        yield conf
    finally:
        subprocess.run(["scancel", "--user", "root"], env=environment, timeout=60, capture_output=True)
        for path in (
            *(root / "run").glob("slurmd-*.pid"),
            root / "run" / "slurmctld.pid",
            munge / "munged.pid",
        ):
            _end(path)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _wait_for_nodes(root: Path, nodes: int) -> None:
    stop = time.monotonic() + 60
    while time.monotonic() < stop:
        found = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-t", "idle"], capture_output=True, text=True, timeout=60
        )
        if len(found.stdout.splitlines()) == nodes:
            return
        time.sleep(0.2)
    logs = "\n".join(f"== {p}\n{p.read_text()[-1500:]}" for p in (root / "log").glob("*.log"))
    raise RuntimeError(f"Slurm did not come up\n{logs}")


def _end(path: Path) -> None:
    """End the process that wrote this pid file, and wait for it."""
    try:
        pid = int(path.read_text())
        os.kill(pid, 15)
    except (OSError, ValueError):
        return
    stop = time.monotonic() + 20
    while time.monotonic() < stop and Path(f"/proc/{pid}").exists():
        time.sleep(0.1)


def _ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    for _ in range(100):
        first = 20000 + secrets.randbelow(10000)
        sockets = []
        try:
            for i in range(count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", first + i))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise RuntimeError("no free ports")
