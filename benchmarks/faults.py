"""Kill processes at random while they sample, merge and write checkpoints; count what is lost, made twice or unreadable.

    PYTHONPATH=src:. python benchmarks/faults.py --kills 1000 --seed 0

A process is forked, set to work, and killed with SIGKILL: after a random time, or before or after one of its calls that
change the file system, which one is drawn too. After every kill, every file that has its final name must be readable and
what it claims to be; work goes on until it is whole, then it is compared with what one process makes undisturbed. In a third
of the attempts to sample and to merge, two processes work on the same folder. The exit code is 0 if nothing was lost, made
twice or unreadable.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from perrin.cli import parse
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
from perrin.modalities.molecule.shards import SampleShards, _index, _records
from perrin.modalities.molecule.sources import from_files
from perrin.modalities.molecule.task import MoleculeTask
from perrin.run.shards import RunFolder, cut
from perrin.train import Trainer, TrainOptions
from perrin.train.checkpoint import Checkpoint

CALLS = ("replace", "rename", "fsync", "link", "unlink", "rmdir", "mkdir", "chmod")
"""Functions of `os` before and after which a process may be killed."""


class Scenario(ABC):
    """Work that is started again and again in one folder until it is whole.

    Arguments:
        root: for folders.
        seeds: of the work; each has its truth.
    """

    processes = 1

    def __init__(self, root: Path, seeds: int = 2) -> None:
        self.root, self.seeds, self.round = root, seeds, -1
        self.report: Counter[str] = Counter(kills=0, rounds=0, lost=0, duplicated=0, unreadable=0)
        self.span = self.calls = 0.0

    @abstractmethod
    def begin(self, seed: int, folder: Path) -> None:
        """Set up a new folder."""

    @abstractmethod
    def work(self) -> None:
        """What is killed; returns when the work is whole."""

    @abstractmethod
    def unreadable(self) -> int:
        """Files with their final names that are not what they claim to be."""

    @abstractmethod
    def verdict(self) -> tuple[int, int]:
        """Of finished work: how many items are lost, and how many are there twice."""

    def new(self) -> None:
        """A new round, in a new folder."""
        self.round += 1
        self.begin(self.round % self.seeds, self.root / str(self.round))

    def measure(self) -> None:
        """How long the work takes undisturbed, and how many calls it makes: the range in which to kill."""
        self.new()
        begin = time.perf_counter()
        path = self.root / "calls"
        _wait(_fork(self.work, count=path))
        self.span, self.calls = time.perf_counter() - begin, int(path.read_text())
        self.finish()
        self.new()

    def attempt(self, draw: random.Random) -> None:
        """Start the work, kill it, look at what is there."""
        children = []
        for _ in range(self.processes if draw.random() < 1 / 3 else 1):
            if draw.random() < 0.5:
                children.append((_fork(self.work), draw.uniform(0, self.span)))
            else:
                kill = (draw.randrange(int(self.calls)), draw.random() < 0.5)
                children.append((_fork(self.work, kill=kill), 60.0))
        begin = time.perf_counter()
        killed = 0
        for child, after in sorted(children, key=lambda pair: pair[1]):
            killed += _wait(child, after - (time.perf_counter() - begin)) == -signal.SIGKILL
        self.report["kills"] += killed
        self.report["unreadable"] += self.unreadable()
        if killed < len(children):
            self.finish()
            self.new()

    def finish(self) -> None:
        """Bring the round to its end and judge it."""
        code = _wait(_fork(self.work))
        if code:
            raise RuntimeError(f"work that nobody killed ended with {code} in {self.root / str(self.round)}")
        lost, twice = self.verdict()
        self.report["unreadable"] += self.unreadable()
        self.report["lost"] += lost
        self.report["duplicated"] += twice
        self.report["rounds"] += 1


class Sampling(Scenario):
    """`perrin run work` on molecules in three shards."""

    processes = 2
    count, shards = 24, 3

    def __init__(self, root: Path, seeds: int = 2) -> None:
        super().__init__(root, seeds)
        self.jobs = [self.job(seed) for seed in range(seeds)]
        self.truth = []
        for seed, job in enumerate(self.jobs):
            folder = self.folder(root / f"truth-{seed}", job, 1)
            code = _wait(_fork(lambda folder=folder, job=job: folder.work(job) and None))  # type: ignore[misc]
            assert code == 0
            self.truth.append(folder.merge(job, None).read_bytes())

    def job(self, seed: int) -> SampleShards:
        words = f"sample molecule/qm9 -n {self.count} --steps 2 --batch 4 --workers 1 --seed {seed} --out run"
        _, arguments = parse(words.split())
        return SampleShards(arguments)

    def folder(self, path: Path, job: SampleShards, shards: int) -> RunFolder:
        job.arguments = Namespace(**{**vars(job.arguments), "out": str(path)})
        return RunFolder.create(path, job, cut(job.total, shards), argv=["sample"], cwd="/", engine="local")

    def begin(self, seed: int, folder: Path) -> None:
        self.seed, self.current = seed, self.jobs[seed]
        self.run = self.folder(folder, self.current, self.shards)

    def work(self) -> None:
        while self.run.missing():  # another process may be at work on a shard
            self.run.work(self.current)
            time.sleep(0.02)

    def unreadable(self) -> int:
        count = 0
        for shard in self.run.shards:
            path = self.current.path(shard, self.run.path)
            receipt = self.run.path / "shards" / f"{shard.name}.json"
            if receipt.exists():
                count += not self.run.intact(self.current, shard)
            if path.exists():
                count += _numbers(path) != list(shard.items)
        for path in (self.run.path / "scratch").rglob("[!.]*.sdf.gz"):
            count += not _numbers(path)
        return count + _bad_tensors(self.run.path / "scratch")

    def verdict(self) -> tuple[int, int]:
        path = self.run.merge(self.current, None)
        found = [_index(text) for text in _records(path)]
        twice = len(found) - len(set(found))
        lost = len(set(range(self.count)) - set(found))
        if not lost and not twice and path.read_bytes() != self.truth[self.seed]:
            lost = self.count  # other molecules
        lost += any(
            "locks" not in p.parts for p in self.run.path.rglob("*.tmp")
        )  # nor is anything left lying about
        return lost, twice


class Merging(Sampling):
    """`perrin run merge` of finished shards."""

    processes = 2

    def begin(self, seed: int, folder: Path) -> None:
        made = self.root / f"made-{seed}"
        if not made.exists():
            super().begin(seed, made)
            assert _wait(_fork(lambda: self.run.work(self.current) and None)) == 0  # type: ignore[func-returns-value]
        shutil.copytree(made, folder)
        self.seed, self.current, self.run = seed, self.jobs[seed], RunFolder(folder)
        self.current.arguments = Namespace(**{**vars(self.current.arguments), "out": str(folder)})

    def work(self) -> None:
        from perrin.run.lock import Taken

        while True:
            try:
                self.run.merge(self.current, None)
                return
            except Taken:
                time.sleep(0.01)

    def unreadable(self) -> int:
        path = self.run.path / "sample.sdf.gz"
        count = super().unreadable() + (path.exists() and path.read_bytes() != self.truth[self.seed])
        for name in ("manifest.json", "sample.sdf.gz.run.json"):
            count += not _is_json(self.run.path / name)
        return count


class Training(Scenario):
    """A run that saves its state at every step."""

    steps = 8
    network = NetworkConfig(
        depth=1, width=16, vectors=4, pair_width=8, heads=2, sets=2, pair_hidden=8, gathered=2, radial=4, time_width=8
    )  # fmt: skip

    def __init__(self, root: Path, seeds: int = 2) -> None:
        super().__init__(root, seeds)
        molecules = [add_geometry(s) for s in ("CCO", "CC(=O)O", "C1CC1", "CN", "C#N")]
        self.vocabulary, self.buckets, _ = from_files(molecules, None, source="molecules")
        self.truth = []
        for seed in range(seeds):
            self.begin(seed, root / f"truth-{seed}")
            self.work()  # here, so that what it imports need not be imported in every child
            self.truth.append(Checkpoint.load(self.path))

    def begin(self, seed: int, folder: Path) -> None:
        self.seed, self.path, self.reached = seed, folder, 0

    def work(self) -> None:
        options = TrainOptions(
            steps=self.steps, batch=2, warmup=2, log_every=1, save_every=1, seed=self.seed, lr=1e-3
        )
        config = MoleculeConfig(vocabulary=self.vocabulary, network=self.network)
        torch.manual_seed(self.seed)
        task = MoleculeTask(build_denoiser(config), config, self.buckets, batch=2, seed=self.seed)
        Trainer(task, options, self.path, accelerator="cpu").run()

    def unreadable(self) -> int:
        try:
            found = Checkpoint.load(self.path)
        except Exception:
            return 1
        step = found.step if found else 0
        gone, self.reached = step < self.reached, step
        self.report["lost"] += gone  # steps that had been saved
        return 0

    def verdict(self) -> tuple[int, int]:
        found, truth = Checkpoint.load(self.path), self.truth[self.seed]
        assert truth is not None
        same = found is not None and found.step == self.steps and found.tensors.keys() == truth.tensors.keys()
        same = same and all(torch.equal(found.tensors[k], v) for k, v in truth.tensors.items())  # type: ignore[union-attr]
        lines = [json.loads(line)["step"] for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        lost = len(set(range(1, self.steps + 1)) - set(lines)) + (0 if same else self.steps)
        return lost + (len(list(self.path.rglob("*.tmp"))) > 0), len(lines) - len(set(lines))


SCENARIOS: dict[str, type[Scenario]] = {"sampling": Sampling, "merging": Merging, "checkpoints": Training}


def _numbers(path: Path) -> list[int | None] | None:
    """The molecules of a file; `None` if it is damaged."""
    try:
        return [_index(text) for text in _records(path)]
    except OSError:
        return None


def _is_json(path: Path) -> bool:
    """Whether a file is JSON, or absent."""
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def _bad_tensors(folder: Path) -> int:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    count = 0
    for path in folder.rglob("[!.]*.safetensors"):
        try:
            load_file(path)
        except SafetensorError:
            count += 1
    return count


def _fork(work: Callable[[], Any], *, kill: tuple[int, bool] | None = None, count: Path | None = None) -> int:
    """A process that does the work; it kills itself before or after its call `kill[0]`, or counts its calls into a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        errors = os.open(f"/tmp/perrin-faults-{os.getppid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(null, 1)
        os.dup2(errors, 2)
        calls = _watch(kill)
        work()
        if count is not None:
            count.write_text(str(calls[0]))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _watch(kill: tuple[int, bool] | None) -> list[int]:
    """Count the calls that change the file system, and kill this process at one of them."""
    calls = [0]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            here = kill is not None and calls[0] == kill[0]
            calls[0] += 1
            if here and kill is not None and kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **more)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    return calls


