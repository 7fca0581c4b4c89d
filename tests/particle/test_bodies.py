"""Bodies from the command line, and the model of their density: mass, symmetries, files, bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from test_commands import pytestmark  # noqa: F401
from toys import refused

from perrin.bundle import write_bundle
from perrin.cli import main
from perrin.errors import PerrinError
from perrin.modalities.particle.flow import model as flows
from perrin.modalities.particle.flow.densities import evaluate_densities
from perrin.modalities.particle.flow.fields import Density, Vorticity
from perrin.modalities.particle.flow.files import Trajectories, read_flow, write_flow
from perrin.modalities.particle.flow.solver import project
from perrin.modalities.particle.staged import SamplingOptions

NBODY = ["data", "particle/nbody", "--grid", "16", "--bodies", "16", "--times", "3", "--workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bodies")
    assert main([*NBODY, "-n", "6", "-o", str(path / "density.h5")]) == 0
    density = read_flow(path / "density.h5")
    config = flows.flow_config(density, flows.NetworkConfig(widths=(8, 8), blocks=1, condition=16))
    weights = dict(flows.build(config).named_parameters())
    sampling = SamplingOptions(steps=2).to_json()
    model = {"kind": "flow", **config.to_json()}
    write_bundle(path / "d", modality="particle", model=model, weights=weights, card="toy", sampling=sampling)
    flow = np.random.default_rng(0).normal(size=(2, 2, 16, 16)).astype(np.float32)
    write_flow(path / "flow.h5", Trajectories(flow, 0.2, {}))
    return path


def test_densities_are_made_and_do_not_depend_on_their_number(folder: Path, tmp_path: Path) -> None:
    found = read_flow(folder / "density.h5")
    assert (found.name, found.values.shape, found.interval) == ("density", (6, 3, 16, 16), pytest.approx(0.2))
    assert found.begin == pytest.approx(-0.4)
    np.testing.assert_allclose(found.values.mean((2, 3)), 1, rtol=1e-6)
    few = tmp_path / "few.h5"
    assert main([*NBODY, "-n", "2", "-o", str(few)]) == 0
    np.testing.assert_array_equal(read_flow(few).values, found.values[:2])
    record = json.loads(Path(f"{few}.run.json").read_text())
    assert record["verb"] == "data"
    assert not Path(f"{few}.partial").exists()
    with h5py.File(folder / "density.h5") as file:
        np.testing.assert_allclose(file["scale_factor"], np.exp([-0.4, -0.2, 0.0]))
        assert file.attrs["Conventions"] == "CF-1.8"
        assert [d.label or d.keys()[0] for d in file["density"].dims] == ["trajectory", "time", "y", "x"]


@pytest.mark.parametrize("dimensions", [1, 3])
def test_particles_are_kept_with_their_momentum(tmp_path: Path, dimensions: int) -> None:
    out = tmp_path / "p.nc"
    words = f"data particle/nbody --dimensions {dimensions} --grid 8 --bodies 8 --times 2 --particles -n 1"
    assert main([*words.split(), "-o", str(out), "--workers", "1"]) == 0
    with h5py.File(out) as file:
        v = file["velocities"][0]
        assert file["positions"].shape == (1, 2, 8**dimensions, dimensions)
        assert file["density"].shape == (1, 2, *[8] * dimensions)
        assert np.abs(v.sum(1)).max() < 1e-4 * np.abs(v).sum(1).max()
        assert 30 < v.std() < 3000  # km/s
    if dimensions == 3:
        with pytest.raises(PerrinError, match=r"density \[trajectory, time, y, x\]"):
            read_flow(out)


def test_unfinished_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perrin.modalities.particle.bodies import commands

    made: list[int] = []
    whole = commands._make_nbody

    def failing(number: int) -> dict:
        if number == 2 and not made.count(-1):
            made.append(-1)
            raise KeyboardInterrupt
        made.append(number)
        return whole(number)

    monkeypatch.setattr(commands, "_make_nbody", failing)
    out = tmp_path / "a.h5"
    assert main([*NBODY, "-n", "4", "-o", str(out)]) == 130
    assert not out.exists()
    assert main([*NBODY, "-n", "4", "-o", str(out)]) == 0
    assert made == [0, 1, -1, 2, 3]


def test_plasmas_are_made(tmp_path: Path) -> None:
    out = tmp_path / "p.h5"
    words = "data particle/plasma -n 2 --times 3 --grid 16 --bodies 2048 --particles --workers 1"
    assert main([*words.split(), "-o", str(out)]) == 0
    with h5py.File(out) as file:
        assert file["phase_space"].shape == (2, 3, 16, 16)
        assert file["positions"].shape == (2, 3, 2048)
        energy = file["field_energy"][:] + file["kinetic_energy"][:]
        np.testing.assert_allclose(energy / energy[:, :1], 1, rtol=1e-3)
        np.testing.assert_allclose(file["kinetic_energy"][:, 0], 0.505, rtol=0.02)  # ½ (v₀² + 0.1²)
        assert not np.allclose(file["phase_space"][0], file["phase_space"][1])
    page = tmp_path / "p.html"
    assert main(["view", str(out), "-o", str(page)]) == 0
    assert "f(x, v)" in page.read_text()


def test_atoms_are_made_and_viewed(tmp_path: Path) -> None:
    pytest.importorskip("ase")
    out, page = tmp_path / "m.h5", tmp_path / "m.html"
    words = "data particle/md --system copper --bodies 4 --times 3 --interval 5 -n 1 --workers 1"
    assert main([*words.split(), "-o", str(out)]) == 0
    with h5py.File(out) as file:
        assert file["positions"].shape == (1, 3, 4, 3)
    assert main(["view", str(out), "-o", str(page)]) == 0
    assert "pair correlation" in page.read_text()


@pytest.fixture(scope="module")
def model(folder: Path) -> flows.FlowModel:
    from perrin.modalities import load

    return load(str(folder / "d"))


def test_the_model_keeps_mass_and_makes_nothing_negative(folder: Path, model: flows.FlowModel) -> None:
    """Whatever the network says: this one is untrained, and its change is made large."""
    start = 3 * read_flow(folder / "density.h5").values[:, 0]  # any mean
    wild = flows.FlowModel(model.network, dataclasses.replace(model.config, change=2.0), model.sampling)
    found = wild.simulate(start, 4, members=2)
    assert np.abs(found - found[:, :, :1]).max() > 1
    assert found.min() >= 0
    assert (found == 0).any()  # some had to be cut
    np.testing.assert_allclose(found.mean((-2, -1), dtype=np.float64), 3, rtol=1e-6)


def test_encoding_and_advancing_are_inverse() -> None:
    a, b = (torch.rand(3, 8, 8).double() + 0.01 for _ in range(2))
    b = b * (a.mean((1, 2)) / b.mean((1, 2)))[:, None, None]
    kind = Density()
    torch.testing.assert_close(kind.advance(a, kind.encode(b) - kind.encode(a), 1.0), b)
    w, v = project(torch.randn(2, 8, 8)), project(torch.randn(2, 8, 8))
    torch.testing.assert_close(Vorticity().advance(w, 0.5 * (v - w), 2.0), v)


def test_both_states_of_a_pair_move_alike() -> None:
    pair = torch.rand(64, 1, 8, 8).expand(-1, 2, -1, -1) + torch.tensor([0.0, 1.0])[:, None, None]
    moved = Density().moved(pair, torch.Generator().manual_seed(0), 4)
    torch.testing.assert_close(moved[:, 1], moved[:, 0] + 1)
    torch.testing.assert_close(moved.flatten(2).sort(-1).values, pair.flatten(2).sort(-1).values)
    turned = {
        tuple(m) for m in (moved[:, 0].flatten(1) - moved[:, 0].flatten(1)[:, :1]).sign().int().tolist()
    }
    assert len(turned) > 32  # different ones


def test_densities_are_simulated_evaluated_inverted_and_viewed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, out = str(folder / "density.h5"), tmp_path / "s.h5"
    assert (
        main(["simulate", str(folder / "d"), "--from", truth, "-n", "2", "--intervals", "2", "-o", str(out)])
        == 0
    )
    found = read_flow(out)
    assert (found.name, found.begin, len(found)) == ("density", pytest.approx(-0.4), 12)
    assert main(["evaluate", str(out), "--like", truth]) == 0
    told = capsys.readouterr().out
    for word in ("fair CRPS of linear theory", "mass, largest relative change", "at wave 8, last"):
        assert word in told
    back = tmp_path / "i.h5"
    assert main(["invert", str(folder / "d"), "--measured", truth, "-n", "2", "-o", str(back)]) == 0
    assert read_flow(back).begin == pytest.approx(-0.2)
    assert main(["view", str(out), "--beside", truth, "-o", str(tmp_path / "p.html")]) == 0
    assert main(["train", "particle/nbody", "--data", truth, "--from", str(folder / "d"), "--out",
                 str(tmp_path / "run"), "--steps", "2", "--batch", "2", "--threads", "1"]) == 0  # fmt: skip


def test_the_report_knows_the_truth_and_linear_theory(folder: Path) -> None:
    truth = read_flow(folder / "density.h5")
    ours = dataclasses.replace(truth, values=np.repeat(truth.values[:3], 2, 0), words={"members": 2})
    found = evaluate_densities(ours, truth)["metrics"]
    assert found["fair CRPS / σ after 2 intervals"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["correlation of a member at wave 4, last time"]["value"] == pytest.approx(1)
    # a contrast that does grow as the scale factor
    start = 1 + 0.1 * (truth.values[:, :1] - 1)
    linear = np.concatenate([1 + np.exp(0.2 * k) * (start - 1) for k in range(3)], 1)
    exact = dataclasses.replace(truth, values=linear.astype(np.float32))
    found = evaluate_densities(exact, exact)["metrics"]
    assert found["fair CRPS of linear theory / σ after 2 intervals"]["value"] == pytest.approx(0, abs=1e-6)
    held = found["fair CRPS of persistence / σ after 2 intervals"]["value"]
    wanted = (1 - np.exp(-0.4)) * np.abs(linear[:, 2] - 1).mean() / linear[:, 2].std()
    assert held == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(PerrinError, match="times of the truth"):
        evaluate_densities(dataclasses.replace(truth, begin=-0.2), truth)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("data particle/nbody --times 60 -n 1 -o {t}/x.h5", "expected a first time after a = 0.02"),
        ("data particle/nbody --grid 24 -n 1 -o {t}/x.h5", "divides the mesh of 128"),
        ("data particle/nbody --interval nan -n 1 -o {t}/x.h5", "an interval above 0"),
        ("data particle/nbody --sigma8 -1 -n 1 -o {t}/x.h5", "sigma8 above 0"),
        ("data particle/nbody -n 1 -o {t}/x.txt", "expected a file of densities"),
        (
            "data particle/nbody --viscosity 1 -n 1 -o {t}/x.h5",
            "expected --viscosity with particle/kolmogorov",
        ),
        ("data particle/plasma --bodies 7 -n 1 -o {t}/x.h5", "a multiple of 8 electrons"),
        ("data particle/plasma --wave 0 -n 1 -o {t}/x.h5", "a wave number above 0"),
        ("data particle/plasma --case landau --thermal 0.2 -n 1 -o {t}/x.h5", "expected --thermal"),
        ("data particle/plasma --grid 5 -n 1 -o {t}/x.h5", "expected an even --grid"),
        ("data particle/md --bodies 100 -n 1 -o {t}/x.h5", "expected a number of atoms"),
        ("data particle/md --interval 13 -n 1 -o {t}/x.h5", "whole steps of 10 fs"),
        ("data particle/md -n 1 -o {t}/x.csv", "expected a file of atoms"),
        ("simulate {f}/d -n 2 --from {f}/flow.h5 -o {t}/x.h5", "expected density in"),
        ("train particle/nbody --data {f}/flow.h5 --out {t}/run", "expected density in"),
        ("train particle/kolmogorov --data {f}/density.h5 --out {t}/run", "expected vorticity in"),
        ("evaluate {f}/density.h5 --like {f}/flow.h5", "expected density in"),
        ("evaluate {f}/density.h5", "a file of true densities"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    refused(words.format(f=folder, t=tmp_path), told, tmp_path, capsys)


def test_negative_densities_are_refused(folder: Path, tmp_path: Path, model: flows.FlowModel) -> None:
    truth = read_flow(folder / "density.h5")
    bad = truth.values.copy()
    bad[1, 0, 0, 0] = -0.1
    write_flow(tmp_path / "bad.h5", dataclasses.replace(truth, values=bad))
    with pytest.raises(PerrinError, match=r"of at least 0.*number 1"):
        read_flow(tmp_path / "bad.h5")
    with pytest.raises(PerrinError, match="at least 0"):
        model.simulate(bad[1:2, 0], 1)
    with pytest.raises(PerrinError, match=r"sigma8 0\.8"):
        model.check(truth.values[:, 0], 0.2, {"sigma8": 1.1})
