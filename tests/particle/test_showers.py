"""Showers: features, files, encodings, metrics, and the model at toy size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from toys import toy_showers

from perrin.errors import PerrinError
from perrin.modalities.particle.showers.evaluate import evaluate_showers, linearity, resolution_fit, rotation
from perrin.modalities.particle.showers.features import features, high_level, low_level
from perrin.modalities.particle.showers.files import Showers, read_showers, write_showers
from perrin.modalities.particle.showers.geometry import ANGLES, CUT, ETA, LAYERS, PHI, RADII
from perrin.modalities.particle.showers.model import (
    Scales,
    ShowerModel,
    make_task,
    shower_config,
    training_data,
)
from perrin.modalities.particle.showers.network import CylinderConv, NetworkConfig, ShowerConfig, build
from perrin.modalities.particle.staged import SamplingOptions
from perrin.train import Checkpoint, Trainer, TrainOptions

SMALL = NetworkConfig(
    depth=1, width=32, heads=2, condition=32, channels=4, patch=(9, 16, 3), first_depth=2, first_width=64
)


def _one(layer: int, values: dict[tuple[int, int], float], incident: float = 1000.0) -> Showers:
    voxels = np.zeros((1, LAYERS, ANGLES, RADII), dtype=np.float32)
    for (angle, radius), e in values.items():
        voxels[0, layer, angle, radius] = e
    return Showers(np.array([incident], dtype=np.float32), voxels.reshape(1, -1))


def test_features_of_two_voxels() -> None:
    # at radii 4.65 · 0.5 and 4.65 · 2.5 mm; angle 0 is centred at −π + π/16, angle 8 at π/16, half a turn away
    f = features(_one(7, {(0, 0): 30.0, (8, 2): 10.0}))
    alpha, near, far = np.pi / 16, 2.325, 11.625
    eta = (-near * np.cos(alpha) * 30 + far * np.cos(alpha) * 10) / 40
    assert f.centre_eta[0, 7] == pytest.approx(eta, rel=1e-6)
    square = (near**2 * 30 + far**2 * 10) * np.cos(alpha) ** 2 / 40
    assert f.width_eta[0, 7] == pytest.approx(np.sqrt(square - eta**2), rel=1e-6)
    assert f.centre_r[0, 7] == pytest.approx((30 * near + 10 * far) / 40, rel=1e-6)
    assert f.layers[0, 7] == 40
    assert f.response[0] == pytest.approx(0.04)
    assert f.depth[0] == pytest.approx(7)
    assert f.sparsity[0, 7] == pytest.approx(1 - 2 / 144)
    assert f.width_eta[0, 3] == 0
    assert high_level(f).shape == (1, 226)


def test_a_turn_turns_the_centre(showers: Showers) -> None:
    grid = showers.voxels.reshape(-1, LAYERS, ANGLES, RADII)
    turned = Showers(showers.incident, np.roll(grid, 4, axis=2).reshape(len(grid), -1))  # a quarter
    a, b = features(showers), features(turned)
    np.testing.assert_allclose(b.centre_eta, -a.centre_phi, atol=1e-6)
    np.testing.assert_allclose(b.centre_phi, a.centre_eta, atol=1e-6)
    np.testing.assert_allclose(b.centre_r, a.centre_r, rtol=1e-6)
    np.testing.assert_allclose(ETA**2 + PHI**2, np.tile((4.65 * (np.arange(9) + 0.5)) ** 2, 16))


def test_low_level_is_in_per_cent() -> None:
    x = low_level(_one(0, {(0, 0): 50.0}))
    assert x.shape == (1, 6481)
    assert x[0, 0] == pytest.approx(3)
    assert x[0, 1] == pytest.approx(5)


def test_files_are_calochallenges(tmp_path: Path, showers: Showers) -> None:
    path = tmp_path / "showers.h5"
    write_showers(path, showers, {"generator": "test"})
    with h5py.File(path) as file:  # as CaloChallenge's own code reads them
        assert file["incident_energies"].shape == (64, 1)
        assert file["showers"].shape == (64, 6480)
        np.testing.assert_array_equal(file["showers"][:], showers.voxels)
    found = read_showers(path)
    np.testing.assert_array_equal(found.incident, showers.incident)


def _file(path: Path, showers: object, energies: object) -> Path:
    with h5py.File(path, "w") as file:
        file["showers"], file["incident_energies"] = showers, energies
    return path


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good, e = np.ones((3, 6480)), np.full((3, 1), 1000.0)
    nan, negative = good.copy(), good.copy()
    nan[1, 5], negative[2, 7] = np.nan, -1
    path = tmp_path / "x.h5"
    for showers, energies, words in (
        (np.ones((3, 368)), e, "6480.*given \\[3, 368\\]"),
        (nan, e, "finite energies.*number 1"),
        (negative, e, "at least 0 MeV.*number 2"),
        (good, -e, "above 0 MeV"),
        (good, e[:2], "one for each shower"),
        (np.ones((0, 6480)), np.ones((0, 1)), "at least one shower"),
    ):
        with pytest.raises(PerrinError, match=words) as caught:
            read_showers(_file(path, showers, energies))
        assert "\n" not in str(caught.value)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(PerrinError, match="none named 'incident_energies'"):
        read_showers(path)
    path.write_text("no HDF5")
    with pytest.raises(PerrinError, match="cannot be read"):
        read_showers(path)
    with pytest.raises(PerrinError, match="does not exist"):
        read_showers(tmp_path / "none.h5")


@pytest.fixture(scope="module")
def config(showers: Showers) -> ShowerConfig:
    return shower_config(showers, SMALL)


def test_energies_survive_their_encoding(showers: Showers, config: ShowerConfig) -> None:
    scales = Scales(config)
    voxels = torch.from_numpy(showers.voxels).reshape(-1, LAYERS, ANGLES, RADII)
    incident, layers = torch.from_numpy(showers.incident), voxels.sum((2, 3))
    back = scales.decode_layers(scales.encode_layers(layers, incident), incident)
    torch.testing.assert_close(back, layers.double(), rtol=1e-4, atol=1e-5)
    x = scales.encode_voxels(voxels)
    assert float(x.std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(
        scales.decode_voxels(x, layers.double()), voxels.double(), rtol=1e-4, atol=1e-5
    )


def test_what_is_decoded_adds_up_and_is_empty_or_above_the_cut(config: ShowerConfig) -> None:
    scales = Scales(config)
    generator = torch.Generator().manual_seed(0)
    incident = torch.full((8,), 5000.0)
    layers = scales.decode_layers(torch.randn(8, 46, generator=generator), incident)
    layers[:, 5] = 0
    found = scales.decode_voxels(torch.randn(8, LAYERS, ANGLES, RADII, generator=generator), layers)
    torch.testing.assert_close(found.sum((2, 3)), layers, rtol=1e-9, atol=1e-9)
    assert bool(torch.isfinite(found).all())
    assert float(found[found > 0].min()) > 0.9 * CUT
    assert bool((found[:, 5] == 0).all())
    assert float(layers[layers > 0].min()) >= CUT


def test_the_convolution_is_periodic_in_angle() -> None:
    torch.manual_seed(0)
    conv = CylinderConv(2, 3)
    x = torch.randn(1, 2, LAYERS, ANGLES, RADII)
    torch.testing.assert_close(conv(x.roll(5, 3)), conv(x).roll(5, 3))


def test_patches_go_and_come_back(config: ShowerConfig) -> None:
    network = build(config).second.network
    x = torch.randn(2, 4, LAYERS, ANGLES, RADII)
    torch.testing.assert_close(network._join(network._split(x)), x)  # type: ignore[union-attr, operator]


def test_turns_leave_the_distribution(showers: Showers, config: ShowerConfig) -> None:
    data = training_data(showers)
    task = make_task(build(config), config, data, batch=64, seed=0)
    _, batch = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    turned = batch["second.x_0.voxels"]
    plain = Scales(config).encode_voxels(data["voxels"].reshape(-1, LAYERS, ANGLES, RADII))[task.plan(0)[1]]
    for a, b in zip(turned, plain):
        whole = torch.cat(
            [b.roll(k, 1) for k in range(ANGLES)] + [b.flip(1).roll(k, 1) for k in range(ANGLES)]
        )
        same = (whole.reshape(2 * ANGLES, *b.shape) - a).abs().amax((1, 2, 3)) < 1e-5
        assert bool(same.any())


def test_a_run_goes_on_where_it_was(tmp_path: Path, showers: Showers, config: ShowerConfig) -> None:
    def run(folder: str, steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = build(config)
        task = make_task(model, config, training_data(showers), batch=16, seed=0)
        options = TrainOptions(
            steps=steps, batch=16, lr=3e-3, warmup=3, cooldown=0, log_every=2, save_every=2
        )
        Trainer(task, options, tmp_path / folder, accelerator="cpu").run()
        found = Checkpoint.load(tmp_path / folder)
        assert found is not None
        return found.part("ema")

    whole = run("whole", 6)
    run("parts", 4)
    for name, value in run("parts", 6).items():
        assert torch.equal(value, whole[name])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, showers: Showers, config: ShowerConfig) -> ShowerModel:
    torch.manual_seed(0)
    model = build(config)
    task = make_task(model, config, training_data(showers), batch=32, seed=0)
    options = TrainOptions(steps=60, batch=32, lr=3e-3, warmup=5, log_every=20, save_every=30)
    last = Trainer(task, options, tmp_path_factory.mktemp("showers"), accelerator="cpu").run()
    assert last["loss"] < 2
    assert ShowerConfig.from_json(config.to_json()) == config
    return ShowerModel(model.eval().requires_grad_(False), config, SamplingOptions(steps=5, first_steps=8))


def test_a_shower_does_not_depend_on_its_batch(trained: ShowerModel) -> None:
    a, b = trained.sample(6, batch=6), trained.sample(4, batch=1)
    np.testing.assert_array_equal(a.incident[:4], b.incident)
    near = np.isclose(a.voxels[:4], b.voxels, rtol=1e-3, atol=1e-3)
    assert near.mean() > 0.9995  # a voxel at the edge of the cut may fall either way by rounding


def test_energies_are_kept(trained: ShowerModel) -> None:
    found = trained.sample(10, energy=(5, 20))
    assert (found.incident >= 5000).all()
    assert (found.incident <= 20000).all()
    assert (trained.sample(2, energy=(10, 10)).incident == 10000).all()
    assert np.isfinite(found.voxels).all()
    assert (found.voxels >= 0).all()
    for bad in ((0.1, 5), (10, 500), (20, 10), (float("nan"), 5)):
        with pytest.raises(PerrinError, match="--energy"):
            trained.sample(2, energy=bad)


def test_response_and_symmetry_of_known_showers() -> None:
    rng = np.random.default_rng(0)
    count = 4000
    incident = 1000 * np.exp(rng.uniform(0, np.log(50), count))
    total = 0.9 * incident * (1 + 0.15 / np.sqrt(incident / 1000) * rng.normal(size=count))
    share = rng.dirichlet(np.full(ANGLES, 5.0), count)
    voxels = np.zeros((count, LAYERS, ANGLES, RADII), dtype=np.float32)
    voxels[:, 4, :, 1] = total[:, None] * share
    f = features(Showers(incident.astype(np.float32), voxels.reshape(count, -1)))
    assert f.response.mean() == pytest.approx(0.9, rel=0.01)
    assert linearity(f) < 0.02
    fit = resolution_fit(f)
    assert fit["stochastic"] == pytest.approx(0.15, rel=0.1)
    assert fit["constant"] < 0.03
    whole = Showers(incident.astype(np.float32), voxels.reshape(count, -1))
    assert rotation(whole) < 2.5
    voxels[:, 4, 3, 1] *= 1.1
    assert rotation(Showers(whole.incident, voxels.reshape(count, -1))) > 5


def test_the_report_has_truth_beside() -> None:
    truth, other = toy_showers(80, 1), toy_showers(40, 2)
    result = evaluate_showers(other, truth, classifier=False)
    assert result["samples"] == 40
    metrics = result["metrics"]
    assert metrics["response, from truth's"]["value"] == pytest.approx(0, abs=5)
    louder = dataclasses.replace(other, voxels=1.2 * other.voxels)
    more = evaluate_showers(louder, truth, classifier=False)["metrics"]["response, from truth's"]["value"]
    assert more == pytest.approx(20, abs=6)
