"""Training: a run that was stopped ends with the bits of one that was not; runs are not mixed; the loss falls."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("rdkit")

import perrin
from perrin.cli import main
from perrin.core import GeneratorNoise, ema
from perrin.errors import PerrinError
from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.fields import layouts_for
from perrin.modalities.molecule.files import read_molecules, write_sdf
from perrin.modalities.molecule.model import MoleculeModel
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser
from perrin.modalities.molecule.sources import from_files
from perrin.modalities.molecule.task import MoleculeTask
from perrin.run.signals import Interrupted
from perrin.train import Trainer, TrainOptions, snapshots
from perrin.train.checkpoint import FILE, Checkpoint

TINY = NetworkConfig(
    depth=2,
    width=32,
    vectors=8,
    pair_width=16,
    heads=4,
    sets=4,
    pair_hidden=16,
    gathered=4,
    radial=8,
    time_width=16,
)
FIRST = ("CCO", "CC(=O)O", "C1CC1", "CN", "C#N", "CCCCCCC")
SECOND = ("CCO", "CC(=O)N", "C1CC1", "CN", "C#N", "CCCCCCC")


class Task(MoleculeTask):
    """Sends this process a signal when it prepares one of the steps."""

    stops: tuple[int, ...] = ()

    def prepare(self, step: int, **more: Any) -> tuple[Hashable, dict[str, torch.Tensor]]:
        if step in self.stops:
            self.stops = tuple(s for s in self.stops if s != step)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().prepare(step, **more)


def make(
    folder: Path,
    smiles: Sequence[str] = FIRST,
    stops: tuple[int, ...] = (),
    network: NetworkConfig = TINY,
    **changes: Any,
) -> tuple[Trainer, Task]:
    vocabulary, buckets, _ = from_files([add_geometry(s) for s in smiles], None, source="test")
    config = MoleculeConfig(vocabulary=vocabulary, network=network)
    options = TrainOptions(**{"steps": 12, "batch": 3, "warmup": 3, "log_every": 1, **changes})
    torch.manual_seed(options.seed)
    task = Task(build_denoiser(config), config, buckets, batch=options.batch, seed=options.seed)
    task.stops = stops
    return Trainer(task, options, folder, accelerator="cpu"), task


def weights(task: MoleculeTask) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in task.denoiser.named_parameters()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer, task = make(folder)
    before = weights(task)
    last = trainer.run()
    assert not same(before, weights(task))
    assert last["step"] == 12
    return weights(task), folder


def run_to_the_end(folder: Path, stops: tuple[int, ...], **changes: Any) -> Task:
    """As a user does it: call it again until it is through."""
    for _ in range(len(stops) + 1):
        trainer, task = make(folder, stops=stops, **changes)
        if not stops:
            trainer.run()
            return task
        with pytest.raises(Interrupted) as caught:
            trainer.run()
        assert caught.value.exit_code == 143
        at = int(str(caught.value).split()[3])
        assert at - 1 == stops[0], "the step at hand is finished, and no other is begun"
        stops = stops[1:]
    raise AssertionError("it never ended")


def test_power_averages_resume_exactly_and_any_width_is_rebuilt(tmp_path: Path) -> None:
    """Against the average of every step's weights, which a run that saves each step leaves behind."""
    widths, steps = (0.08, 0.2), 12
    for name, stops in (("whole", ()), ("stopped", (4, 9))):
        run_to_the_end(tmp_path / name, stops, ema_std=widths, save_every=1)
    one, other = (load_file(tmp_path / f / FILE) for f in ("whole", "stopped"))
    assert same(one, other)
    found, again = snapshots(tmp_path / "whole"), snapshots(tmp_path / "stopped")
    assert [(s.step, s.width) for s in found] == [(k, w) for k in range(1, 13) for w in widths]
    assert all(same(dict(a.weights), dict(b.weights)) for a, b in zip(found, again, strict=True))

    path = []
    for k in range(
        1, steps + 1
    ):  # the same run, read out after each step: the rate does not know where it is stopped
        folder = tmp_path / "path"
        if k < steps:
            trainer, _ = make(folder, stops=(k - 1,))
            with pytest.raises(Interrupted):
                trainer.run()
        else:
            make(folder)[0].run()
        path.append(
            {
                n.removeprefix("model."): v
                for n, v in load_file(folder / FILE).items()
                if n.startswith("model.")
            }
        )
    name = "network.node_in.weight"
    for width in widths:
        exact = ema.track([w[name] for w in path], width)
        kept = next(s for s in found if s.step == steps and s.width == width)
        torch.testing.assert_close(kept.weights[name], exact, rtol=1e-5, atol=1e-6)
    between = ema.reconstruct(found, width=0.12)[name]
    exact = ema.track([w[name] for w in path], 0.12)
    moved = float((path[-1][name] - path[0][name]).abs().max())
    assert float((between - exact).abs().max()) < 0.02 * moved

    trainer, _ = make(tmp_path / "path", ema_std=widths, steps=14)
    with pytest.raises(PerrinError, match="started with others or none"):
        trainer.run()
    with pytest.raises(PerrinError, match="relative width"):
        make(tmp_path / "new", ema_std=(0.5,))


