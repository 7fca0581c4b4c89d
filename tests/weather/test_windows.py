"""Assimilation in windows: the Kalman filter where it is exact, Lorenz's model, and the network's symmetry."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perrin.core import Composite, Dense, Gaussian
from perrin.modalities.weather.lorenz import MEAN, STD, advance, tendency, trajectories
from perrin.modalities.weather.windows import (
    FIELD,
    Chained,
    Sight,
    WindowConfig,
    WindowFilter,
    WindowSmoother,
    WindowTask,
    build_denoiser,
    gaspari_cohn,
)

F64 = torch.float64


def linear_model(sites: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A damped shift with noise, x' = A x + w, w ~ N(0, Q), and the covariance C = A C Aᵀ + Q of its states."""
    eye = torch.eye(sites, dtype=F64)
    A = 0.6 * eye.roll(1, 0) + 0.3 * eye
    Q = 0.3 * eye + 0.1 * (eye.roll(1, 0) + eye.roll(-1, 0))
    C = Q
    for _ in range(400):
        C = A @ C @ A.T + Q
    return A, Q, C


def exact_denoiser(process: Composite, covariance: torch.Tensor) -> Any:
    """E[x_0 | x_t] of data N(0, Σ): α Σ (α² Σ + σ²)⁻¹ x_t."""
    values, Q = torch.linalg.eigh(covariance)
    schedule = process.fields[FIELD].schedule

    def denoise(x: dict[str, torch.Tensor], t: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        flat = x[FIELD].flatten(1) @ Q
        flat = flat * alpha * values / (alpha**2 * values + sigma**2)
        return {FIELD: (flat @ Q.T).reshape(x[FIELD].shape)}

    return denoise


@pytest.mark.slow
def test_cycles_are_the_kalman_filter() -> None:
    """A linear model and linear observations: means within 3 % of the spread, variances within 3 %, over 10 analyses."""
    sites, length, members, times = 5, 4, 8000, 10
    A, Q, C = linear_model(sites)
    power = [torch.linalg.matrix_power(A, k) for k in range(length)]
    blocks = [
        [power[i - j] @ C if i >= j else C @ power[j - i].T for j in range(length)] for i in range(length)
    ]
    process = Composite(fields={FIELD: Gaussian(features=(length, sites))})
    H = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 1.0]], dtype=F64)
    error = torch.tensor([0.4, 0.6, 0.8], dtype=F64)

    generator = torch.Generator().manual_seed(1)

    def draw(n: int) -> torch.Tensor:
        return torch.randn(n, generator=generator, dtype=F64)

    x = torch.linalg.cholesky(C) @ draw(sites)
    seen: list[torch.Tensor | None] = []
    for k in range(times):
        seen.append(H @ x + error * draw(3) if k % 2 == 0 else None)
        x = A @ x + torch.linalg.cholesky(Q) @ draw(sites)

    m, P, truth = torch.zeros(sites, dtype=F64), C, []
    for k, y in enumerate(seen):
        if k:
            m, P = A @ m, A @ P @ A.T + Q
        if y is not None:
            K = P @ H.T @ torch.linalg.inv(H @ P @ H.T + torch.diag(error**2))
            m, P = m + K @ (y - H @ m), P - K @ H @ P
        truth.append((m, P.diagonal().sqrt()))

    filtering = WindowFilter(
        denoiser=exact_denoiser(process, torch.cat([torch.cat(row, 1) for row in blocks])),
        process=process,
        length=length,
        climate=C,
        taper=torch.ones(sites, sites, dtype=F64),
        members=members,
        steps=32,
        iterations=10,
        floor=0.0,
        grid=(0.0, 1.8),
        start=0.999,
    )
    mean, std = filtering.run(seen, Sight(h=lambda x: x @ H.T, error=error))
    m, s = (torch.stack(v) for v in zip(*truth))
    assert ((mean - m) / s).square().mean().sqrt() < 0.03
    assert ((std / s) ** 2).mean() == pytest.approx(1, abs=0.03)
    assert ((std / s) ** 2 - 1).abs().max() < 0.1


