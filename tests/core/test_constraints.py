"""Constraints: what is held is held, what is drawn has the right law."""

from __future__ import annotations

import pytest
import torch

from perrin.core import (
    DDPM,
    Categorical,
    Composite,
    CounterNoise,
    Dense,
    Gaussian,
    Padded,
    RectifiedFlow,
    State,
    make_plan,
    sample,
    sample_seeds,
)
from perrin.core.grids import log_snr
from perrin.core.guides import Fixed, Inpaint, together

from .linear_gaussian import LinearGaussian

F64 = torch.float64
SCHEDULE = RectifiedFlow()


def test_inpainting_bias() -> None:
    """Two numbers of correlation 0.8, one of them known at two standard deviations; the docstring quotes this."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    problem = LinearGaussian(
        torch.zeros(2, dtype=F64), covariance, torch.eye(2, dtype=F64)[:1], torch.tensor([2.0]), 0.0
    )
    process, n = Gaussian(features=(2,), schedule=SCHEDULE), 8000
    layouts, noise = {"x": Dense(n)}, CounterNoise(sample_seeds(0, range(n)), F64)
    inpaint = Inpaint(
        process=process,
        known={"x": torch.tensor([2.0, float("nan")], dtype=F64).expand(n, 2).nan_to_num(9.0)},
        keep={"x": torch.tensor([True, False]).expand(n, 2)},
        noise=noise,
        layouts=layouts,
    )
    plan = make_plan(process, DDPM(), log_snr(100, SCHEDULE))
    x = sample(problem.denoiser(SCHEDULE), process, plan, layouts, noise, constraint=inpaint)["x"]
    assert torch.equal(x[:, 0], torch.full((n,), 2.0, dtype=F64))
    assert float(x[:, 1].mean()) == pytest.approx(0.95, abs=0.04)  # 1.6 would be right
    assert float(x[:, 1].std()) == pytest.approx(0.67, abs=0.03)  # and 0.6


def test_inpainting_has_the_marginal_of_every_time() -> None:
    process = Composite(fields={"x": Gaussian(features=(3,), schedule=SCHEDULE), "k": Categorical.uniform(3)})
    sizes = torch.tensor([2, 4]).repeat(2000)
    n, layout = len(sizes), Padded.from_sizes(sizes)
    layouts = {"x": layout, "k": layout}
    known: State = {"x": torch.full((n, 4, 3), 2.0), "k": torch.full((n, 4), 2)}
    keep = torch.tensor([True, False, False, True]).expand(n, 4)
    inpaint = Inpaint(
        process=process,
        known=known,
        keep={"x": keep, "k": keep},
        noise=CounterNoise(sample_seeds(0, range(n))),
        layouts=layouts,
    )
    state: State = {"x": torch.zeros(n, 4, 3), "k": torch.zeros(n, 4, dtype=torch.int64)}
    out = inpaint(state, 0.4)
    assert float(out["x"][:, 0].mean()) == pytest.approx(0.6 * 2, abs=0.02)
    assert float(out["x"][:, 0].std()) == pytest.approx(0.4, rel=0.03)
    alpha = float(process.fields["k"].schedule.alpha(torch.tensor(0.4)))
    assert float((out["k"][:, 0] == 2).float().mean()) == pytest.approx(alpha + (1 - alpha) / 3, abs=0.03)
    assert float(out["x"][:, 1:3].abs().max()) == 0
    assert float(out["x"][sizes == 2, 3].abs().max()) == 0  # padding stays zero
    again, other = inpaint(state, 0.4)["x"], inpaint(state, 0.3)["x"]
    assert torch.equal(out["x"], again)
    assert not torch.equal(out["x"], other)
    end = inpaint(state, 0.0)
    assert torch.equal(end["x"][:, 0], known["x"][:, 0])
    assert torch.equal(end["k"][:, 0], known["k"][:, 0])


def test_zero_centre_of_mass_is_refused() -> None:
    process = Composite(fields={"x": Gaussian(features=(3,), zero_com=True)})
    with pytest.raises(ValueError, match="centre of mass"):
        Inpaint(
            process=process,
            known={},
            keep={"x": torch.ones(2, 3, dtype=torch.bool)},
            noise=CounterNoise(sample_seeds(0, range(2))),
            layouts={"x": Dense(2)},
        )


def test_fixed_rows_and_composition() -> None:
    keep = torch.tensor([[True, False], [False, True]])
    one = Fixed(values={"x": torch.full((2, 2), 7.0)}, keep={"x": keep})
    two = Fixed(values={"x": torch.full((2, 2), 5.0)}, keep={"x": keep[:, :1]})
    x = {"x": torch.zeros(2, 2), "k": torch.zeros(2, dtype=torch.int64)}
    out = together(one)(x, 0.3)
    torch.testing.assert_close(out["x"], torch.tensor([[7.0, 0.0], [0.0, 7.0]]))
    assert out["k"] is x["k"]
    with pytest.raises(RuntimeError):
        together(one, two)({"x": torch.zeros(3, 2)}, 0.3)
    with pytest.raises(TypeError, match="bool"):
        Fixed(values={"x": x["x"]}, keep={"x": torch.ones(2, 2)})(x, 0.1)
