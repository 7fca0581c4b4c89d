"""Classifier-free guidance against a closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perrin.core import (
    SOLVERS,
    Composite,
    CounterNoise,
    Dense,
    Gaussian,
    Heun,
    Padded,
    Ragged,
    RectifiedFlow,
    Solver,
    State,
    classifier_free,
    network_passes,
    plan_steps,
    sample,
    sample_seeds,
)
from perrin.core.guides import MMPS, AutoGuidance, EnergyGuide, Mask, Measurement
from perrin.core.testing import CountedDenoiser, GaussianMixture

F64 = torch.float64
SCHEDULE, STD, MEAN = RectifiedFlow(), 0.6, 1.5
PROCESS = Gaussian(features=(1,), schedule=SCHEDULE)


def model(x: State, t: torch.Tensor, *, condition: Any = None, **_: Any) -> State:
    """Data N(0, s²) without and N(condition, s²) with a condition."""
    data = GaussianMixture.gaussian(STD, mean=0.0 if condition is None else condition)
    return {"x": data.posterior_mean(x["x"], SCHEDULE.alpha(t), SCHEDULE.sigma(t))}


def test_scale_one_is_the_model_itself() -> None:
    assert classifier_free(model, 1.0) is model
    assert classifier_free(model, 1) is model
    assert classifier_free(model, 1.5) is not model


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.3, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_closed_form(scale: float, dtype: torch.dtype) -> None:
    """With equal variances, guidance by `w` is exactly the model of `N(w m, s²)`."""
    x, t = torch.randn(9, 1, dtype=dtype), torch.linspace(0.1, 1, 9, dtype=dtype)
    guided = classifier_free(model, scale)({"x": x}, t, condition=MEAN, layouts={"x": Dense(9)})["x"]
    want = GaussianMixture.gaussian(STD, mean=scale * MEAN).posterior_mean(
        x.to(F64), SCHEDULE.alpha(t.to(F64)), SCHEDULE.sigma(t.to(F64))
    )
    torch.testing.assert_close(guided.to(F64), want, rtol=0, atol=1e-13 if dtype == F64 else 3e-6)


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_samples_have_the_guided_mean(scale: float) -> None:
    n = 4000
    noise = CounterNoise(sample_seeds(0, range(n)), F64)
    plan = plan_steps(PROCESS, Heun(), 101)
    x = sample(classifier_free(model, scale), PROCESS, plan, {"x": Dense(n)}, noise, condition=MEAN)["x"]
    assert float(x.mean()) == pytest.approx(scale * MEAN, abs=4 * STD / n**0.5)
    assert float(x.std()) == pytest.approx(STD, rel=0.05)


def test_interval() -> None:
    x, t = torch.ones(5, 1, dtype=F64), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
    layouts = {"x": Dense(5)}
    guided = classifier_free(model, 3.0, interval=(0.3, 0.7))({"x": x}, t, condition=MEAN, layouts=layouts)[
        "x"
    ]
    always = classifier_free(model, 3.0)({"x": x}, t, condition=MEAN, layouts=layouts)["x"]
    plain = model({"x": x}, t, condition=MEAN)["x"]
    inside = torch.tensor([False, True, True, True, False])
    torch.testing.assert_close(guided[inside], always[inside], rtol=0, atol=0)
    torch.testing.assert_close(guided[~inside], plain[~inside], rtol=0, atol=1e-14)


def test_null_condition_is_handed_on() -> None:
    seen: list[Any] = []

    def spy(x: State, t: torch.Tensor, *, condition: Any = None, **rest: Any) -> State:
        seen.append(condition)
        return model(x, t, condition=condition, **rest)

    guide = classifier_free(spy, 2.0, null=-1.0)
    guide({"x": torch.ones(2, 1)}, torch.ones(2), condition=1.0, layouts={"x": Dense(2)})
    assert sorted(seen) == [-1.0, 1.0]


def test_ragged_fields_have_many_rows_for_each_sample() -> None:
    """The scale belongs to the sample, not to the row of that number."""
    sizes = torch.tensor([1, 2])
    ragged, padded = Ragged(torch.tensor([0, 1, 1]), 2), Padded.from_sizes(sizes)
    process = Composite(fields={"x": Gaussian(features=(1,))})
    t = torch.tensor([0.2, 0.8])

    def denoise(x: State, t: torch.Tensor, *, condition: Any = None, **_: Any) -> State:
        return {"x": x["x"] + (0.0 if condition is None else condition)}

    guide = classifier_free(denoise, 3.0, interval=(0.5, 1.0))
    rows = process.prior_state(CounterNoise(sample_seeds(0, range(2))), {"x": ragged})["x"]
    flat = guide({"x": rows}, t, condition=1.0, layouts={"x": ragged})["x"]
    torch.testing.assert_close(flat - rows, torch.tensor([[1.0], [3.0], [3.0]]))
    dense = torch.zeros(2, 2, 1)
    out = guide({"x": dense}, t, condition=1.0, layouts={"x": padded})["x"]
    torch.testing.assert_close(out[:, :, 0], torch.tensor([[1.0, 1.0], [3.0, 3.0]]))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_auto_guidance_closed_form(scale: float) -> None:
    """A good model of `N(m, s²)` and a weak one of `N(m/2, s²)`: the guided one is of `N(m/2 + w m/2, s²)`."""

    def weak(x: State, t: torch.Tensor, *, condition: Any = None, **rest: Any) -> State:
        return model(x, t, condition=condition / 2, **rest)

    x, t = torch.randn(9, 1, dtype=F64), torch.linspace(0.1, 1, 9, dtype=F64)
    layouts = {"x": Dense(9)}
    guided = AutoGuidance(denoiser=model, weak=weak, scale=scale)
    want = model({"x": x}, t, condition=MEAN / 2 * (1 + scale))["x"]
    torch.testing.assert_close(guided({"x": x}, t, condition=MEAN, layouts=layouts)["x"], want)
    off = AutoGuidance(denoiser=model, weak=weak, scale=scale, interval=(2.0, 3.0))
    torch.testing.assert_close(
        off({"x": x}, t, condition=MEAN, layouts=layouts)["x"], model({"x": x}, t, condition=MEAN)["x"]
    )


def test_rescale_keeps_each_samples_own_spread() -> None:
    """`rescale = 1` gives the conditional estimate's standard deviation sample by sample, padding left out."""
    sizes = torch.tensor([2, 5, 3])
    layout = Padded.from_sizes(sizes)
    x = layout.restrict(torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=F64))

    def denoise(x: State, t: torch.Tensor, *, condition: Any = None, **_: Any) -> State:
        return {"x": x["x"] * (1.0 if condition is None else condition)}

    t = torch.full((3,), 0.5, dtype=F64)
    layouts = {"x": layout}
    whole = classifier_free(denoise, 4.0, rescale=1.0)({"x": x}, t, condition=2.0, layouts=layouts)["x"]
    for i, n in enumerate(sizes.tolist()):
        std = whole[i, :n].std(correction=0)
        torch.testing.assert_close(std, 2 * x[i, :n].std(correction=0))
        one = {"x": Padded(layout.mask[i : i + 1])}
        alone = classifier_free(denoise, 4.0, rescale=1.0)(
            {"x": x[i : i + 1]}, t[:1], condition=2.0, layouts=one
        )
        torch.testing.assert_close(alone["x"][0], whole[i])
    plain = classifier_free(denoise, 4.0)({"x": x}, t, condition=2.0, layouts=layouts)["x"]
    half = classifier_free(denoise, 4.0, rescale=0.5)({"x": x}, t, condition=2.0, layouts=layouts)["x"]
    torch.testing.assert_close(half, (plain + whole) / 2)
    with pytest.raises(ValueError, match="rescale"):
        classifier_free(denoise, 4.0, rescale=2.0)
    with pytest.raises(ValueError, match="interval"):
        classifier_free(denoise, 4.0, interval=(0.9, 0.1))