def test_lorenz() -> None:
    """Advection keeps Σ x² and the scheme is of fourth order; the attractor's mean and deviation are those used."""
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(
        (x * (tendency(x, 0.0) + x)).sum(-1), torch.zeros(3, dtype=F64), atol=1e-12, rtol=0
    )

    def after(dt: float) -> torch.Tensor:
        y = 3 * x
        for _ in range(round(0.2 / dt)):
            y = advance(y, dt)
        return y

    fine = after(0.0005)
    errors = [float((after(dt) - fine).abs().max()) for dt in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.2)
    runs = trajectories(200, 20, seed=3)
    assert float(runs.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(runs.std()) == pytest.approx(STD, abs=0.05)
    torch.testing.assert_close(advance(runs[:, 3].double()).float(), runs[:, 4], atol=1e-4, rtol=1e-5)


def test_taper() -> None:
    taper = gaspari_cohn(40, 5.0)
    assert taper[0, 0] == 1
    assert taper[0, 10] == pytest.approx(0, abs=1e-12)
    assert taper[0, 5] == pytest.approx(5 / 24)  # Gaspari & Cohn's value at the radius
    torch.testing.assert_close(taper, taper.T)
    assert torch.linalg.eigvalsh(taper).min() > -1e-10


def test_network_turns_with_the_circle_and_learns() -> None:
    config = WindowConfig(length=3, sites=12, width=16, blocks=2)
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    for p in denoiser.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, t, layouts = torch.randn(2, 3, 12), torch.tensor([0.3, 0.6]), {FIELD: Dense(2)}
    found = denoiser({FIELD: x}, t, layouts=layouts)[FIELD]
    turned = denoiser({FIELD: x.roll(5, -1)}, t, layouts=layouts)[FIELD]
    torch.testing.assert_close(turned, found.roll(5, -1), atol=1e-5, rtol=1e-5)

    states = torch.arange(20.0)[None, :, None].expand(4, 20, 12)
    task = WindowTask(build_denoiser(config), config, states, batch=16)
    _, batch = task.prepare(0, generator=torch.Generator().manual_seed(0), rank=0, world=1)
    steps = batch["x_0"][:, 1:] - batch["x_0"][:, :-1]
    torch.testing.assert_close(steps, torch.ones_like(steps))  # consecutive states of one run
    assert task.loss(task.denoiser, 0, batch)["loss"].isfinite()


def test_chained_windows_are_the_denoiser_of_a_longer_piece() -> None:
    """Of a Markov chain seen in noise windows of 9 say nearly what 21 states together say, and the middles nearest."""
    sites, length, count = 3, 9, 21
    A, _, C = linear_model(sites)
    power = [torch.linalg.matrix_power(A, k) for k in range(count)]

    def covariance(n: int) -> torch.Tensor:
        rows = [[power[i - j] @ C if i >= j else C @ power[j - i].T for j in range(n)] for i in range(n)]
        return torch.cat([torch.cat(row, 1) for row in rows])

    process = Composite(fields={FIELD: Gaussian(features=(count, sites))})
    whole = exact_denoiser(process, covariance(count))
    chained = Chained(exact_denoiser(process, covariance(length)), length, 3)
    x = torch.randn(400, count, sites, generator=torch.Generator().manual_seed(2), dtype=F64)
    t = torch.full((400,), 0.4, dtype=F64)
    a, b = (d({FIELD: x}, t, layouts={FIELD: Dense(400)})[FIELD] for d in (whole, chained))
    error = (a - b).square().mean((0, 2)).sqrt() / a.square().mean().sqrt()
    assert error.max() < 0.05
    assert error[4:-4].mean() < 0.02
    one = Chained(exact_denoiser(process, covariance(count)), count, 3)
    torch.testing.assert_close(one({FIELD: x}, t, layouts={FIELD: Dense(400)})[FIELD], a)


def test_smoother_draws_are_bayes_rule_with_a_blurred_error() -> None:
    """A linear model seen at two of four times: the mean and the variances of a normal law with the error ε² + ρ²."""
    sites, length, rho = 3, 4, 0.1
    A, _, C = linear_model(sites)
    power = [torch.linalg.matrix_power(A, k) for k in range(length)]
    rows = [
        [power[i - j] @ C if i >= j else C @ power[j - i].T for j in range(length)] for i in range(length)
    ]
    S = torch.cat([torch.cat(row, 1) for row in rows])
    process = Composite(fields={FIELD: Gaussian(features=(length, sites))})
    smoother = WindowSmoother(
        denoiser=exact_denoiser(process, S),
        process=process,
        shift=5.0,
        scale=2.0,
        members=300,
        rho=(6.0, rho * 2),
        levels=20,
        hold=30,
        keep=25,
        evaluations=16,
    )
    error = 0.8
    y = 5 + 2 * torch.randn(2, 2, sites, generator=torch.Generator().manual_seed(3), dtype=F64)
    draws = smoother.run(y, (1, 3), Sight(h=lambda x: x, error=error))
    assert draws.shape == (2, 25 * 300, length, sites)
    H = torch.zeros(2 * sites, length * sites, dtype=F64)
    H[:sites, sites : 2 * sites] = H[sites:, 3 * sites :] = torch.eye(sites, dtype=F64)
    R = ((error / 2) ** 2 + rho**2) * torch.eye(2 * sites, dtype=F64)
    K = S @ H.T @ torch.linalg.inv(H @ S @ H.T + R)
    spread = 2 * (S - K @ H @ S).diagonal().sqrt()
    for k in range(2):
        mean = 5 + 2 * (K @ ((y[k].flatten() - 5) / 2))
        found = draws[k].flatten(1)
        assert float(((found.mean(0) - mean) / spread).abs().max()) < 0.15
        ratio = (found.std(0) / spread) ** 2
        assert 0.85 < float(ratio.min()) <= float(ratio.max()) < 1.15
