"""Flows: the solver against closed forms and budgets, files, the model and its guarantees."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from perrin.core import sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.particle.flow.data import make_chunk, trajectories
from perrin.modalities.particle.flow.evaluate import evaluate_flow
from perrin.modalities.particle.flow.files import Trajectories, read_flow, write_flow
from perrin.modalities.particle.flow.invert import posterior
from perrin.modalities.particle.flow.model import (
    FlowConfig,
    FlowModel,
    FlowTask,
    NetworkConfig,
    build,
    flow_config,
)
from perrin.modalities.particle.flow.solver import (
    Flow,
    divergence,
    energy,
    project,
    resample,
    spectrum,
    velocity,
)
from perrin.modalities.particle.staged import SamplingOptions
from perrin.nets.periodic import PeriodicUNet
from perrin.train import Trainer, TrainOptions


def test_taylor_green_decays_as_it_should() -> None:
    flow = Flow(size=32, viscosity=0.05, friction=0.0, force=0.0, dt=0.05)
    line = 2 * math.pi * torch.arange(32, dtype=torch.float64) / 32
    start = 2 * torch.cos(line)[:, None] * torch.cos(line)
    torch.testing.assert_close(
        flow.run(start, 2.0), start * math.exp(-2 * 0.05 * 2.0), rtol=1e-12, atol=1e-12
    )


def test_the_laminar_state_stays() -> None:
    # force and friction balance: ω = −χ k cos(k y) / (ν k² + μ)
    flow = Flow(size=32, viscosity=0.1, friction=0.1, force=1.0, wave=4, dt=0.02)
    line = 2 * math.pi * torch.arange(32, dtype=torch.float64) / 32
    still = (-4 * torch.cos(4 * line) / (0.1 * 16 + 0.1))[:, None].expand(32, 32)
    torch.testing.assert_close(flow.run(still, 1.0), still, rtol=1e-10, atol=1e-10)


def _developed(flow: Flow) -> torch.Tensor:
    return flow.run(flow.random(2, torch.Generator().manual_seed(0)), 4.0)


def test_the_energy_budget_closes() -> None:
    flow = Flow(size=48, viscosity=0.01)
    w = _developed(flow)
    h = 1e-3
    fine = dataclasses.replace(flow, dt=h)
    a = fine.run(w, 5 * h)
    b = fine.run(a, 5 * h)
    rate = (energy(b) - energy(w)) / (10 * h)
    y = 2 * math.pi * torch.arange(48, dtype=torch.float64) / 48
    work = (torch.sin(4 * y)[:, None] * velocity(a)[:, 0]).mean((1, 2))
    want = -flow.viscosity * a.square().mean((1, 2)) - 2 * flow.friction * energy(a) + work
    torch.testing.assert_close(rate, want, rtol=1e-3, atol=1e-4)


def test_the_step_is_of_fourth_order() -> None:
    flow = Flow(size=32, viscosity=0.02)
    w = _developed(flow)
    right = dataclasses.replace(flow, dt=0.0025).run(w, 0.4)
    errors = [float((dataclasses.replace(flow, dt=h).run(w, 0.4) - right).abs().max()) for h in (0.04, 0.02)]
    assert 3.3 < math.log2(errors[0] / errors[1]) < 4.8


def test_velocities_have_no_divergence_and_this_curl() -> None:
    w = _developed(Flow(size=32, viscosity=0.02))
    uv = velocity(w)
    assert float(divergence(uv).abs().max()) < 1e-11
    assert float(divergence(velocity(torch.randn(3, 32, 32))).abs().max()) < 1e-11  # whatever the field
    hat = torch.fft.rfft2(uv)
    flow = Flow(size=32, wave=1)
    curl = torch.fft.irfft2(1j * flow.kx * hat[:, 1] - 1j * flow.ky * hat[:, 0], s=(32, 32))
    torch.testing.assert_close(curl, w, rtol=1e-8, atol=1e-9)


def test_shells_add_up_to_the_energy() -> None:
    w = _developed(Flow(size=32, viscosity=0.05))
    torch.testing.assert_close(spectrum(w).sum(-1), energy(w), rtol=1e-6, atol=1e-9)
    line = 2 * math.pi * torch.arange(32, dtype=torch.float64) / 32
    one = torch.cos(3 * line).expand(32, 32)
    assert float(spectrum(one)[3]) == pytest.approx(0.5 * 0.5 / 9)


def test_resampling_keeps_what_fits() -> None:
    line = 2 * math.pi * torch.arange(32, dtype=torch.float64) / 32
    field = torch.cos(3 * line)[:, None] * torch.sin(2 * line) + torch.cos(12 * line)
    small = resample(field, 16)
    coarse = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    torch.testing.assert_close(small, torch.cos(3 * coarse)[:, None] * torch.sin(2 * coarse))
    torch.testing.assert_close(resample(small, 32), torch.cos(3 * line)[:, None] * torch.sin(2 * line))


def test_bad_parameters_are_refused() -> None:
    for bad in ({"size": 7}, {"viscosity": 0.0}, {"wave": 40}, {"friction": -1.0}):
        with pytest.raises(PerrinError, match="expected"):
            Flow(**bad)  # type: ignore[arg-type]
    with pytest.raises(PerrinError, match="whole steps"):
        make_chunk(Flow(), 0, 0, times=2, interval=0.03, grid=32)
    with pytest.raises(PerrinError, match="became infinite"):
        Flow(size=32, dt=2.0, viscosity=1e-4).run(1000 * torch.randn(32, 32, dtype=torch.float64), 40.0)


@pytest.fixture(scope="module")
def data() -> Trajectories:
    flow = Flow(size=24, viscosity=0.02, dt=0.05, wave=4)
    w = flow.run(flow.random(6, torch.Generator().manual_seed(0)), 3.0)
    out = [w]
    for _ in range(5):
        out.append(flow.run(out[-1], 0.2))
    return trajectories(flow, [resample(torch.stack(out, 1), 16).float().numpy()], 0.2)


def test_files_keep_flows_and_others_can_read_them(tmp_path: Path, data: Trajectories) -> None:
    path = tmp_path / "flow.h5"
    write_flow(path, data)
    found = read_flow(path)
    np.testing.assert_array_equal(found.values, data.values)
    assert found.interval == pytest.approx(0.2)
    assert found.words["viscosity"] == 0.02
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(path) as file:
        assert file["vorticity"].dimensions == ("trajectory", "time", "y", "x")
    bad = data.values.copy()
    bad[2, 1, 0, 0] = np.nan
    write_flow(path, dataclasses.replace(data, values=bad))
    with pytest.raises(PerrinError, match=r"finite vorticity.*number 2"):
        read_flow(path)


def test_the_network_commutes_with_shifts_by_blocks() -> None:
    torch.manual_seed(0)
    net = PeriodicUNet(2, 1, (8, 16), 1, 4).double()
    x, c = torch.randn(1, 2, 16, 16).double(), torch.randn(1, 4).double()
    torch.testing.assert_close(net(x.roll((4, 6), (2, 3)), c), net(x, c).roll((4, 6), (2, 3)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Trajectories) -> FlowModel:
    config = flow_config(data, NetworkConfig(widths=(16, 24), blocks=1, condition=32))
    assert FlowConfig.from_json(config.to_json()).to_json() == config.to_json()
    torch.manual_seed(0)
    denoiser = build(config)
    task = FlowTask(denoiser, config, data, batch=16, seed=0)
    options = TrainOptions(steps=80, batch=16, lr=3e-3, warmup=5, log_every=20, save_every=40)
    last = Trainer(task, options, tmp_path_factory.mktemp("flow"), accelerator="cpu").run()
    assert last["loss"] < 0.9
    return FlowModel(denoiser.eval().requires_grad_(False), config, SamplingOptions(steps=5))


def test_a_trajectory_does_not_depend_on_its_batch(trained: FlowModel, data: Trajectories) -> None:
    start = data.values[:3, 0]
    a = trained.simulate(start, 2, members=2, batch=6)
    b = trained.simulate(start[:2], 2, members=2, batch=1)
    assert a.shape == (3, 2, 3, 16, 16)
    np.testing.assert_allclose(a[:2], b, atol=1e-4)
    assert np.abs(a[0, 0] - a[0, 1]).max() > 1e-3  # members differ


def test_what_the_flow_conserves_the_model_conserves(trained: FlowModel, data: Trajectories) -> None:
    found = torch.from_numpy(trained.simulate(data.values[:2, 0], 3)).double()
    assert float(found.mean((-2, -1)).abs().max()) < 1e-6
    assert float(divergence(velocity(found)).abs().max()) < 1e-10
    torch.testing.assert_close(project(found), found, rtol=1e-5, atol=1e-5)


def test_the_report_scores_forecasts(trained: FlowModel, data: Trajectories) -> None:
    found = trained.simulate(data.values[:4, 0], 3, members=3)
    ours = Trajectories(found.reshape(-1, *found.shape[2:]), 0.2, {"members": 3})
    result = evaluate_flow(ours, data)
    assert any("fair CRPS" in name for name in result["metrics"])
    perfect = Trajectories(np.repeat(data.values[:4], 2, 0), 0.2, {"members": 2})
    scores = evaluate_flow(perfect, data)["metrics"]
    crps = {k: v for k, v in scores.items() if "fair CRPS" in k}
    assert max(v["value"] for k, v in crps.items() if "persistence" not in k) == pytest.approx(0, abs=1e-6)
    held = np.abs(data.values[:4, 1] - data.values[:4, 0]).mean() / data.values.std()
    assert crps["fair CRPS of persistence / σ after 1 interval"]["value"] == pytest.approx(held, rel=1e-5)
    assert all(v["truth_value"] is None for v in crps.values())  # persistence is no truth against truth


def test_wrong_starts_are_refused(trained: FlowModel) -> None:
    with pytest.raises(PerrinError, match="16, 16"):
        trained.simulate(np.zeros((1, 8, 8), dtype=np.float32), 1)
    with pytest.raises(PerrinError, match="finite"):
        trained.simulate(np.full((1, 16, 16), np.nan, dtype=np.float32), 1)
    with pytest.raises(PerrinError, match="apart"):
        trained.check(np.zeros((1, 16, 16)), 0.5)
    own = trained.config.words
    trained.check(np.zeros((1, 16, 16)), 0.2, {**own, "members": 3})
    with pytest.raises(PerrinError, match=r"viscosity 0.02.*given 0.01"):
        trained.check(np.zeros((1, 16, 16)), 0.2, {**own, "viscosity": 0.01})


def test_measurements_draw_samples_near(trained: FlowModel, data: Trajectories) -> None:
    before, truth = (torch.from_numpy(data.values[:4, k]) for k in (2, 3))
    seeds, numbers = sample_seeds(0, range(4)), torch.arange(4)
    options = trained.sampling.changed(steps=12, start=0.999, solver="sde-dpmpp-2m")
    found = posterior(trained, before, truth, seeds, numbers, options, every=2, blur=None, noise=0.02, seed=0)
    free = trained.next(before, seeds, trained.sampling.changed(steps=12))
    seen = lambda x: (x - truth)[:, ::2, ::2].square().mean()  # noqa: E731
    assert float(seen(found)) < 0.25 * float(seen(free))


FULL = """
import resource, signal, sys
import numpy as np
from perrin.errors import PerrinError
from perrin.modalities.particle.flow.files import Trajectories, write_flow

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
flow = Trajectories(np.random.default_rng(0).standard_normal((4, 4, 32, 32)).astype("f4"), 0.2, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    write_flow(sys.argv[1], flow)
except PerrinError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_disk_that_is_full_does_not_end_the_process(tmp_path: Path) -> None:
    """HDF5 writing to a file ends with a segmentation fault."""
    words = [sys.executable, "-c", FULL, str(tmp_path / "a.h5")]
    found = subprocess.run(words, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "a.h5, met: File too large; free some space" in found.stdout
    assert list(tmp_path.iterdir()) == []
