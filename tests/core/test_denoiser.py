"""Heads: unit variances, exactness without noise, weights that match the losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perrin.core import (
    DDIM,
    EDM,
    EPS,
    FLOW,
    PREDICTIONS,
    Categorical,
    Composite,
    Cosine,
    CounterNoise,
    DenoisingLoss,
    Dense,
    EDMHead,
    Gaussian,
    Head,
    Heun,
    LinearVP,
    LogitsHead,
    NetworkDenoiser,
    PlanError,
    Prediction,
    PredictionHead,
    RectifiedFlow,
    Schedule,
    State,
    classifier_free,
    plan_steps,
    sample,
    sample_seeds,
)

SCHEDULES = [LinearVP(), Cosine(), RectifiedFlow(), EDM()]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
F64 = torch.float64


class Constant(nn.Module):
    """A network that answers with fixed outputs and remembers what it was given."""

    def __init__(self, outputs: State) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: State, t: Tensor, **_: Any) -> State:
        self.given = x
        return self.outputs


def coefficients(head: Head, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """`D = skip x + out F`: the head is affine, so two evaluations show both."""
    one, zero, layout = torch.ones_like(t), torch.zeros_like(t), Dense(len(t))
    return head.estimate(one, zero, t, schedule, layout), head.estimate(zero, one, t, schedule, layout)


@schedules
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_edm_head_has_unit_variance(schedule: Schedule, sigma_data: float, dtype: torch.dtype) -> None:
    """Var(c_in x_t) = 1 and Var((x_0 − c_skip x_t)/c_out) = 1, from the coefficients of x_0 and z."""
    head, t = EDMHead(sigma_data=sigma_data), torch.linspace(0.05, 1, 40, dtype=dtype)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    c_in = head.scale(torch.ones_like(t), t, schedule, Dense(len(t)))
    skip, out = coefficients(head, schedule, t)
    ones, tolerance = torch.ones_like(t), 1e-12 if dtype == F64 else 2e-4
    torch.testing.assert_close(c_in**2 * ((alpha * sigma_data) ** 2 + sigma**2), ones, rtol=0, atol=tolerance)
    target = (((1 - skip * alpha) * sigma_data) ** 2 + (skip * sigma) ** 2) / out**2
    torch.testing.assert_close(target, ones, rtol=0, atol=tolerance)


@schedules
def test_edm_head_passes_as_little_error_as_can_be(schedule: Schedule) -> None:
    """c_skip minimises c_out, as EDM derives it."""
    t, sigma_data = torch.linspace(0.05, 0.95, 10, dtype=F64), 0.7
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    skip, out = coefficients(EDMHead(sigma_data=sigma_data), schedule, t)

    def needed(skip: Tensor) -> Tensor:
        return ((1 - skip * alpha) * sigma_data) ** 2 + (skip * sigma) ** 2

    torch.testing.assert_close(needed(skip), out**2)
    assert bool((needed(skip) <= torch.minimum(needed(skip + 1e-3), needed(skip - 1e-3))).all())


@schedules
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_edm_head_is_exact_without_noise(schedule: Schedule, dtype: torch.dtype) -> None:
    x, junk = torch.randn(3, 5, dtype=dtype), 100 * torch.randn(3, 5, dtype=dtype)
    t = torch.zeros(3, dtype=dtype)
    torch.testing.assert_close(EDMHead(sigma_data=0.5).estimate(x, junk, t, schedule, Dense(3)), x)
    small = EDMHead(sigma_data=0.5).estimate(x, junk, t + 1e-9, schedule, Dense(3))
    torch.testing.assert_close(small, x, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    "head",
    [EDMHead(sigma_data=0.5), *(PredictionHead(prediction=p) for p in PREDICTIONS.values())],
    ids=lambda h: getattr(getattr(h, "prediction", None), "name", "edm"),
)
@schedules
def test_weight_makes_the_loss_uniform_in_the_output(head: Head, schedule: Schedule) -> None:
    """`w(t) |D − x_0|² = |y − y*|²`, where y* is the output that gives exactly x_0; through `DenoisingLoss`."""
    generator = torch.Generator().manual_seed(0)
    x_0, y = (torch.randn(7, 4, generator=generator, dtype=F64) for _ in range(2))
    process = Composite(fields={"x": Gaussian(features=(4,), schedule=schedule)})
    layouts, noise = {"x": Dense(7)}, CounterNoise(sample_seeds(0, range(7)), F64)
    t = torch.linspace(0.1, 0.9, 7, dtype=F64)
    x_t = process.corrupt_state({"x": x_0}, t, noise, layouts)
    denoiser = NetworkDenoiser(Constant({"x": y}), process, {"x": head})
    loss = DenoisingLoss()(denoiser, {"x": x_0}, denoiser(x_t, t, layouts=layouts), t, layouts)
    skip, out = coefficients(head, schedule, t)
    best = (x_0 - skip[:, None] * x_t["x"]) / out[:, None]
    torch.testing.assert_close(loss["loss"], (y - best).square().mean(), rtol=1e-9, atol=0)
    if isinstance(head, PredictionHead):
        a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        target = head.prediction.target(schedule, t[:, None], x_0, (x_t["x"] - a * x_0) / s)
        torch.testing.assert_close(best, target, rtol=1e-8, atol=1e-8)


def test_flow_head_is_flow_matching() -> None:
    """The mean of `|u − (z − x_0)|²`, nothing else."""
    generator = torch.Generator().manual_seed(0)
    x_0, u = (torch.randn(7, 4, generator=generator, dtype=F64) for _ in range(2))
    process = Composite(fields={"x": Gaussian(features=(4,), schedule=RectifiedFlow())})
    layouts, noise = {"x": Dense(7)}, CounterNoise(sample_seeds(0, range(7)), F64)
    z = noise.normal(Dense(7), (4,), field="x", step=0)
    t = torch.linspace(0.1, 0.9, 7, dtype=F64)
    x_t = process.corrupt_state({"x": x_0}, t, noise, layouts)
    torch.testing.assert_close(x_t["x"], (1 - t)[:, None] * x_0 + t[:, None] * z)
    denoiser = NetworkDenoiser(Constant({"x": u}), process, {"x": PredictionHead(prediction=FLOW)})
    loss = DenoisingLoss()(denoiser, {"x": x_0}, denoiser(x_t, t, layouts=layouts), t, layouts)
    torch.testing.assert_close(loss["loss"], (u - (z - x_0)).square().mean())


def test_heads_scale_what_the_network_is_given() -> None:
    process = Composite(fields={"x": Gaussian(features=(4,), schedule=EDM()), "k": Categorical.uniform(3)})
    network = Constant({"x": torch.zeros(2, 4), "k": torch.zeros(2, 3)})
    denoiser = NetworkDenoiser(network, process, {"x": EDMHead(sigma_data=1.0), "k": LogitsHead()})
    x = {"x": torch.full((2, 4), 80.0), "k": torch.tensor([0, 2])}
    out = denoiser(x, torch.ones(2), layouts={"x": Dense(2), "k": Dense(2)})
    torch.testing.assert_close(network.given["x"], torch.full((2, 4), 80 / 6401**0.5))
    assert torch.equal(network.given["k"], x["k"])
    assert out["k"].shape == (2, 3)
    with pytest.raises(ValueError, match="head for each"):
        NetworkDenoiser(network, process, {"x": EDMHead()})


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
def test_an_undetermined_estimate_is_found_before_sampling(
    prediction: Prediction, schedule: Schedule, guided: bool
) -> None:
    process = Composite(fields={"x": Gaussian(features=(2,), schedule=schedule)})
    network = NetworkDenoiser(
        Constant({"x": torch.zeros(3, 2)}), process, {"x": PredictionHead(prediction=prediction)}
    )
    denoiser = classifier_free(network, 2.0 if guided else 1.0)
    layouts, noise = {"x": Dense(3)}, CounterNoise(sample_seeds(0, range(3)))
    if prediction.name in ("eps", "score"):
        with pytest.raises(PlanError, match=r"'x'.*t = 1 "):
            sample(denoiser, process, plan_steps(process, DDIM(), 4), layouts, noise)
    else:
        out = sample(denoiser, process, plan_steps(process, DDIM(), 4), layouts, noise)
        assert bool(torch.isfinite(out["x"]).all())
    out = sample(denoiser, process, plan_steps(process, Heun(), 5, start=0.99), layouts, noise)
    assert bool(torch.isfinite(out["x"]).all())


def test_eps_is_determined_where_some_signal_is_left() -> None:
    process = Composite(fields={"x": Gaussian(features=(2,), schedule=LinearVP())})
    denoiser = NetworkDenoiser(
        Constant({"x": torch.zeros(3, 2)}), process, {"x": PredictionHead(prediction=EPS)}
    )
    denoiser.check(plan_steps(process, DDIM(), 4))
