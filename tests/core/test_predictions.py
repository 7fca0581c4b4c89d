"""Every prediction determines the data: `x0(target(x_0, z)) = x_0`, and says where it does not."""

from __future__ import annotations

import pytest
import torch

from perrin.core import (
    EDM,
    EPS,
    FLOW,
    PREDICTIONS,
    SCORE,
    X0,
    Cosine,
    LinearVP,
    Prediction,
    RectifiedFlow,
    Schedule,
    V,
)

SCHEDULES = [LinearVP(), Cosine(), EDM(), RectifiedFlow()]
every = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@every
@schedules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_round_trip(prediction: Prediction, schedule: Schedule, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, z = (torch.randn(9, 50, generator=generator, dtype=dtype) for _ in range(2))
    t = torch.linspace(0.05, 0.8, 9, dtype=dtype)[:, None]
    x_t = schedule.alpha(t) * x_0 + schedule.sigma(t) * z
    y = prediction.target(schedule, t, x_0, z)
    back = prediction.x0(schedule, t, x_t, y)
    # what is lost is the determinant's share: eps at low signal divides rounding by α
    share = (schedule.sigma(t) / prediction.determinant(schedule, t) * y.abs().amax()).abs() + 1
    assert float(((back - x_0).abs() / share).max()) < 40 * torch.finfo(dtype).eps


@schedules
def test_definitions(schedule: Schedule) -> None:
    """Each target by its textbook formula."""
    t = torch.tensor(0.3, dtype=torch.float64)
    x_0, z = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.2, dtype=torch.float64)
    a, s = schedule.alpha(t), schedule.sigma(t)
    h = 1e-6
    velocity = (
        (schedule.alpha(t + h) - schedule.alpha(t - h)) * x_0
        + (schedule.sigma(t + h) - schedule.sigma(t - h)) * z
    ) / (2 * h)
    expected = {
        "x0": x_0,
        "eps": z,
        "v": a * z - s * x_0,
        "flow": velocity,
        "score": -(a * x_0 + s * z - a * x_0) / s**2,
    }
    for name, value in expected.items():
        got = PREDICTIONS[name].target(schedule, t, x_0, z)
        torch.testing.assert_close(got, value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("prediction", "schedule", "time"),
    [
        (EPS, RectifiedFlow(), 1.0),
        (EPS, Cosine(), 1.0),
        (SCORE, RectifiedFlow(), 1.0),
        (X0, RectifiedFlow(), 0.0),  # σ = 0: any output gives the same x_t
    ],
)
def test_zero_determinant(prediction: Prediction, schedule: Schedule, time: float) -> None:
    assert float(prediction.determinant(schedule, torch.tensor(time, dtype=torch.float64))) == 0.0


@pytest.mark.parametrize("prediction", [X0, V, FLOW], ids=lambda p: p.name)
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=repr)
def test_determined_where_all_is_noise(prediction: Prediction, schedule: Schedule) -> None:
    assert abs(float(prediction.determinant(schedule, torch.tensor(1.0, dtype=torch.float64)))) > 0.5
