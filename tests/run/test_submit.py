"""`perrin submit` and `perrin run` on this machine: what a laptop shares with a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rdkit")

from perrin.cli import main
from perrin.modalities.molecule import shards as molecule_shards
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.files import read_molecules, write_sdf
from perrin.run import slurm
from perrin.run.shards import RunFolder

SAMPLE = "sample molecule/qm9 -n 24 --seed 5 --steps 2"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **more: None if name == "sbatch" else which(name, **more)
    )


def submitted(monkeypatch: pytest.MonkeyPatch, words: str) -> RunFolder:
    """A run that was submitted, but of which nobody has made a shard."""
    with monkeypatch.context() as context:
        context.setattr(shutil, "which", lambda name, **more: f"/{name}")
        context.setattr(slurm, "submit", lambda path, indices=None: "17")
        assert main(words.split()) == 0
    return RunFolder("run")


def test_the_same_molecules_from_one_process_and_from_many(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SAMPLE.split(), "-o", "one.sdf.gz", "--workers", "1"]) == 0
    words = ["submit", *SAMPLE.split(), "--shards", "3", "--engine", "local", "--processes", "2", "-o", "run"]
    assert main(words) == 0
    assert "24 of 24 molecules made; perrin run merge run" in capsys.readouterr().out
    assert main(["run", "status", "run"]) == 0
    out = capsys.readouterr().out
    assert "done              3  0-2" in out
    assert main(["run", "merge", "run"]) == 0
    assert main(["run", "merge", "run", "-o", "plain.sdf"]) == 0
    assert (here / "run" / "sample.sdf.gz").read_bytes() == (here / "one.sdf.gz").read_bytes()
    assert main([*SAMPLE.split(), "-o", "one.sdf"]) == 0
    assert (here / "plain.sdf").read_bytes() == (here / "one.sdf").read_bytes()
    assert [m.properties["index"] for m in read_molecules("run/sample.sdf.gz")] == list(range(24))
    record = json.loads((here / "run" / "sample.sdf.gz.run.json").read_text())
    assert record["argv"] == [*SAMPLE.split(), "-o", str(here / "run" / "sample.sdf.gz")]
    assert record["bundle"]["path"] == "molecule/qm9"
    assert main(["evaluate", "run/sample.sdf.gz"]) == 0
    assert main(["run", "resume", "run"]) == 0
    assert main(words) == 2
    assert "perrin run resume run" in capsys.readouterr().err
    first = RunFolder("run").shards[0]
    path = here / "run" / "shards" / f"{first.name}.sdf.gz"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert main(["run", "merge", "run"]) == 2
    assert "damaged ones (0: other checksums)" in capsys.readouterr().err
    assert main(["run", "resume", "run"]) == 0
    assert "damaged shards are made again: 0" in capsys.readouterr().err
    assert main(["run", "merge", "run"]) == 0
    assert (here / "run" / "sample.sdf.gz").read_bytes() == (here / "one.sdf.gz").read_bytes()


def test_a_stopped_local_run_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = "sample molecule/qm9 -n 24 --steps 10 --batch 4 --workers 1".split()  # noqa: SIM905
    words = ["submit", *sample, "--shards", "2", "--engine", "local", "--processes", "1", "-o", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "perrin", *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    stop = time.monotonic() + 120
    while not list(here.glob("run/scratch/*/*.partial/*.safetensors")) and time.monotonic() < stop:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1].startswith("perrin: stopped; 'perrin run resume ")
    assert list(here.glob("run/scratch/*/*.partial/*.safetensors"))
    assert main(["run", "status", "run"]) == 0
    assert "stopped" in capsys.readouterr().out
    assert main(["run", "resume", "run"]) == 0
    assert main(["run", "merge", "run"]) == 0
    assert main([*sample, "-o", "one.sdf.gz"]) == 0
    assert (here / "run" / "sample.sdf.gz").read_bytes() == (here / "one.sdf.gz").read_bytes()


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_blocks_of_a_shard_are_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several blocks in a shard, stopped within one: the rest is made, in the same bytes."""
    monkeypatch.setattr(molecule_shards, "block_size", lambda batch: 8)
    words = f"{SAMPLE} --batch 1 --workers 1"
    submitted(monkeypatch, f"submit {words} -o run")
    save = molecule_shards.PartialStore.save
    left = 4 * stop_after

    def counted(store: object, *more: object) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        save(store, *more)  # type: ignore[arg-type]

    with monkeypatch.context() as context:
        context.setattr(molecule_shards.PartialStore, "save", counted)
        assert main(["run", "shard", "run", "0"]) == 130
    assert main(["run", "shard", "run", "0"]) == 0
    assert main(["run", "shard", "run", "0"]) == 0
    assert "shard 0 is done already" in capsys.readouterr().out
    assert main(["run", "merge", "run"]) == 0
    assert main([*SAMPLE.split(), "-o", "one.sdf.gz"]) == 0
    assert (here / "run" / "sample.sdf.gz").read_bytes() == (here / "one.sdf.gz").read_bytes()
    assert not list((here / "run" / "scratch").iterdir())


