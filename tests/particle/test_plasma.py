"""The plasma against its dispersion relations and conservation laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import wofz

from perrin.errors import PerrinError
from perrin.modalities.particle.bodies.plasma import Plasma, bit_reversed, cold_growth


def langmuir(k: float) -> complex:
    """The least damped root of `1 + (1 + ζ Z(ζ))/k² = 0`, `ζ = ω/(k√2)`, `Z = i√π w`, of a Maxwellian, by Newton."""
    zeta = complex(math.sqrt(1 + 3 * k * k), -0.01 - 0.2 * k) / (k * math.sqrt(2))
    for _ in range(50):
        z = 1j * math.sqrt(math.pi) * wofz(zeta)
        slope = -2 * (1 + zeta * z)  # Z′
        zeta -= (1 + (1 + zeta * z) / k**2) / ((z + zeta * slope) / k**2)
    return zeta * k * math.sqrt(2)


def first(plasma: Plasma, x: torch.Tensor) -> float:
    """Amplitude of the longest wave of the field."""
    return 2 * abs(complex(torch.fft.rfft(plasma.electric(x))[1])) / plasma.size


def followed(plasma: Plasma, x: torch.Tensor, v: torch.Tensor, time: float, every: float) -> np.ndarray:
    found = [first(plasma, x)]
    for _ in range(round(time / every)):
        x, v = plasma.run(x, v, every)
        found.append(first(plasma, x))
    return np.array(found)


def peaks(values: np.ndarray, every: float) -> tuple[np.ndarray, np.ndarray]:
    """Times and logarithms of the maxima, by parabolas."""
    log = np.log(values)
    at = [k for k in range(1, len(log) - 1) if log[k] > log[k - 1] and log[k] >= log[k + 1]]
    a, b, c = (log[np.array(at) + d] for d in (-1, 0, 1))
    off = 0.5 * (a - c) / (a - 2 * b + c)
    return every * (np.array(at) + off), b - 0.25 * (a - c) * off


@pytest.mark.parametrize("wave", [0.4, math.sqrt(3 / 8), 0.8])
def test_cold_streams_grow_as_they_should(wave: float) -> None:
    root = np.roots([1, 0, -(2 * wave**2 + 1), 0, wave**4 - wave**2])  # ω of ½/(ω−K)² + ½/(ω+K)² = 1
    assert cold_growth(wave) == pytest.approx(root.imag.max(), rel=1e-9)
    plasma = Plasma(wave=wave, bodies=8192)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=1.0, thermal=0.0, amplitudes=(1e-7,))
    found = followed(plasma, x, v, 32.0, 1.0)
    rate = np.polyfit(np.arange(16, 33), np.log(found[16:]), 1)[0]
    assert rate == pytest.approx(cold_growth(wave), rel=0.01)


def test_fast_streams_are_stable() -> None:
    assert cold_growth(1.2) == 0
    plasma = Plasma(wave=1.2, bodies=4096)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=1.0, thermal=0.0, amplitudes=(1e-4,))
    found = followed(plasma, x, v, 20.0, 0.5)
    assert found.max() < 3 * found[0]


def test_waves_are_damped_as_landau_found() -> None:
    root = langmuir(0.5)
    assert root.imag == pytest.approx(-0.1533, abs=1e-4)  # published
    assert root.real == pytest.approx(1.4156, abs=2e-4)
    plasma = Plasma(wave=0.5, bodies=32768)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=0.0, thermal=1.0, amplitudes=(0.02,))
    time, log = peaks(followed(plasma, x, v, 10.5, 0.1), 0.1)
    assert np.polyfit(time, log, 1)[0] == pytest.approx(root.imag, rel=0.02)
    assert math.pi / np.diff(time).mean() == pytest.approx(root.real, rel=0.01)


def test_langmuir_waves_have_bohms_and_gross_frequency() -> None:
    k = 0.2
    plasma = Plasma(wave=k, bodies=16384)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=0.0, thermal=1.0, amplitudes=(0.02,))
    time, _ = peaks(followed(plasma, x, v, 25.0, 0.1), 0.1)
    found = math.pi / np.diff(time).mean()
    assert found == pytest.approx(langmuir(k).real, rel=3e-3)
    assert found == pytest.approx(math.sqrt(1 + 3 * k * k), rel=1e-2)


def test_a_cold_plasma_rings_at_its_own_frequency() -> None:
    plasma = Plasma(wave=1.0, bodies=1024, step=0.02)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=0.0, thermal=0.0, amplitudes=(1e-3,))
    found = plasma.run(x, v, 2 * math.pi)[0]
    torch.testing.assert_close(found, x, rtol=0, atol=2e-5)  # after a period all is where it was
    half = plasma.run(x, v, math.pi)[0]
    moved = (x - x.mean()) - (half - half.mean())
    assert float(moved.abs().max()) == pytest.approx(2e-3, rel=0.01)  # twice α/k, at the other side


def test_momentum_and_energy_are_conserved_beyond_saturation() -> None:
    plasma = Plasma(wave=0.5 * math.sqrt(3 / 8), bodies=16384)
    x, v = plasma.start(
        torch.Generator().manual_seed(1), streams=1.0, thermal=0.1, amplitudes=(0.01, 0.01, 0.01)
    )
    before = sum(plasma.energies(x, v))
    largest = 0.0
    for _ in range(8):
        x, v = plasma.run(x, v, 4.0)
        kinetic, electric = plasma.energies(x, v)
        largest = max(largest, electric)
        assert kinetic + electric == pytest.approx(before, rel=2e-3)
        assert abs(float(v.mean())) < 1e-13
    assert largest > 0.05  # a tenth of all energy went through the field


def test_time_runs_back() -> None:
    plasma = Plasma(wave=0.6, bodies=2048)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=1.0, thermal=0.1, amplitudes=(0.01,))
    back = plasma.run(*plasma.run(x, v, 10.0), -10.0)
    torch.testing.assert_close(back[0], x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back[1], v, rtol=0, atol=1e-8)


def test_the_field_is_gauss_of_the_charge() -> None:
    plasma = Plasma(wave=1.0, bodies=4096, size=128)
    x, _ = plasma.start(torch.Generator().manual_seed(5), streams=0.0, thermal=0.0, amplitudes=(0.1,))
    field = plasma.electric(x)
    assert float(field.abs().max()) == pytest.approx(0.1, rel=5e-3)  # n = 1 + α cos(kx): E of amplitude α/k
    assert abs(float(field.mean())) < 1e-14


def test_starts_are_quiet_and_known_to_the_seed() -> None:
    np.testing.assert_array_equal(bit_reversed(8).numpy(), [0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875])
    plasma = Plasma(bodies=8192)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=0.0, thermal=1.0, amplitudes=())
    assert float(v.mean()) == pytest.approx(0, abs=1e-12)
    assert float(v.var()) == pytest.approx(1, abs=3e-3)
    random = plasma.box * torch.rand(8192, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert first(plasma, x) < 1e-10 * first(plasma, random)
    x, v = plasma.run(x, v, 5.0)
    assert first(plasma, x) < 1e-3 * first(plasma, random)
    x, _ = plasma.start(torch.Generator().manual_seed(0), streams=0.0, thermal=1.0, amplitudes=())
    again, _ = plasma.start(torch.Generator().manual_seed(0), streams=0.0, thermal=1.0, amplitudes=())
    assert torch.equal(x, again)


def test_phase_space_holds_all_electrons_with_their_moments() -> None:
    plasma = Plasma(bodies=32768)
    x, v = plasma.start(torch.Generator().manual_seed(0), streams=0.0, thermal=1.0, amplitudes=(0.3,))
    f = plasma.phase_space(x, v, 64, 6.0)
    assert float(f.mean()) == pytest.approx(1, abs=1e-6)
    speed = 6 * (2 * (torch.arange(64).double() + 0.5) / 64 - 1)
    weight = f.mean(1) / 64
    assert float((weight * speed**2).sum()) == pytest.approx(1, abs=0.02)
    wave = torch.fft.rfft(f.mean(0))[1].abs() / 32
    assert float(wave) == pytest.approx(0.3, rel=0.02)


def test_bad_plasmas_are_refused() -> None:
    for bad in ({"wave": 0.0}, {"bodies": 12}, {"size": 6}, {"step": 2.0}, {"wave": float("nan")}):
        with pytest.raises(PerrinError, match="expected"):
            Plasma(**bad)  # type: ignore[arg-type]
