"""Two-layer quasi-geostrophic flow: waves and growth in closed form, conservation, order, and runs that are stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from perrin.errors import PerrinError
from perrin.modalities.weather import qg
from perrin.modalities.weather.qg import DAY, TwoLayer, produce, read_states

F64 = torch.float64


def wave(model: TwoLayer, k: int, l: int) -> tuple[torch.Tensor, float]:
    """The phase of a plane wave on the grid, and its squared wavenumber."""
    x = (torch.arange(model.size, dtype=F64) + 0.5) / model.size * 2 * math.pi
    unit = 2 * math.pi / model.length
    return k * x[None] + l * x[:, None], (k**2 + l**2) * unit**2


@pytest.mark.parametrize("mode", ["barotropic", "baroclinic"])
def test_rossby_waves(mode: str) -> None:
    """At rest a single wave of either mode solves the full equations: ω = −β k / (K² + [F_1 + F_2])."""
    model = TwoLayer(shear=0.0, drag=0.0, damped=False)
    F_1, F_2 = model.stretching
    phase, K2 = wave(model, 2, 1)
    layers = torch.tensor([1.0, 1.0 if mode == "barotropic" else -F_2 / F_1], dtype=F64)
    omega = -model.beta * 2 * 2 * math.pi / model.length
    omega /= K2 + (0 if mode == "barotropic" else F_1 + F_2)
    steps = 80

    def psi(t: float) -> torch.Tensor:
        return 1e3 * layers[:, None, None] * torch.cos(phase - omega * t)

    found = model.streamfunction(model.advance(model.vorticity(psi(0.0)), steps))
    torch.testing.assert_close(found, psi(steps * model.step), rtol=0, atol=1e3 * 1e-5)
    assert abs(omega * steps * model.step) > 0.1


def test_growth_of_small_waves_is_the_eigenvalue_of_phillips() -> None:
    """With shear and drag a small wave grows as the 2 × 2 matrix of its layers says."""
    model = TwoLayer(damped=False)
    F_1, F_2 = model.stretching
    phase, K2 = wave(model, 4, 0)
    k = 4 * 2 * math.pi / model.length
    invert = torch.linalg.inv(torch.tensor([[-K2 - F_1, F_1], [F_2, -K2 - F_2]], dtype=F64)).to(
        torch.complex128
    )
    U = torch.diag(torch.tensor([model.shear, 0.0], dtype=torch.complex128))
    G = torch.diag(torch.tensor([model.beta + F_1 * model.shear, model.beta - F_2 * model.shear]))
    D = torch.diag(torch.tensor([0.0, model.drag * K2], dtype=torch.complex128))
    A = -1j * k * U - 1j * k * G.to(torch.complex128) @ invert + D @ invert
    values, vectors = torch.linalg.eig(A)
    i = int(values.real.argmax())
    assert values[i].real > 0
    wavy = torch.complex(torch.cos(phase), torch.sin(phase))
    q = 1e-12 * (vectors[:, i, None, None] * wavy).real
    steps = 240
    factor = torch.exp(values[i] * steps * model.step)
    want = 1e-12 * (vectors[:, i, None, None] * factor * wavy).real
    torch.testing.assert_close(model.advance(q, steps), want, rtol=0, atol=1e-4 * float(want.abs().max()))
    assert abs(factor) > 1.4


def test_energy_is_conserved_and_time_steps_are_of_fourth_order() -> None:
    """Without shear, drag and damping, eddies of a few waves keep their energy; errors fall as the step's fourth power."""
    model = TwoLayer(shear=0.0, drag=0.0, damped=False)
    q = model.first(2, seed=1) * 5
    later = model.advance(q, 8)
    assert ((later - q).norm() / q.norm()) > 0.2
    torch.testing.assert_close(model.energy(later), model.energy(q), rtol=2e-5, atol=0)

    def after(step: float) -> torch.Tensor:
        return TwoLayer(shear=0.0, drag=0.0, damped=False, step=step).advance(q, round(4 * 43200 / step))

    fine = after(2700)
    errors = [float((after(step) - fine).norm()) for step in (21600, 10800)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.3)


def test_streamfunction_and_vorticity_are_inverse() -> None:
    model = TwoLayer(size=16)
    psi = torch.randn(3, 2, 16, 16, dtype=F64, generator=torch.Generator().manual_seed(0))
    psi = psi - psi.mean((-2, -1), keepdim=True)
    torch.testing.assert_close(model.streamfunction(model.vorticity(psi)), psi)


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TwoLayer(size=16)
    settings = {"days": 8, "runs": 2, "spinup": 4, "interval": 12, "model": model, "chunk": 4}
    produce(tmp_path / "whole.zarr", **settings)
    real, calls = qg.write_tensors, []

    def stop(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(qg, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        produce(tmp_path / "a.zarr", **settings)
    monkeypatch.setattr(qg, "write_tensors", real)
    with pytest.raises(PerrinError, match="other settings"):
        produce(tmp_path / "a.zarr", **{**settings, "seed": 1})
    assert produce(tmp_path / "a.zarr", **settings) == {"states": 16, "before": 8}
    whole, words = read_states(tmp_path / "whole.zarr")
    again, _ = read_states(tmp_path / "a.zarr")
    assert torch.equal(whole, again)
    assert whole.shape == (2, 16, 2, 16, 16)
    assert words == {"hours": 12.0, "length": 5e5}
    assert not torch.equal(whole[0], whole[1])
    q = model.advance(model.first(2, 0), round((4 * DAY + 12 * 3600 * 5) / model.step))
    torch.testing.assert_close(whole[:, 5], model.streamfunction(q).float())
    with pytest.raises(PerrinError, match="multiple of 6 hours"):
        produce(tmp_path / "b.zarr", days=3, interval=7)