def test_a_verb_that_is_not_cut_runs_whole(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sdf("good.sdf", [add_geometry("CCO"), add_geometry("C")])
    words = "submit rank good.sdf -o ranked.sdf --by MW --workers 1 --run run --engine local"
    assert main(words.split()) == 0
    assert len(read_molecules("ranked.sdf")) == 2
    assert RunFolder("run").missing() == []
    assert main(["run", "merge", "run"]) == 2
    assert "nothing to merge" in capsys.readouterr().err


def test_the_script_can_be_read_beforehand(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "submit", *SAMPLE.split(), "--shards", "8", "--throttle", "3", "-o", "a folder", "--slurm", "-p gpu --gres=gpu:1",
        "--setup", "module load cuda", "--launcher", "apptainer exec --nv perrin.sif python", "--dry-run",
    ]  # fmt: skip
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in ("--array=0-7%3", "-p gpu", "--gres=gpu:1", "--open-mode=append", "--signal=B:USR1@60"):
        assert f"#SBATCH {line}" in lines
    assert lines[-2] == "module load cuda"
    assert lines[-1] == (
        f"exec apptainer exec --nv perrin.sif python -m perrin run shard '{here}/a folder' \"$SLURM_ARRAY_TASK_ID\""
    )
    assert list(here.iterdir()) == []


def test_what_is_queued_is_not_submitted_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(monkeypatch, f"submit {SAMPLE} --shards 4 -o run")
    tasks = [
        slurm.Task("17_1", 1, "PENDING", "Priority"),
        slurm.Task("17_2", 2, "PENDING", "launch failed requeued held"),
    ]
    asked: list[str | None] = []
    monkeypatch.setattr(shutil, "which", lambda name, **more: f"/{name}")
    monkeypatch.setattr(slurm, "queue", lambda name: tasks)
    monkeypatch.setattr(slurm, "submit", lambda path, indices=None: asked.append(indices) or "18")
    assert main(["run", "status", "run"]) == 0
    out = capsys.readouterr().out
    assert "2: launch failed requeued held; 'scontrol release 17_2' lets it go" in out
    assert main(["run", "resume", "run"]) == 0
    assert asked == ["0,3"]
    assert "in the queue already: 1-2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3"),
        ({"SLURM_JOB_ID": "12", "SLURM_PROCID": "0"}, "12"),
        ({"SLURM_JOB_ID": "12", "SLURM_PROCID": "1"}, None),
        ({"SLURM_JOB_ID": "12", "RANK": "2", "SLURM_PROCID": "0"}, None),
        ({}, None),
    ],
)
def test_what_is_requeued(
    here: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    """A task by its own name: one task's job number is the whole array's."""
    program = here / "scontrol"
    program.write_text('#!/bin/sh\necho "$@" >> asked\n')
    program.chmod(0o755)
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**environment, "PATH": f"{here}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    assert slurm.requeue() == expected
    assert (
        (here / "asked").read_text() == f"requeue {expected}\n" if expected else not (here / "asked").exists()
    )


WRONG = {
    "submit": "given none",
    "submit list -o run": "given list",
    f"submit {SAMPLE}": "add -o run/",
    f"submit {SAMPLE} -o run --shards 0": "--shards",
    f"submit {SAMPLE} -o run --shards 25 --engine local": "1 to 24 shards, given 25",
    f"submit {SAMPLE} -o file --engine local": "given the file",
    f"submit {SAMPLE} -o run": "--engine local",
    f"submit {SAMPLE} --magic -o run --engine local": "--magic",
    f"submit {SAMPLE} --solver magic -o run --engine local": "magic",
    f"submit {SAMPLE} --view a.html -o run --engine local": "--view",
    f"submit {SAMPLE} -o run --dry-run --slurm gpu": "start with a dash",
    "submit sample molecule/none -n 4 -o run --engine local": "molecule/qm9",
    "submit rank good.sdf -o ranked.sdf --engine local": "--run",
    "submit train molecule/qm9 --data good.sdf --shards 2 -o run --engine local": "1 to 1 shards, given 2",
    "run status nowhere": "no job.json",
    "run": "ACTION",
    "run dance run": "dance",
    "run shard nowhere 0": "no job.json",
}


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("command", WRONG)
def test_what_is_wrong_is_said_in_one_line(
    here: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    (here / "file").write_text("a file\n")
    write_sdf(here / "good.sdf", [add_geometry("CCO")])
    before = {p.name for p in here.rglob("*")}
    assert main(command.split()) == 2
    error = capfd.readouterr().err
    assert error.startswith("perrin: expected ")
    assert error.count("\n") == 1
    assert WRONG[command] in error
    assert {p.name for p in here.rglob("*")} == before


def test_a_changed_bundle_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perrin.modalities import find_bundle

    shutil.copytree(find_bundle("molecule/qm9"), here / "bundle")
    submitted(monkeypatch, "submit sample bundle -n 4 --steps 1 -o run")
    config = json.loads((here / "bundle" / "config.json").read_text())
    config["sampling"]["temperature"] = 0.5
    (here / "bundle" / "config.json").write_text(json.dumps(config))
    assert main(["run", "shard", "run", "0"]) == 2
    assert "given another (sampling changed)" in capsys.readouterr().err


def test_a_folder_for_a_job_of_ones_own_on_a_node_without_a_network(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every node of many clusters is one; a network namespace of one's own has not even a loopback that is up."""
    assert main(f"submit {SAMPLE} --shards 2 --engine none -o run".split()) == 0
    assert "2 shards to make: 'perrin run shard run N' makes one" in capsys.readouterr().out
    isolated = ["unshare", "--net"] if shutil.which("unshare") and os.geteuid() == 0 else []
    command = [*isolated, sys.executable, "-m", "perrin", "run", "work", "run"]
    subprocess.run(command, check=True, env=ENVIRONMENT, timeout=120)
    assert main(["run", "merge", "run"]) == 0
    assert len(read_molecules("run/sample.sdf.gz")) == 24