def _wait(child: int, seconds: float | None = None) -> int:
    """Wait for a process; kill it when the time is over. Its exit code, or minus the signal."""
    if seconds is not None:
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def run(name: str, kills: int, seed: int, root: Path, tell: bool = False) -> dict[str, int]:
    """Kill one scenario's processes `kills` times; counts of what was found."""
    torch.set_num_threads(1)
    scenario = SCENARIOS[name](root / name)
    draw = random.Random(f"{name}-{seed}")
    scenario.measure()
    begin = told = time.perf_counter()
    while scenario.report["kills"] < kills:
        scenario.attempt(draw)
        if tell and time.perf_counter() - told > 30:
            told = time.perf_counter()
            print(
                f"{name}: {dict(scenario.report)} after {time.perf_counter() - begin:.0f} s", file=sys.stderr
            )
    scenario.finish()
    return dict(scenario.report)


def main() -> int:
    """Parse the command line, run, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="in all, over the scenarios")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    names = [a.only] if a.only else list(SCENARIOS)
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            share = a.kills * (i + 1) // len(names) - a.kills * i // len(names)
            reports[name] = run(name, share, a.seed, Path(folder), tell=True)
    total: Counter[str] = Counter()
    print(
        "| scenario | kills | rounds | lost | duplicated | unreadable |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, report in [*reports.items(), ("all", total)]:
        total.update(report if name != "all" else {})
        print(
            f"| {name} | "
            + " | ".join(str(report[k]) for k in ("kills", "rounds", "lost", "duplicated", "unreadable"))
            + " |"
        )
    if a.json:
        a.json.write_text(json.dumps({"seed": a.seed, "reports": reports}, indent=2) + "\n")
    return int(any(total[k] for k in ("lost", "duplicated", "unreadable")))


if __name__ == "__main__":
    sys.exit(main())