@pytest.mark.parametrize(("stops", "save_every"), [((0,), 1000), ((5,), 4), ((10,), 1000), ((2, 3, 8), 4)])
def test_a_stopped_run_ends_with_the_same_bits(
    uninterrupted: tuple[dict[str, torch.Tensor], Path],
    tmp_path: Path,
    stops: tuple[int, ...],
    save_every: int,
) -> None:
    expected, folder = uninterrupted
    task = run_to_the_end(tmp_path / "run", stops, save_every=save_every)
    assert same(weights(task), expected)
    one, other = (load_file(f / FILE) for f in (folder, tmp_path / "run"))
    assert same(one, other), "weights, average and moments"
    volatile = ("samples_per_second",)
    kept = [
        [{k: v for k, v in row.items() if k not in volatile} for row in lines(f)]
        for f in (folder, tmp_path / "run")
    ]
    assert kept[0] == kept[1]
    assert [row["step"] for row in kept[0]] == list(range(1, 13))


def test_a_run_that_is_killed_outright_goes_on_from_its_checkpoint(
    uninterrupted: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    """A power cut after step 9: the checkpoint is of step 8, and the last line of the log is cut off."""
    trainer, task = make(tmp_path, stops=(), save_every=8)

    def power_cut(step: int, **more: Any) -> Any:
        if step == 9:
            raise RuntimeError("power cut")
        return type(task).prepare(task, step, **more)

    task.prepare = power_cut  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    trainer, task = make(tmp_path, save_every=8)
    trainer.run()
    assert same(weights(task), uninterrupted[0])
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, 13))


