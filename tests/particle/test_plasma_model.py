"""Phase space: Vlasov's step against theory and the particle-in-cell solver, what the model keeps, files and bad input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from test_commands import pytestmark  # noqa: F401

from perrin.bundle import write_bundle
from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.particle.flow import model as flows
from perrin.modalities.particle.flow.files import read_flow, write_flow
from perrin.modalities.particle.flow.phase_space import PhaseSpace
from perrin.modalities.particle.flow.plasmas import evaluate_plasmas
from perrin.modalities.particle.staged import SamplingOptions

WORDS = "data particle/plasma -n 4 --times 3 --grid 16 --bodies 4096 --wave 0.5 --workers 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plasma")
    assert main([*WORDS.split(), "-o", str(path / "f.h5")]) == 0
    data = read_flow(path / "f.h5")
    config = flows.flow_config(data, flows.NetworkConfig(widths=(8, 8), blocks=1, condition=16))
    model = {"kind": "flow", **config.to_json()}
    weights = dict(flows.build(config).named_parameters())
    sampling = SamplingOptions(steps=2).to_json()
    write_bundle(path / "p", modality="particle", model=model, weights=weights, card="toy", sampling=sampling)
    return path


def test_landaus_damping() -> None:
    """ω = 1.4157 − 0.1533 i at k = 0.5, from the maxima of the field's energy, before the grid's recurrence."""
    kind, n, steps = PhaseSpace(box=4 * math.pi, top=5.0, interval=0.1), 64, 200
    x = kind.box * torch.arange(n, dtype=torch.float64) / n
    v = kind.velocity(torch.zeros(n, n))
    f = torch.exp(-0.5 * v**2) * (1 + 1e-3 * torch.cos(0.5 * x))
    f = f / f.mean()
    energy = []
    for _ in range(steps):
        energy.append(float(kind.energies(f)[1]))
        f = kind.step(f)
    logs = np.log(energy)
    inner = np.arange(20, steps - 1)
    tops = inner[(logs[inner] > logs[inner - 1]) & (logs[inner] > logs[inner + 1])]
    # the energy goes as e^{2 γ t} cos²(ω t): maxima are π/ω apart; a parabola finds each between the times
    a, b, c = logs[tops - 1], logs[tops], logs[tops + 1]
    times = 0.1 * (tops + 0.5 * (a - c) / (a - 2 * b + c))
    heights = b - (a - c) ** 2 / (8 * (a - 2 * b + c))
    rate = np.polyfit(times, heights, 1)[0] / 2
    assert rate == pytest.approx(-0.1533, abs=0.001)
    assert math.pi / np.diff(times).mean() == pytest.approx(1.4157, abs=0.005)


def test_the_step_is_the_solvers(tmp_path: Path) -> None:
    """While two streams grow, before filaments: electrons that are followed one by one, and the grid alone."""
    words = "data particle/plasma -n 1 --seed 1 --times 9 --grid 32 --bodies 16384 --workers 1"
    assert main([*words.split(), "-o", str(tmp_path / "f.h5")]) == 0
    data = read_flow(tmp_path / "f.h5")
    kind = PhaseSpace.of(data.words, data.interval)
    f = torch.from_numpy(data.values[0]).double()
    made = kind.step(f[:-1])
    moved = (f[1:] - f[:-1]).square().mean((1, 2)).sqrt()
    assert bool(((made - f[1:]).square().mean((1, 2)).sqrt() < 0.5 * moved).all())
    np.testing.assert_allclose(kind.energies(f)[0], data_energy(tmp_path / "f.h5"), rtol=0.01)


def data_energy(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["kinetic_energy"][0]


def test_mirrors_and_shifts() -> None:
    kind = PhaseSpace(box=10.0, top=3.0, interval=0.5)
    f = 1 + torch.rand(2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # the highest wave of a grid has no mirror image
    low = (torch.fft.fftfreq(16).abs() < 0.4).double()
    f = torch.fft.ifft2(torch.fft.fft2(f) * low.outer(low)).real
    torch.testing.assert_close(kind.step(f.flip((1, 2))), kind.step(f).flip((1, 2)), rtol=0, atol=0.02)
    torch.testing.assert_close(kind.step(f.roll(3, 2)), kind.step(f).roll(3, 2))
    pair = f[:, None].expand(-1, 2, -1, -1).repeat(32, 1, 1, 1)
    moved = kind.moved(pair, torch.Generator().manual_seed(0), 0)
    torch.testing.assert_close(moved[:, 0], moved[:, 1])
    for x, y in zip(kind.energies(moved), kind.energies(pair)):
        torch.testing.assert_close(x, y)


def test_charge_momentum_and_energy_are_kept(folder: Path) -> None:
    """Whatever the network says: this one is untrained, and its change is made large."""
    from perrin.modalities import load

    model = load(str(folder / "p"))
    start = read_flow(folder / "f.h5").values[:, 0]
    wild = flows.FlowModel(model.network, dataclasses.replace(model.config, change=3.0), model.sampling)
    found = torch.from_numpy(wild.simulate(start, 3, members=2)).double()
    assert found.min() >= 0
    assert (found - found[:, :, :1]).abs().max() > 1
    kind = model.config.kind
    kinetic, field = kind.energies(found)
    for x in (found.mean((3, 4)), kinetic + field):
        torch.testing.assert_close(x, x[:, :, :1].expand_as(x), rtol=1e-6, atol=0)
    momentum = (found * kind.velocity(found)).mean((3, 4))
    torch.testing.assert_close(momentum, momentum[:, :, :1].expand_as(momentum), rtol=0, atol=1e-6)


def test_what_is_right_is_left_as_it_is(folder: Path) -> None:
    f = torch.from_numpy(read_flow(folder / "f.h5").values[:, 1]).double() + 1e-3
    kind = PhaseSpace(box=4 * math.pi, top=3.0, interval=1.0)
    torch.testing.assert_close(kind.kept(f, f), f)
    torch.testing.assert_close(kind.kept(1.3 * f, f), f)


def test_plasmas_are_simulated_evaluated_trained_and_viewed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, out = str(folder / "f.h5"), tmp_path / "s.h5"
    words = ["simulate", str(folder / "p"), "--from", truth, "-n", "2", "--intervals", "2"]
    assert main([*words, "-o", str(out)]) == 0
    assert len(read_flow(out)) == 8
    assert main(["evaluate", str(out), "--like", truth]) == 0
    told = capsys.readouterr().out
    for word in ("fair CRPS of a grid solver", "energy on the grid", "momentum, largest change"):
        assert word in told
    assert main(["view", str(out), "--beside", truth, "-o", str(tmp_path / "p.html")]) == 0
    assert main(["train", "particle/plasma", "--data", truth, "--from", str(folder / "p"), "--out",
                 str(tmp_path / "run"), "--steps", "2", "--batch", "2", "--threads", "1"]) == 0  # fmt: skip


def test_the_report_knows_the_truth(folder: Path) -> None:
    truth = read_flow(folder / "f.h5")
    ours = dataclasses.replace(
        truth, values=np.repeat(truth.values, 2, 0), words=truth.words | {"members": 2}
    )
    found = evaluate_plasmas(ours, truth)["metrics"]
    assert found["fair CRPS / σ after 2 intervals"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["charge, largest relative change"]["value"] < 1e-6
    with pytest.raises(PerrinError, match=r"box 12\.57"):
        evaluate_plasmas(dataclasses.replace(ours, words=ours.words | {"box": 3.0}), truth)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("simulate {f}/p -n 2 --from {f}/other.h5 -o {t}/x.h5", "expected a phase_space of wave 0.5"),
        ("invert {f}/p -n 2 --measured {f}/f.h5 -o {t}/x.h5", "which is for perrin simulate"),
        ("train particle/nbody --data {f}/f.h5 --out {t}/run", "expected density in"),
        ("evaluate {f}/f.h5", "a file of true"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    data = read_flow(folder / "f.h5")
    write_flow(folder / "other.h5", dataclasses.replace(data, words=data.words | {"wave": 0.3}))
    assert main(words.format(f=folder, t=tmp_path).split()) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert told in error[0]
    assert not list(tmp_path.iterdir())


def test_the_bundle_that_ships_corrects_the_grids_step(tmp_path: Path) -> None:
    """Two streams of another seed whose waves have grown: nearer to the electrons than the step and persistence."""
    from perrin.modalities import find_bundle, load

    words = "data particle/plasma -n 1 --seed 77 --times 22 --bodies 32768 --workers 1"
    assert main([*words.split(), "-o", str(tmp_path / "f.h5")]) == 0
    data = read_flow(tmp_path / "f.h5")
    model = load(str(find_bundle("particle/plasma")))
    model.check(data.values[:, 0], data.interval, data.words)
    late = dataclasses.replace(data, values=data.values[:, 18:], begin=18.0)
    ours = model.simulate(late.values[:, 0], 3, members=4)[0]
    made = dataclasses.replace(late, values=ours, words=late.words | {"members": 4})
    pair = dataclasses.replace(late, values=np.concatenate([late.values, data.values[:, :4]]))
    found = evaluate_plasmas(made, pair)["metrics"]
    for after in ("1 interval", "3 intervals"):
        crps, grid, held = (
            found[f"fair CRPS{name} / σ after {after}"]["value"]
            for name in ("", " of a grid solver", " of persistence")
        )
        assert crps < 0.5 * grid
        assert crps < 0.3 * held
