"""Parts of a batch, over ranks and one after another, and data that ranks share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

from tests.train.test_trainer import FIRST, SECOND, lines, make

from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.files import write_sdf
from perrin.run.signals import Interrupted
from perrin.train import find_ranks, shared_tensors
from perrin.train.gradients import accumulated

ROOT = Path(__file__).resolve().parents[2]
SLURM = {"SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


def test_the_gradient_of_a_mean_is_the_mean_of_the_parts() -> None:
    """Closed form: for the mean of (w·x − y)² it is 2 mean((w·x − y) x)."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    unused = torch.zeros(2, requires_grad=True)

    def gradients(key: object, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = (batch["x"] @ w - batch["y"]).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    residual = (x @ w - y).detach()
    for parts in (1, 2, 3, 12):
        w.grad = None
        found = accumulated(gradients, [w, unused], parts)("key", {"x": x, "y": y})
        assert torch.allclose(w.grad, 2 * (residual[:, None] * x).mean(0), rtol=1e-12)  # type: ignore[arg-type]
        assert torch.allclose(found["loss"], residual.square().mean(), rtol=1e-12)
        assert unused.grad is None


def test_accumulation_follows_the_whole_batch(tmp_path: Path) -> None:
    losses = {}
    for parts in (1, 2, 4):
        trainer, _ = make(tmp_path / str(parts), [*FIRST, *SECOND], batch=4, accumulate=parts)
        trainer.run()
        losses[parts] = [row["loss"] for row in lines(tmp_path / str(parts))]
    assert len(losses[1]) == 12
    for parts in (2, 4):
        assert losses[parts] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, batch=3, accumulate=2)
    with pytest.raises(PerrinError, match=r"expected a batch that 1 ranks × 2 parts divide, given 3"):
        trainer.run()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (0, 2, 1, False)), (TORCHRUN, (3, 2, 2, True)), (SLURM, (5, 4, 2, True)), ({"LOCAL_RANK": "1"}, (1, 2, 1, False))],
)  # fmt: skip
def test_ranks_are_found(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int, int, bool]
) -> None:
    for name in {*SLURM, *TORCHRUN, "LOCAL_RANK", "SLURM_NNODES"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = find_ranks(2)
    assert (found.rank, found.local, found.nodes, found.given) == expected
    assert found.world == expected[1] * expected[2]


def test_shared_data_are_made_once(tmp_path: Path) -> None:
    calls = []

    def make_it() -> tuple[dict[str, Tensor], dict[str, str]]:
        calls.append(1)
        return {"x": torch.arange(5)}, {"a": "b"}

    path = tmp_path / "data.safetensors"
    with pytest.raises(PerrinError, match="expected rank 0 to prepare"):
        shared_tensors(path, "key", make_it, rank=1, patience=0.1)
    for rank in (0, 0, 1):
        tensors, facts = shared_tensors(path, "key", make_it, rank=rank)
        assert torch.equal(tensors["x"], torch.arange(5))
        assert facts == {"a": "b"}
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:-3])
    shared_tensors(path, "key", make_it, rank=0)
    shared_tensors(path, "other", make_it, rank=0)
    assert len(calls) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shared_data_take_no_memory_of_a_rank(tmp_path: Path) -> None:
    """A rank that reads all of 64 MiB has as much in its mapped pages and (almost) none in memory of its own."""
    path = tmp_path / "data.safetensors"
    shared_tensors(path, "key", lambda: ({"x": torch.ones(2**24)}, {}), rank=0)
    script = (
        "import re, sys\nfrom perrin.train.shared import mapped\n"
        "def own():\n"
        "    text = open('/proc/self/smaps_rollup').read()\n"
        "    return [int(re.search(rf'^{k}: +(\\d+)', text, re.M)[1]) / 1024 for k in ('Anonymous', 'Rss')]\n"
        "import torch; torch.set_num_threads(1); torch.ones(2**20).sum()\n"
        "before = own()\nx = mapped(sys.argv[1], 'key')[0]['x']\n"
        "assert all(float(part.sum()) == len(part) for part in x.split(2**20))\n"
        "print([b - a for a, b in zip(before, own())])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    anonymous, resident = json.loads(found.stdout)
    assert resident > 60
    assert anonymous < 8


@pytest.mark.slow
def test_the_command_on_two_ranks_with_shared_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun starts the ranks, which need not be told how many they are."""
    data = tmp_path / "data.sdf"
    write_sdf(data, [add_geometry(s) for s in (*FIRST, *SECOND)])
    train = f"train molecule/own --data {data} --steps 12 --batch 4 --threads 1 --log-every 1 --save-every 8 --out".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "perrin"]
    two = [*train, str(tmp_path / "two")]
    subprocess.run([*launch, *two, "--accumulate", "2"], check=True, env=environment, timeout=400)
    assert (tmp_path / "two" / "data.safetensors").is_file()
    assert main([*train, str(tmp_path / "one")]) == 0
    one, other = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [r["step"] for r in one] == [r["step"] for r in other] == list(range(1, 13))
    for a, b in zip(one, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_notice_saves_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import signal

    number = getattr(signal, name)
    monkeypatch.setattr(signal, "SIGTERM", number, raising=False)  # what the task sends itself
    trainer, _ = make(tmp_path, stops=(5,))
    with pytest.raises(Interrupted) as caught:
        trainer.run()
    assert caught.value.exit_code == 128 + number
    assert (tmp_path / "checkpoint.safetensors").is_file()