def test_a_signal_at_the_last_step_ends_the_run_well(
    uninterrupted: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    trainer, task = make(tmp_path, stops=(11,))
    assert trainer.run()["step"] == 12
    assert same(weights(task), uninterrupted[0])


def test_a_run_that_is_through_stays_as_it_is(
    uninterrupted: tuple[dict[str, torch.Tensor], Path],
) -> None:
    expected, folder = uninterrupted
    before = (folder / "metrics.jsonl").read_text(), (folder / FILE).read_bytes()
    trainer, task = make(folder)
    assert trainer.run()["step"] == 12
    assert same(weights(task), expected)
    assert ((folder / "metrics.jsonl").read_text(), (folder / FILE).read_bytes()) == before


def test_the_time_left_is_that_of_the_whole_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a minute 50 seconds were used before: at most 10 are left."""
    for stop in (3, 6):
        trainer, _ = make(tmp_path, stops=(stop,), steps=10**6, minutes=1)
        with pytest.raises(Interrupted):
            trainer.run()
        found = Checkpoint.load(tmp_path)
        assert found is not None
        replace(found, seconds=50.0).save(tmp_path)
    said = capsys.readouterr().err
    left = [float(x) for x in re.findall(r"(\S+) s left", said.partition("going on from step")[2])]
    assert left
    assert all(0 <= x <= 10 for x in left)


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted):
        make(tmp_path, stops=(1,))[0].run()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize(
    "other",
    [{"smiles": SECOND}, {"smiles": FIRST[:-1]}, {"network": NetworkConfig(**{**vars(TINY), "depth": 1})}],
)
def test_another_run_in_the_folder_is_refused_and_left_alone(tmp_path: Path, other: dict[str, Any]) -> None:
    make(tmp_path, steps=1)[0].run()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(PerrinError, match=r"expected the run in .* choose another --out"):
        make(tmp_path, steps=1, **other)[0].run()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_loss_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    trainer, task = make(tmp_path, save_every=4)
    plain = task.loss

    def spoiled(model: Callable[..., Any], key: Hashable, batch: dict[str, torch.Tensor]) -> Any:
        found = plain(model, key, batch)
        return found if task.plan.batch == 3 else {**found, "loss": found["loss"] * math.nan}

    task.loss = spoiled  # type: ignore[method-assign]
    prepare = task.prepare

    def later(step: int, **more: Any) -> Any:
        out = prepare(step, **more)
        task.plan.batch = 3 if step < 6 else 2
        return out

    task.prepare = later  # type: ignore[method-assign]
    with pytest.raises(PerrinError, match="expected a finite loss at step 7"):
        trainer.run()
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / FILE).values())


def test_a_few_molecules_are_learned_by_heart(tmp_path: Path) -> None:
    trainer, task = make(
        tmp_path, ("CCO", "CC#N"), steps=250, batch=8, lr=4e-3, warmup=10, ema=0.95, log_every=2
    )
    trainer.run()
    rows = lines(tmp_path)
    first, last = rows[:10], rows[-25:]

    def mean(rows: list[dict[str, Any]], key: str) -> float:
        return sum(row[key] for row in rows) / len(rows)

    assert mean(last, "loss") < 0.6 * mean(first, "loss")  # what is left is the noise at late times
    assert mean(last, "types") < 0.6 * mean(first, "types")
    assert mean(last, "bonds") < 0.5 * mean(first, "bonds")
    right = total = 0
    for seed in range(4):
        _, batch = task.prepare(0, generator=torch.Generator().manual_seed(seed), rank=0, world=1)
        mask = batch["mask"]
        clean = {k: batch[f"x_0.{k}"] for k in layouts_for(mask)}
        t = torch.full((len(mask),), 0.2)
        noise = GeneratorNoise(torch.Generator().manual_seed(seed))
        noised = task.denoiser.process.corrupt_state(clean, t, noise, layouts_for(mask))
        with torch.no_grad():
            estimate = task.denoiser(noised, t, layouts=layouts_for(mask))
        right += int((estimate["types"].argmax(-1) == clean["types"])[mask].sum())
        total += int(mask.sum())
    assert right > 0.95 * total
    assert all(row["gradient_norm"] > 0 for row in rows)


# the command


def tiny_file(path: Path, smiles: Sequence[str] = FIRST) -> Path:
    write_sdf(path, [add_geometry(s) for s in smiles])
    return path


def start(*words: object, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "perrin", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **more)


def stop_at(process: subprocess.Popen[str], step: int) -> tuple[int, str]:
    """SIGTERM once the log shows `step`; the exit code and the last line on standard error."""
    assert process.stderr is not None
    line = ""
    for line in process.stderr:
        if line.startswith(f"step {step}/"):
            process.send_signal(signal.SIGTERM)
            break
    _, rest = process.communicate(timeout=300)
    return process.returncode, (line + rest).splitlines()[-1]


def bundle_and_state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return load_file(folder / "model.safetensors"), load_file(folder / FILE)


def test_the_command_stopped_and_given_again(tmp_path: Path) -> None:
    data = tiny_file(tmp_path / "tiny.sdf")
    command = (
        f"train molecule/qm9 --data {data} --steps 8 --batch 4 --log-every 1 --seed 3 --device cpu".split()
    )
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    code, last = stop_at(start(*command, "--out", tmp_path / "cut"), 3)
    assert code == 143
    assert last.startswith("perrin: stopped at step ")
    assert 3 <= int(last.split()[4]) < 8
    assert not (tmp_path / "cut" / "config.json").exists()
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [FILE, "metrics.jsonl", "run.json"]
    assert main([*command, "--out", str(tmp_path / "cut")]) == 0
    for a, b in zip(bundle_and_state(tmp_path / "whole"), bundle_and_state(tmp_path / "cut"), strict=True):
        assert same(a, b)
    assert perrin.load(tmp_path / "cut").sample(1, steps=1)


def estimate(model: MoleculeModel, file: Path) -> float:
    """The loss on the molecules of a file, over fixed times and noise."""
    names = model.config.network.conditions
    _, buckets, _ = from_files(
        read_molecules(file), model.config.vocabulary, source=file, properties=names, spared=names
    )
    task = MoleculeTask(model.denoiser, model.config, buckets, batch=16, seed=0)
    total = 0.0
    for step in range(8):
        key, batch = task.prepare(step, generator=torch.Generator().manual_seed(step), rank=0, world=1)
        with torch.no_grad():
            total += float(task.loss(task.denoiser, key, batch)["loss"])
    return total


def test_fine_tuning_the_shipped_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss on a tiny set falls; another set of as many molecules is refused and the run's record kept."""
    data, other = tiny_file(tmp_path / "a.sdf", ["OOO"] * 4), tiny_file(tmp_path / "b.sdf", ["NOO"] * 4)
    out = tmp_path / "tuned"
    command = f"train molecule/qm9 --from molecule/qm9 --steps 20 --batch 4 --out {out} --device cpu".split()
    assert main([*command, "--data", str(data)]) == 0
    tuned, base = perrin.load(out), perrin.load("molecule/qm9")
    vocabulary = replace(base.config.vocabulary, size_counts=((5, 4),))  # it samples sizes like the new data
    assert tuned.config == replace(base.config, vocabulary=vocabulary)
    assert estimate(tuned, data) < 0.8 * estimate(base, data)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    assert main([*command, "--data", str(other)]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert "no molecule in" in note
    assert "alpha, gap" in note
    assert error.startswith(f"perrin: expected the run in {out} to have this model and data")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_molecules_that_a_bundle_cannot_express_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_file(tmp_path / "a.sdf", ["CCO", "CS", "CCCl", "CC"])
    command = (
        f"train molecule/qm9 --from molecule/qm9 --steps 1 --batch 1 --out {tmp_path / 'r'} --data {data}"
    )
    assert main(command.split()) == 0
    assert "left out 2 molecules" in capsys.readouterr().err
    vocabulary = perrin.load("molecule/qm9").config.vocabulary
    assert perrin.load(tmp_path / "r").config.vocabulary == replace(vocabulary, size_counts=((8, 1), (9, 1)))


def test_training_times_and_noise_are_those_of_the_step() -> None:
    """What `prepare` makes depends on the generator alone, and the noised state on nothing but noise and data."""
    _, task = make(Path("unused"))
    one, other = (
        task.prepare(4, generator=torch.Generator().manual_seed(9), rank=0, world=1) for _ in range(2)
    )
    assert one[0] == other[0]
    assert same(one[1], other[1])
    assert ((one[1]["t"] > 0) & (one[1]["t"] <= 1)).all()
    halves = [
        task.prepare(4, generator=torch.Generator().manual_seed(r), rank=r, world=2)[1]["x_0.positions"]
        for r in (0, 1)
    ]
    assert sum(map(len, halves)) == len(one[1]["t"])
    whole = one[1]["x_0.positions"]
    assert torch.equal(halves[0], whole[0::2])
    assert torch.equal(halves[1], whole[1::2])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_acceptance(tmp_path: Path) -> None:
    """`perrin train molecule/qm9 --limit 512 --steps 200`, killed in the middle and given again (here in small batches)."""
    words = "train molecule/qm9 --limit 512 --steps 200 --batch 8 --log-every 10 --device cpu"
    command = words.split()
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    code, last = stop_at(start(*command, "--out", tmp_path / "cut"), 100)
    assert code == 143
    assert 100 <= int(last.split()[4]) < 200
    assert main([*command, "--out", str(tmp_path / "cut")]) == 0
    for a, b in zip(bundle_and_state(tmp_path / "whole"), bundle_and_state(tmp_path / "cut"), strict=True):
        assert same(a, b)
    rows = lines(tmp_path / "cut")
    assert [row["step"] for row in rows] == list(range(10, 201, 10))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_muon_resumes_exactly(tmp_path: Path) -> None:
    whole = run_to_the_end(tmp_path / "whole", (), optimizer="muon")
    stopped = run_to_the_end(tmp_path / "stopped", (3, 7), optimizer="muon")
    assert same(weights(whole), weights(stopped))
    assert {k.partition(".")[0] for k in load_file(tmp_path / "whole" / FILE)} >= {"momentum", "exp_avg"}
    adamw = run_to_the_end(tmp_path / "adamw", ())
    assert not same(weights(whole), weights(adamw))


def test_the_batch_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    _, task = make(tmp_path, smiles=[*FIRST, *SECOND], batch=4)
    for step in range(6):
        draws = [
            task.prepare(step, generator=torch.Generator().manual_seed(step), rank=rank, world=world)
            for rank, world in ((0, 1), (0, 2), (1, 2))
        ]
        assert draws[0][0] == draws[1][0] == draws[2][0]
        (_, whole), (_, even), (_, odd) = draws
        assert all(
            torch.equal(whole[k][0::2], even[k]) and torch.equal(whole[k][1::2], odd[k]) for k in whole
        )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_ranks_stopped_and_resumed_on_one_follow_one_rank(tmp_path: Path, number: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }

    def run(folder: str, ranks: int, *more: str) -> None:
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        words = [str(root / "tests" / "train" / "ranks.py"), str(tmp_path / folder), str(ranks), *more]
        killed = number == signal.SIGKILL and bool(more)
        done = subprocess.run([sys.executable, *launch, *words], env=environment, timeout=400)
        assert (done.returncode != 0) == killed

    run("one", 1)
    run("two", 2, "9", str(int(number)))
    stopped = lines(tmp_path / "two")[-1]["step"]
    assert 9 <= stopped < 40, "ranks agree on a signal every 16 steps"
    run("two", 1)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [r["step"] for r in one] == [r["step"] for r in two] == list(range(1, 41))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
