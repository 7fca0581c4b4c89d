"""Spherical harmonics: closed forms, other libraries' values, and what a rotation leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from perrin.errors import PerrinError
from perrin.nets.sphere import (
    SphericalHarmonics,
    VectorHarmonics,
    equiangular_latitudes,
    gauss_latitudes,
    isotropic,
    laplacian,
    legendre,
    pad_sphere,
    power,
)

GRIDS = {
    "gauss": lambda n: gauss_latitudes(n),
    "poles": lambda n: equiangular_latitudes(n, poles=True),
    "offset": lambda n: equiangular_latitudes(n, poles=False),
}


def draw(degree: int, seed: int = 0, spectrum: Tensor | None = None, count: int = 3) -> Tensor:
    white = torch.randn(count, degree**2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return isotropic(white, torch.ones(degree, dtype=torch.float64) if spectrum is None else spectrum)


def points(latitude: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    longitude = torch.arange(columns, dtype=torch.float64) * (360 / columns)
    phi, lam = torch.meshgrid(torch.deg2rad(latitude), torch.deg2rad(longitude), indexing="ij")
    return phi, lam


@pytest.mark.parametrize("rows", [2, 9, 64])
def test_quadratures(rows: int) -> None:
    x, w = np.polynomial.legendre.leggauss(rows)
    latitude, weight = gauss_latitudes(rows)
    np.testing.assert_allclose(np.sin(np.deg2rad(latitude)), x, atol=1e-14)
    np.testing.assert_allclose(weight, w, atol=1e-14)
    for poles in (True, False):
        latitude, weight = equiangular_latitudes(rows, poles=poles)
        x = torch.sin(torch.deg2rad(latitude))
        for power_ in range(rows):
            exact = 2 / (power_ + 1) if power_ % 2 == 0 else 0
            assert abs(float(weight @ x**power_) - exact) < 1e-13


def test_legendre_is_scipys() -> None:
    special = pytest.importorskip("scipy.special")
    latitude = torch.tensor([-90.0, -71.3, -10.0, 0.0, 33.3, 90.0], dtype=torch.float64)
    table = legendre(40, latitude)
    for l, m in [(0, 0), (1, 0), (1, 1), (2, 1), (7, 7), (39, 0), (39, 20), (39, 39)]:
        theta = np.deg2rad(90 - latitude.numpy())
        np.testing.assert_allclose(table[l, m], special.sph_harm_y(l, m, theta, 0.0).real, atol=1e-12)


def test_harmonics_are_orthonormal_to_high_degree() -> None:
    latitude, weight = gauss_latitudes(200)
    table = legendre(200, latitude)
    for m in (0, 1, 57, 150):
        rows = table[m:, m]
        gram = 2 * math.pi * (rows * weight) @ rows.T
        assert (gram - torch.eye(200 - m, dtype=torch.float64)).abs().max() < 1e-11


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_there_and_back(grid: str, dtype: torch.dtype, tolerance: float) -> None:
    latitude, _ = GRIDS[grid](33)
    transform = SphericalHarmonics(latitude, 66, first=2.5)
    assert transform.degree == (32 if grid == "poles" else 33)
    a = draw(transform.degree).to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    field = transform.inverse(a)
    assert field.dtype == dtype
    assert (transform(field) - a).abs().max() < tolerance * a.abs().max()


@pytest.mark.parametrize("grid", GRIDS)
def test_values_are_those_of_ducc(grid: str) -> None:
    ducc = pytest.importorskip("ducc0")
    degree, rows, columns = 32, 40, 72
    latitude, _ = GRIDS[grid](rows)
    a = draw(degree, count=1)
    alm = np.concatenate([a[0, m:, m].numpy() for m in range(degree)])[None]
    geometry = {"gauss": "GL", "poles": "CC", "offset": "F1"}[grid]
    theirs = ducc.sht.synthesis_2d(
        alm=alm, spin=0, lmax=degree - 1, ntheta=rows, nphi=columns, geometry=geometry
    )
    ours = SphericalHarmonics(latitude, columns, degree).inverse(a)[0]
    np.testing.assert_allclose(ours.flip(0), theirs[0], atol=1e-11)  # its rows run from the north
    back = ducc.sht.analysis_2d(map=theirs, spin=0, lmax=degree - 1, geometry=geometry)
    fitted = SphericalHarmonics(latitude, columns, degree)(torch.from_numpy(theirs[0]).flip(0))
    np.testing.assert_allclose(
        np.concatenate([fitted[m:, m].numpy() for m in range(degree)]), back[0], atol=1e-10
    )


def test_power_is_the_mean_square() -> None:
    latitude, weight = gauss_latitudes(40)
    a = draw(30)
    field = SphericalHarmonics(latitude, 80, 30).inverse(a)
    mean = (field**2).mean(-1) @ weight / 2
    torch.testing.assert_close(power(a).sum(-1), mean, rtol=1e-12, atol=0)


def test_rotation_leaves_the_spectrum() -> None:
    """A smooth field known in closed form, seen from two directions."""
    latitude, _ = gauss_latitudes(48)
    phi, lam = points(latitude, 96)
    n = torch.stack([phi.cos() * lam.cos(), phi.cos() * lam.sin(), phi.sin()], -1)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def value(x: Tensor) -> Tensor:
        return torch.exp(2 * x[..., 2] + x[..., 0]) + x[..., 0] ** 2 * x[..., 1] ** 3

    transform = SphericalHarmonics(latitude, 96)
    before, after = power(transform(value(n))), power(transform(value(n @ q)))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


def test_laplacian_of_a_known_field() -> None:
    latitude, _ = equiangular_latitudes(24, poles=False)
    phi, lam = points(latitude, 48)
    field = torch.sin(phi) + torch.cos(phi) ** 3 * torch.cos(3 * lam)  # l = 1 and l = 3
    transform = SphericalHarmonics(latitude, 48)
    expected = -2 * torch.sin(phi) - 12 * torch.cos(phi) ** 3 * torch.cos(3 * lam)
    torch.testing.assert_close(transform.inverse(laplacian(transform(field))), expected, rtol=0, atol=1e-10)


def test_noise_is_isotropic_with_the_spectrum() -> None:
    spectrum = torch.tensor([0.0, 1.0, 0.5, 0.25, 2.0, 0.1], dtype=torch.float64)
    a = draw(6, spectrum=spectrum, count=40_000)
    mean = power(a).mean(0)
    degrees = torch.arange(6) * 2 + 1
    error = spectrum * torch.sqrt(2 / (degrees * 40_000.0))
    assert ((mean - spectrum).abs() <= 5 * error).all()
    latitude, _ = equiangular_latitudes(7, poles=True)
    variance = SphericalHarmonics(latitude, 12, 6).inverse(a).var(0)
    assert ((variance / spectrum.sum() - 1).abs() < 5 * math.sqrt(2 / 40_000)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_vectors_of_known_potentials(grid: str) -> None:
    latitude, _ = GRIDS[grid](21)
    phi, lam = points(latitude, 44)
    psi = torch.sin(phi) + torch.cos(phi) ** 2 * torch.sin(2 * lam)
    chi = torch.sin(phi) * torch.cos(phi) * torch.cos(lam)
    east = -2 * torch.sin(phi) * torch.cos(phi) * torch.sin(2 * lam)  # ∂/∂φ of the wave in ψ
    u = -(torch.cos(phi) + east) - torch.sin(phi) * torch.sin(lam)
    v = 2 * torch.cos(phi) * torch.cos(2 * lam) + torch.cos(2 * phi) * torch.cos(lam)
    scalar, vector = SphericalHarmonics(latitude, 44, 20), VectorHarmonics(latitude, 44, 20)
    a, b = vector(u, v)
    torch.testing.assert_close(scalar.inverse(a), psi, rtol=0, atol=1e-10)
    torch.testing.assert_close(scalar.inverse(b), chi, rtol=0, atol=1e-10)
    for ours, true in zip(vector.inverse(scalar(psi), scalar(chi)), (u, v), strict=True):
        torch.testing.assert_close(ours, true, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS)
def test_vectors_there_and_back(grid: str) -> None:
    latitude, _ = GRIDS[grid](21)
    transform = VectorHarmonics(latitude, 44)
    psi, chi = draw(20, 1), draw(20, 2)
    psi[:, 0], chi[:, 0] = 0, 0
    back = transform(*transform.inverse(psi, chi))
    assert max((x - y).abs().max() for x, y in zip(back, (psi, chi), strict=True)) < 1e-9


@pytest.mark.parametrize("poles", [True, False])
def test_padding_continues_the_sphere(poles: bool) -> None:
    """Values at colatitudes and longitudes beyond the grid are those of the same points of the sphere."""
    latitude, _ = equiangular_latitudes(9, poles=poles)
    step = float(latitude[1] - latitude[0])
    wide = torch.cat(
        [latitude[:1] - step * torch.tensor([2, 1]), latitude, latitude[-1:] + step * torch.tensor([1, 2])]
    )

    def scalar(phi: Tensor, lam: Tensor) -> Tensor:  # smooth functions of the point on the sphere
        return phi.sin() + phi.cos() * lam.cos() + phi.sin() * phi.cos() * lam.sin()

    def north(
        phi: Tensor, lam: Tensor
    ) -> Tensor:  # ∂/∂φ of it: continued past the pole it points the other way
        return phi.cos() - phi.sin() * lam.cos() + torch.cos(2 * phi) * lam.sin()

    phi, lam = points(latitude, 12)
    full, around = torch.meshgrid(
        torch.deg2rad(wide), torch.deg2rad(torch.arange(-3, 15, dtype=torch.float64) * 30), indexing="ij"
    )
    beyond = full.abs() > math.pi / 2 + 1e-9
    torch.testing.assert_close(pad_sphere(scalar(phi, lam), 2, 3, poles=poles), scalar(full, around))
    ours = pad_sphere(north(phi, lam), 2, 3, poles=poles, vector=True)
    # along a meridian carried on over the pole, ∂/∂φ keeps its direction, which there is towards the south
    torch.testing.assert_close(ours, north(full, around))
    assert beyond.any()


def test_errors_are_one_line() -> None:
    latitude, _ = gauss_latitudes(8)
    for call in (
        lambda: SphericalHarmonics(latitude, 16, 9),
        lambda: SphericalHarmonics(latitude, 10, 6),
        lambda: VectorHarmonics(latitude, 16, 8),
        lambda: pad_sphere(torch.zeros(4, 7), 1, 1),
        lambda: pad_sphere(torch.zeros(4, 8), 5, 1),
    ):
        with pytest.raises(PerrinError, match="expected") as caught:
            call()
        assert "\n" not in str(caught.value)