class Network:
    """A network that counts its passes: data N(0, s²), whatever the condition."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: State, t: torch.Tensor, **_: Any) -> State:
        self.count += 1
        data = GaussianMixture.gaussian(STD)
        return {"x": data.posterior_mean(x["x"], SCHEDULE.alpha(t), SCHEDULE.sigma(t))}


MEASURED = Measurement(operator=Mask(keep=torch.tensor([True])), y=torch.ones(1, 1, dtype=F64), std=0.3)
GUIDED: dict[str, tuple[Any, int]] = {
    "plain": (lambda f, g: f, 1),
    "classifier-free": (lambda f, g: classifier_free(f, 2.0), 2),
    "classifier-free, off": (lambda f, g: classifier_free(f, 1.0), 1),
    "auto": (lambda f, g: AutoGuidance(denoiser=f, weak=g, scale=2.0), 2),
    "auto of classifier-free": (
        lambda f, g: AutoGuidance(denoiser=classifier_free(f, 2.0), weak=g, scale=2.0),
        3,
    ),
    "energy": (
        lambda f, g: EnergyGuide(
            denoiser=f, energy=lambda s: s["x"].square().sum(1), schedules={"x": SCHEDULE}
        ),
        1,
    ),
    "MMPS": (lambda f, g: MMPS(denoiser=f, schedule=SCHEDULE, measurement=MEASURED), 1),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("guide", GUIDED)
def test_steps_asked_are_evaluations_made_and_passes_reported(guide: str, solver: Solver) -> None:
    """The network's own count, for every solver and for guides that make more than one pass in an evaluation."""
    make, expected = GUIDED[guide]
    for steps in (6, 7):
        network, weak = Network(), Network()
        denoiser = make(network, weak)
        plan = plan_steps(PROCESS, solver, steps, start=0.99)
        called = CountedDenoiser(denoiser)
        sample(called, PROCESS, plan, {"x": Dense(3)}, CounterNoise(sample_seeds(0, range(3)), F64))
        assert plan.nfe == steps == len(called.times)
        assert network.count + weak.count == expected * steps == network_passes(denoiser, plan)
        assert network_passes(called, plan) == expected * steps
