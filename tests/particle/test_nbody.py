"""Gravity on a mesh against closed forms: Zel'dovich's plane wave, linear growth, conservation, reversibility."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from perrin.errors import PerrinError
from perrin.modalities.particle.bodies.cloud import cells, deposit, gather
from perrin.modalities.particle.bodies.nbody import Gravity, waves
from perrin.modalities.particle.flow.densities import power

TWO_PI = 2 * math.pi


def plane(gravity: Gravity, crossing: float, axis: int = 0) -> torch.Tensor:
    """ψ of a wave across the box whose orbits cross at ln a = `crossing`."""
    q = gravity.lattice[:, axis]
    psi = torch.zeros_like(gravity.lattice)
    psi[:, axis] = -math.exp(-crossing) / TWO_PI * torch.sin(TWO_PI * q)
    return psi


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_mass_is_on_the_mesh_and_forces_add_up_to_nothing(dimensions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 30 * torch.rand(500, dimensions, generator=generator, dtype=torch.float64) - 11
    index, weight = cells(x, 8)
    torch.testing.assert_close(weight.sum(-1), torch.ones(500).double(), rtol=1e-14, atol=0)
    assert float(deposit(index, weight, 8, dimensions).sum()) == pytest.approx(500, rel=1e-13)
    # a linear field is read exactly between the mesh's points
    line = (
        torch.arange(8, dtype=torch.float64).reshape([8] + [1] * (dimensions - 1)).expand((8,) * dimensions)
    )
    inside = 7 * torch.rand(50, dimensions, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(gather(line[None].contiguous(), *cells(inside, 8))[:, 0], inside[:, 0])
    gravity = Gravity(dimensions=dimensions, size=8, bodies=8)
    force = gravity.acceleration(torch.rand(200, dimensions, generator=generator, dtype=torch.float64))
    assert float(force.sum(0).abs().max()) < 1e-11 * float(force.abs().max()) * 200


def test_a_body_does_not_pull_itself_and_two_pull_each_other_evenly() -> None:
    gravity = Gravity(dimensions=2, size=32, bodies=2)
    alone = gravity.acceleration(torch.tensor([[0.31, 0.77]], dtype=torch.float64))
    two = gravity.acceleration(torch.tensor([[0.31, 0.5], [0.55, 0.41]], dtype=torch.float64))
    assert float(alone.abs().max()) < 1e-10 * float(two.abs().max())
    torch.testing.assert_close(two[0], -two[1], rtol=1e-10, atol=1e-10)
    assert two[0, 0] > 0  # towards the other


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_zeldovichs_wave_is_exact_until_orbits_cross(dimensions: int) -> None:
    gravity = Gravity(dimensions=dimensions, size=32, bodies=32, step=0.05)
    crossing = 0.0
    psi = plane(gravity, crossing, axis=dimensions - 1)
    begin = -3.0
    x, p = gravity.run(*gravity.start(psi, begin), begin, math.log(0.8))
    right, momentum = gravity.start(psi, math.log(0.8))
    error = float((x - right).abs().max())
    assert error < 0.15 / 32  # of cells, after a movement of 4 of them
    assert float((p - momentum).abs().max()) < 0.06 * float(momentum.abs().max())


def test_the_error_of_zeldovichs_wave_falls_with_the_mesh() -> None:
    errors = []
    for size in (32, 64):
        gravity = Gravity(dimensions=1, size=size, bodies=8 * size, step=0.02)
        psi = plane(gravity, 0.0)
        x, _ = gravity.run(*gravity.start(psi, -3.0), -3.0, math.log(0.5))
        errors.append(float((x - gravity.start(psi, math.log(0.5))[0]).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)  # second order
    assert errors[1] < 3e-3 * 0.5 / TWO_PI


@pytest.mark.parametrize(("rate", "start"), [(1.0, 1.0), (-1.5, -1.5)])
def test_small_waves_grow_and_decay_as_in_linear_theory(rate: float, start: float) -> None:
    """δ ∝ a grows; with velocities of the decaying mode δ ∝ a^(−3/2)."""
    gravity = Gravity(dimensions=2, size=64, bodies=64, step=0.02)
    psi = 1e-4 * torch.stack(
        [torch.sin(TWO_PI * gravity.lattice @ torch.tensor([1.0, 2.0]).double())] * 2, -1
    )
    psi = psi * torch.tensor([1.0, 2.0]).double()
    x, p = gravity.run(gravity.lattice + psi, start * psi, 0.0, 0.7)
    size = ((x - gravity.lattice) * psi).sum() / psi.square().sum()
    assert float(size) == pytest.approx(math.exp(0.7 * rate), rel=8e-3)
    torch.testing.assert_close(p * math.exp(-0.35), rate * float(size) * psi, rtol=0, atol=3e-6)


def test_a_density_grows_as_the_scale_factor_while_it_is_small() -> None:
    gravity = Gravity(dimensions=2, size=64, bodies=64, sigma8=0.02, step=0.05)
    psi = gravity.displacement(torch.Generator().manual_seed(3))
    x, p = gravity.start(psi, -3.0)
    first = gravity.density(x) - 1
    x, p = gravity.run(x, p, -3.0, -1.0)
    later = gravity.density(x) - 1
    growth = power(first, later)[1:5] / power(first)[1:5]
    torch.testing.assert_close(growth, torch.full_like(growth, math.exp(2)), rtol=0.04, atol=0)


def test_momentum_is_conserved_and_time_runs_back() -> None:
    gravity = Gravity(dimensions=2, size=32, bodies=32)
    psi = gravity.displacement(torch.Generator().manual_seed(0))
    x, p = gravity.start(psi, -3.9)
    y, q = gravity.run(x, p, -3.9, 0.0)
    assert float((y - x).abs().max()) > 0.05  # it did move, and orbits crossed
    assert float(gravity.density(y).max()) > 8
    assert float((q.sum(0) - p.sum(0)).abs().max()) < 1e-12 * float(q.abs().sum())
    back, slow = gravity.run(y, q, 0.0, -3.9)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(slow, p, rtol=0, atol=1e-9)


def test_the_step_is_of_second_order() -> None:
    ends = []
    for step in (0.2, 0.1, 0.05, 0.0125):
        gravity = Gravity(dimensions=2, size=16, bodies=16, step=step)
        psi = gravity.displacement(torch.Generator().manual_seed(1))
        ends.append(gravity.run(*gravity.start(0.3 * psi, -2.0), -2.0, -1.0)[0])
    errors = [float((e - ends[-1]).abs().mean()) for e in ends[:-1]]
    assert 1.6 < math.log2(errors[0] / errors[1]) < 2.4
    assert 1.6 < math.log2(errors[1] / errors[2]) < 2.4


def test_displacements_have_the_power_that_was_asked_for() -> None:
    gravity = Gravity(dimensions=2, size=64, bodies=64, box=256.0)
    found = torch.zeros(33, dtype=torch.float64)
    k = waves(64, 2)
    for seed in range(60):
        psi = gravity.displacement(torch.Generator().manual_seed(seed)).T.reshape(2, 64, 64)
        hat = torch.fft.rfft2(psi)
        delta = torch.fft.irfft2(-1j * (k[0] * hat[0] + k[1] * hat[1]), s=(64, 64))
        found += power(delta) / 60
    number = torch.fft.fftfreq(64, 1 / 64, dtype=torch.float64)
    number = (number[:, None] ** 2 + number**2).sqrt()
    waves_per_log = TWO_PI * number**2
    each = gravity.power((TWO_PI * number / gravity.box).clamp(min=1e-9)) / waves_per_log.clamp(min=1)
    wanted = torch.stack([each[number.round() == k].mean() for k in range(4, 24)])
    torch.testing.assert_close(found[4:24], wanted, rtol=0.12, atol=0)


def test_sigma8_is_the_rms_in_spheres() -> None:
    gravity = Gravity(sigma8=0.8)
    k = torch.logspace(-3.5, 1.5, 20001, dtype=torch.float64)
    y = 8 * k
    window = 3 * (torch.sin(y) / y - torch.cos(y)) / y**2
    assert float(torch.trapezoid(gravity.power(k) * window**2 / k, k)) == pytest.approx(0.64, rel=1e-3)
    slope = torch.log(gravity.power(torch.tensor([1e-4, 1e-5]))).diff() / math.log(0.1)
    assert float(slope) == pytest.approx(4, abs=0.02)  # 3 + n on the largest scales


def test_shells_hold_the_waves() -> None:
    n = 16
    line = TWO_PI * torch.arange(n).double() / n
    wave = torch.cos(3 * line)[:, None].expand(n, n)
    assert float(power(wave)[3]) == pytest.approx(0.5 / round(_waves(n, 3)))
    white = torch.randn(400, n, n, generator=torch.Generator().manual_seed(0)).double()
    np.testing.assert_allclose(power(white).mean(0) * n * n, 1, rtol=0.1)
    assert float(power(wave, torch.sin(3 * line)[:, None].expand(n, n))[3]) == pytest.approx(0, abs=1e-12)


def _waves(n: int, shell: int) -> int:
    k = np.fft.fftfreq(n, 1 / n)
    return int((np.round(np.hypot(k[:, None], k)) == shell).sum())


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"dimensions": 4}, "1, 2 or 3 dimensions"),
        ({"size": 7}, "an even mesh"),
        ({"bodies": 1}, "an even mesh"),
        ({"box": 0.0}, "box above 0"),
        ({"sigma8": float("nan")}, "sigma8 above 0"),
        ({"step": -1.0}, "step above 0"),
    ],
)
def test_bad_universes_are_refused(bad: dict, told: str) -> None:
    with pytest.raises(PerrinError, match=told):
        Gravity(**bad)
    with pytest.raises(PerrinError, match="divides the mesh"):
        Gravity(size=16).density(torch.rand(3, 2).double(), 5)
