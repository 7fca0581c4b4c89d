"""Split Gibbs sampling against closed forms: Gaussian laws, folded measurements by quadrature, shares of modes."""

from __future__ import annotations

import pytest
import torch

from perrin.core import DDIM, CounterNoise, Gaussian, PlanError, RectifiedFlow, sample_seeds
from perrin.core.guides import Linear, Mask, Matrix, Pointwise, falling, split_gibbs
from perrin.core.testing import GaussianMixture

from .linear_gaussian import LinearGaussian

F64 = torch.float64


def noise(n: int) -> CounterNoise:
    return CounterNoise(sample_seeds(0, range(n)), F64)


def test_linear_draws_are_bayes_rule() -> None:
    """z given x is normal, with the mean and covariance of a Kalman update of N(x, ρ²)."""
    P = LinearGaussian.example()
    n, rho = 40_000, 0.5
    x = torch.tensor([[0.3, -0.2, 0.1, 0.8]], dtype=F64).expand(n, 4)
    likelihood = Linear(Matrix(P.matrix), P.y[None], P.std)
    z = likelihood.draw(x, rho, noise(n), field="x", step=0)
    want = LinearGaussian(x[0], rho**2 * torch.eye(4, dtype=F64), P.matrix, P.y, P.std)
    mean, low, high = want.bias(z)
    assert mean < 0.02
    assert 0.97 < low <= high < 1.03
    shifted = x[:2] + torch.tensor([[0.0] * 4, [0.5] * 4], dtype=F64)
    evidence = [LinearGaussian(m, want.covariance, P.matrix, P.y, P.std).log_evidence() for m in shifted]
    found = likelihood.log_evidence(shifted, rho)
    assert float(found[1] - found[0]) == pytest.approx(evidence[1] - evidence[0], rel=1e-6)


def test_pointwise_draws_know_both_branches_of_a_square() -> None:
    """y = z² + n, by quadrature: shares of the branches, moments and evidence; what is not measured stays N(x, ρ²)."""
    n, rho, std = 40_000, 0.7, 0.5
    x = torch.tensor([[0.2, 3.0]], dtype=F64).expand(n, 2)
    seen = torch.tensor([True, False])
    likelihood = Pointwise(torch.square, torch.tensor([[1.0]], dtype=F64), std, seen)
    z = likelihood.draw(x, rho, noise(n), field="x", step=0)
    fine = torch.linspace(-6, 6, 40_001, dtype=F64)
    log_p = -0.5 * ((fine - 0.2) / rho) ** 2 - 0.5 * ((1 - fine**2) / std) ** 2
    p = torch.softmax(log_p, 0)
    assert float((z[:, 0] < 0).double().mean()) == pytest.approx(float(p[fine < 0].sum()), abs=0.01)
    for k in (1, 2, 3):
        assert float((z[:, 0] ** k).mean()) == pytest.approx(float((p * fine**k).sum()), abs=0.02)
    assert float(z[:, 1].mean()) == pytest.approx(3.0, abs=0.02)
    assert float(z[:, 1].std()) == pytest.approx(rho, rel=0.02)
    both = torch.tensor([[0.2, 3.0], [1.1, 0.0]], dtype=F64)
    truth = [
        torch.logsumexp(-0.5 * ((fine - m) / rho) ** 2 - 0.5 * ((1 - fine**2) / std) ** 2, 0)
        for m in (0.2, 1.1)
    ]
    found = likelihood.log_evidence(both, rho)
    assert float(found[1] - found[0]) == pytest.approx(float(truth[1] - truth[0]), abs=1e-4)


def test_levels_keep_the_blurred_posterior() -> None:
    """At one ρ the law of x is the posterior with the measurement's covariance s² + ρ² A Aᵀ: here A Aᵀ is diagonal."""
    P = LinearGaussian.example()
    rho, n, schedule = 0.2, 1500, RectifiedFlow()
    matrix = P.matrix / P.matrix.norm(dim=1, keepdim=True)
    y = P.y / P.matrix.norm(dim=1)
    blurred = LinearGaussian(P.mean, P.covariance, matrix, y, (P.std**2 + rho**2) ** 0.5)
    draws = split_gibbs(
        P.denoiser(schedule),
        Gaussian(features=(4,), schedule=schedule),
        Linear(Matrix(matrix), y[None], P.std),
        noise(n),
        n,
        rhos=falling(3.0, rho, 20, hold=40),
        evaluations=24,
    )
    mean, low, high = blurred.bias(torch.cat([draw.x for draw in draws][-30:]))
    assert mean < 0.08
    assert 0.93 < low <= high < 1.07


@pytest.mark.parametrize(("members", "share"), [(1, 0.69), (50, 0.93)])
def test_groups_divide_themselves_between_modes(members: int, share: float) -> None:
    """The mode that explains the measurement should have 0.93 (MMPS: 0.78); alone, cooled this fast, members miss that."""
    data, schedule, n = GaussianMixture.example(), RectifiedFlow(), 2000
    y = torch.tensor([[0.0, 1.4]], dtype=F64)
    draws = split_gibbs(
        data.denoiser(schedule),
        Gaussian(features=(2,), schedule=schedule),
        Linear(Mask(torch.tensor([False, True])), y, 0.2),
        noise(n),
        n,
        rhos=falling(3.0, 0.05, 40),
        evaluations=6,
        members=members,
    )
    for draw in draws:
        x, w = draw.x, draw.log_weights.exp() / (n // members)
    assert float((w * (x[:, 0] < 0.2)).sum()) == pytest.approx(share, abs=0.03)


def test_a_group_depends_on_its_own_seeds() -> None:
    data, schedule = GaussianMixture.example(), RectifiedFlow()

    def run(seeds: range, **options: float) -> torch.Tensor:
        process = Gaussian(features=(2,), schedule=schedule)
        y = torch.tensor([[1.4]], dtype=F64)
        likelihood = Pointwise(torch.square, y, 0.2, torch.tensor([False, True]))
        *_, last = split_gibbs(
            data.denoiser(schedule),
            process,
            likelihood,
            CounterNoise(sample_seeds(3, seeds), F64),
            len(seeds),
            rhos=falling(2.0, 0.1, 12),
            **{"members": 4, **options},  # type: ignore[arg-type]
        )
        return last.x

    torch.testing.assert_close(run(range(4, 8)), run(range(12))[4:8])
    with pytest.raises(ValueError, match="multiple"):
        run(range(6))
    with pytest.raises(PlanError, match="stochastic"):
        run(range(4), solver=DDIM())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start > stop"):
        falling(0.1, 1.0, 5)
    with pytest.raises(ValueError, match="elements"):
        Pointwise(torch.square, torch.zeros(1, 2), 1.0, torch.tensor([True, False]))
