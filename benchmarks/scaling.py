"""How sampling and training scale over processes and GPUs, and the memory of a rank.

    PYTHONPATH=src:. python benchmarks/scaling.py sample --processes 1 2
    PYTHONPATH=src:. python benchmarks/scaling.py sample --device cuda --gpus 1 2 -n 40000 --steps 50
    PYTHONPATH=src:. python benchmarks/scaling.py memory
    PYTHONPATH=src:. python benchmarks/scaling.py train --ranks 1 2
    PYTHONPATH=src:. python benchmarks/scaling.py train --ranks 1 2 --device cuda --batch 1024

`sample` makes the same shards of one run, as many processes at a time as it says, and compares samples per second of
the slowest process (starting Python is not in it); the merged files must be equal (on GPUs they agree to rounding).
`memory` makes shards of growing size, of small molecules for speed, and prints the largest memory of the process.
`train` starts ranks by torchrun, gloo on a CPU and NCCL on GPUs, each with a batch of its own (weak scaling:
`--batch` samples on every rank), and prints the median of samples per second. Efficiency is the rate over that of one
process times their number. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from perrin.run.atomic import write_json
from perrin.run.pool import cpu_count
from perrin.run.record import file_digest
from perrin.run.shards import RunFolder

PERRIN = [sys.executable, "-m", "perrin"]


def environment(**more: str) -> dict[str, str]:
    """One thread for each process, and this tree's Perrin."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def prepare(
    folder: Path, n: int, shards: int, steps: int, device: str, batch: int | None, atoms: str | None = None
) -> RunFolder:
    """A run of which no shard is made."""
    words = [
        "submit",
        "sample",
        "molecule/qm9",
        "-n",
        str(n),
        "--steps",
        str(steps),
        "--device",
        device,
        "--workers",
        "1",
    ]
    words += [] if batch is None else ["--batch", str(batch)]
    words += [] if atoms is None else ["--atoms", atoms]
    subprocess.run(
        [*PERRIN, *words, "--shards", str(shards), "--engine", "none", "-o", str(folder)],
        check=True, env=environment(), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return RunFolder(folder)


def sample(a: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """Rates of the same run in different numbers of processes."""
    counts = a.gpus if a.device == "cuda" else a.processes
    rows, digests = [], set()
    for count in counts:
        rates = []
        for repeat in range(a.repeats):
            folder = prepare(
                root / f"{count}-{repeat}", a.n, a.shards or max(counts), a.steps, a.device, a.batch
            )
            shards = [[str(s.number) for s in folder.shards[i::count]] for i in range(count)]
            children = []
            for i in range(count):
                more = {"CUDA_VISIBLE_DEVICES": str(i)} if a.device == "cuda" else {}
                words = [*PERRIN, "run", "shard", str(folder.path), *shards[i]]
                children.append(
                    subprocess.Popen(
                        words, env=environment(**more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                )
            if any(child.wait() for child in children):
                raise SystemExit(f"a process failed: see 'perrin run status {folder.path}'")
            receipts = [folder.receipt(s) or {} for s in folder.shards]
            # what each process did, one shard after another; the slowest process counts
            busy = [sum(receipts[int(k)]["seconds"] for k in mine) for mine in shards]
            rates.append(a.n / max(busy))
            subprocess.run([*PERRIN, "run", "merge", str(folder.path)], check=True, stdout=subprocess.DEVNULL)
            digests.add(file_digest(folder.path / "sample.sdf.gz"))
        rows.append({"processes": count, **summary(rates)})
    for row in rows:
        row["efficiency"] = (
            row["per_second"] / (rows[0]["per_second"] / rows[0]["processes"]) / row["processes"]
        )
    print(
        f"{'the same bytes' if len(digests) == 1 else f'{len(digests)} different files'} from all runs",
        file=sys.stderr,
    )
    return rows


def memory(a: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """The most memory of one process against the samples of its shard."""
    rows = []
    for n in a.counts:
        folder = prepare(root / str(n), n, 1, a.steps, a.device, a.batch, atoms="9-12")
        begin = time.perf_counter()
        subprocess.run(
            [*PERRIN, "run", "shard", str(folder.path), "0"],
            check=True,
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        receipt = folder.receipt(folder.shards[0]) or {}
        rows.append(
            {
                "samples": n,
                "memory_MiB": receipt["memory_MiB"],
                "seconds": round(time.perf_counter() - begin, 1),
            }
        )
    return rows


def train(a: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """Samples per second of training on different numbers of ranks."""
    rows = []
    for ranks in a.ranks:
        rates = []
        for repeat in range(a.repeats):
            out = root / f"{ranks}-{repeat}"
            launch = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(ranks),
                "-m",
                "perrin",
            ]
            words = [
                "train",
                "molecule/qm9",
                "--limit",
                str(a.limit),
                "--steps",
                str(a.steps),
                "--batch",
                str(a.batch * ranks),
            ]
            words += ["--device", a.device, "--log-every", str(max(1, a.steps // 10)), "--out", str(out)]
            words += ["--threads", "1"] if a.device == "cpu" else []
            subprocess.run(
                [*launch, *words],
                check=True,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            rates.append(rate(out / "metrics.jsonl", a.batch * ranks))
        rows.append({"ranks": ranks, **summary(rates)})
    for row in rows:
        row["efficiency"] = row["per_second"] / (rows[0]["per_second"] / rows[0]["ranks"]) / row["ranks"]
    return rows


def rate(path: Path, batch: int) -> float:
    """Samples per second over the second half of a run, from the averages since its start."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    done = [(line["step"] * batch, line["step"] * batch / line["samples_per_second"]) for line in lines]
    (n0, t0), (n1, t1) = done[len(done) // 2 - 1], done[-1]
    return (n1 - n0) / (t1 - t0)


def summary(rates: list[float]) -> dict[str, Any]:
    """Median and range."""
    low, high = min(rates), max(rates)
    return {
        "per_second": round(statistics.median(rates), 3),
        "lowest": round(low, 3),
        "highest": round(high, 3),
    }


def machine(device: str) -> dict[str, Any]:
    """Where this was measured."""
    from perrin.cli.doctor import _model

    out = {
        "cpu": _model(),
        "cores": cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "platform": platform.platform(),
    }
    if device == "cuda":
        import torch

        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return out


def main() -> None:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("sample", "memory", "train"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-n", type=int, default=512, help="sample: molecules")
    parser.add_argument("--shards", type=int, help="sample: into how many (default: the most processes)")
    parser.add_argument("--counts", type=int, nargs="+", default=[1024, 2048, 4096, 8192], metavar="N")
    parser.add_argument("--steps", type=int, help="of sampling (default 10; memory: 1) or training (100)")
    parser.add_argument("--batch", type=int, help="samples at a time (training: on each rank, default 32)")
    parser.add_argument("--limit", type=int, default=20_000, help="train: molecules of QM9")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    a.steps = a.steps or {"sample": 10, "memory": 1, "train": 100}[a.what]
    a.batch = a.batch or (32 if a.what == "train" else None)
    before = machine(a.device)
    with tempfile.TemporaryDirectory() as root:
        rows = {"sample": sample, "memory": memory, "train": train}[a.what](a, Path(root))
    names = list(rows[0])
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if k == "efficiency" else str(v) for k, v in row.items()) + " |")
    print(json.dumps(before))
    if a.json:
        write_json(
            a.json,
            {
                "what": a.what,
                "options": {k: v for k, v in vars(a).items() if k != "json"},
                "machine": before,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
