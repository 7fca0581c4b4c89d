"""On a real Slurm cluster: preempted, killed and resumed, an array's result has the bits of one process's."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.run.cluster import cluster, why_not

pytest.importorskip("rdkit")

from perrin.cli import main
from perrin.core.noise import sample_seeds
from perrin.run.shards import RunFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

TROUBLE = '''
"""Slows every part down, and ends the process that writes shard 5 in the middle of it, once."""
import os, signal, time

replace = os.replace

def slow(source, target, **more):
    name = os.path.basename(str(target))
    if name == "00005.sdf.gz" and not os.path.exists(FLAG):
        open(FLAG, "w").close()
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, **more)
    if name.endswith(".safetensors"):
        time.sleep(1.5)

os.replace = slow
'''


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if reason := why_not():
        message = f"NO SLURM CLUSTER: {reason}"
        print(message, file=sys.__stderr__)
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with cluster(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


def until(condition: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def idle() -> bool:
    found = subprocess.run(["squeue", "-h"], capture_output=True, text=True, timeout=60, check=True)
    return not found.stdout.strip()


def make_trouble(folder: Path, flag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every Python process run `TROUBLE` at its start; where `flag` is there already, nobody is killed."""
    trouble = folder / "trouble"
    trouble.mkdir()
    (trouble / "sitecustomize.py").write_text(f"FLAG = {str(flag)!r}\n{TROUBLE}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(trouble), str(ROOT / "src")]))


def test_preempted_and_killed_ends_as_one_process_does(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trouble(tmp_path, tmp_path / "killed", monkeypatch)
    monkeypatch.chdir(tmp_path)
    n, sample = 64, "sample molecule/qm9 -n 64 --seed 3 --steps 2 --batch 2 --workers 1"
    words = ["submit", *sample.split(), "--shards", "8", "-o", "run", "--setup", "# site's own"]
    assert main([*words, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for line in (
        "#SBATCH --array=0-7",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@60",
        "# site's own",
        "exec ",
    ):
        assert f"\n{line}" in script
    assert main(words) == 0
    assert re.match(
        r"submitted perrin-\w+ as Slurm job \d+; perrin run status run\n", capsys.readouterr().out
    )
    folder = RunFolder("run")

    def at_work() -> list[int]:
        return [s.number for s in folder.missing() if list(folder.scratch(s).rglob("*.safetensors"))]

    until(lambda: len(at_work()) >= 3, "three shards at work")
    main(["run", "status", "run"])
    assert re.search(r"at work +[34] ", capsys.readouterr().out)
    urgent = ["sbatch", "--partition=urgent", "--array=0-1", "--ntasks=1", "--output=/dev/null"]
    subprocess.run([*urgent, "--wrap", "sleep 3"], check=True, timeout=60, capture_output=True)
    until(idle, "the queue to empty")

    logs = {p.name: p.read_text() for p in (folder.path / "logs").glob("*.log")}
    back = [name for name, text in logs.items() if "again" in text]
    assert len(back) >= 2, logs
    assert (tmp_path / "killed").exists()
    assert [s.number for s in folder.missing()] == [5]
    assert not (folder.path / "shards" / "00005.sdf.gz").exists()
    assert main(["run", "merge", "run"]) == 2
    assert "missing 5" in capsys.readouterr().err
    assert main(["run", "status", "run"]) == 0
    assert "perrin run resume run" in capsys.readouterr().out
    assert main(["run", "resume", "run"]) == 0
    until(idle, "the last shard")
    assert main(["run", "status", "run"]) == 0
    assert "64 of 64 molecules" in capsys.readouterr().out
    assert main(["run", "merge", "run"]) == 0

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    assert main([*sample.split(), "-o", "one.sdf.gz"]) == 0
    merged = (folder.path / "sample.sdf.gz").read_bytes()
    assert merged == Path("one.sdf.gz").read_bytes()
    indices = [int(i) for i in re.findall(r"> <index>\n(\d+)\n", gzip.decompress(merged).decode())]
    assert indices == list(range(n))
    assert len(set(sample_seeds(3, range(n)).tolist())) == n
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert sum(shard["restarts"] > 0 for shard in manifest["shards"]) >= 2
    assert all(re.fullmatch(r"\d+_\d", shard["slurm"]) for shard in manifest["shards"])
    assert set(manifest["nodes"]) <= {"n1", "n2"}
    assert not list((folder.path / "scratch").iterdir())
    assert not list(folder.path.rglob("*.tmp")), "what the killed process left is gone"


def test_cancelled_work_stays_away_until_it_is_resumed(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trouble(tmp_path, Path("/"), monkeypatch)
    monkeypatch.chdir(tmp_path)
    sample = "sample molecule/qm9 -n 12 --seed 3 --steps 1 --batch 2 --workers 1"
    assert main(["submit", *sample.split(), "--shards", "1", "-o", "run"]) == 0
    folder = RunFolder("run")
    until(lambda: bool(list(folder.scratch(folder.shards[0]).rglob("*.safetensors"))), "work")
    subprocess.run(["scancel", "--batch", "--signal=TERM", "--name", folder.name], check=True, timeout=60)
    until(idle, "the end")
    assert "perrin: stopped" in (folder.path / "logs" / "0.log").read_text()
    kept = list(folder.scratch(folder.shards[0]).rglob("*.safetensors"))
    assert folder.missing()
    assert kept
    assert main(["run", "resume", "run"]) == 0
    assert main(["run", "resume", "run"]) == 0
    assert "in the queue already: 0" in capsys.readouterr().out
    until(idle, "the end")
    assert main(["run", "merge", "run", "-o", "out.sdf"]) == 0
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    assert main([*sample.split(), "-o", "one.sdf"]) == 0
    assert Path("out.sdf").read_bytes() == Path("one.sdf").read_bytes()


def test_training_on_two_nodes_comes_back_after_a_notice(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks by srun, on two nodes, over gloo; USR1 to the step: saved, requeued, finished."""
    from perrin.modalities.molecule.chem import add_geometry
    from perrin.modalities.molecule.files import write_sdf

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.chdir(tmp_path)
    write_sdf("data.sdf", [add_geometry(s) for s in ("CCO", "CC(=O)O", "C1CC1", "CN", "C#N")])
    train = "train molecule/own --data data.sdf --steps 48 --batch 2 --threads 1 --log-every 1 --device cpu"
    words = ["submit", *train.split(), "-o", "run", "--slurm", "-N 2 --ntasks-per-node=1"]
    words += ["--setup", "export MASTER_ADDR=127.0.0.1"]  # the nodes' names mean nothing to the network
    assert main([*words, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert "\n#SBATCH -N 2\n" in script
    assert "\nexec srun " in script
    assert "--array" not in script
    assert main(words) == 0
    metrics, folder = tmp_path / "run" / "metrics.jsonl", RunFolder("run")
    until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 3, "some steps")
    subprocess.run(["scancel", "--signal=USR1", "--name", folder.name], check=True, timeout=60)
    until(idle, "the end", 400)
    [log] = [p.read_text() for p in (tmp_path / "run" / "logs").glob("*.log")]
    assert re.search(r"stopped at step \d+ of 48.*; Slurm runs \d+ again", log), log
    assert "going on from step" in log
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 49))
    assert (tmp_path / "run" / "config.json").is_file()
    receipt = folder.receipt(folder.shards[0])
    assert receipt is not None
    assert receipt["restarts"] >= 1
    assert main(["run", "status", "run"]) == 0
    assert "1 of 1 command," in capsys.readouterr().out
