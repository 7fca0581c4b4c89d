"""The score that an atmosphere of one evaluation is trained on, in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from perrin.errors import PerrinError
from perrin.modalities.weather.atmosphere import FIELD, AtmosphereConfig, build_denoiser, harmonics
from perrin.modalities.weather.atmosphere_crps import CRPSTask
from perrin.nets.sphere import isotropic

ROWS, FIELDS = 8, ("a", "b")


def make(leads: int = 1, times: int = 200) -> CRPSTask:
    """States that are independent isotropic noise of variance one."""
    config = AtmosphereConfig(fields=FIELDS, rows=ROWS, columns=2 * ROWS, width=16, levels=2, blocks=1)
    white = torch.randn(times, len(FIELDS), ROWS**2, generator=torch.Generator().manual_seed(0))
    l = torch.arange(ROWS)
    states = harmonics(ROWS, 2 * ROWS, ROWS).inverse(isotropic(white, (2 * l + 1) / ROWS**2))
    task = CRPSTask(
        build_denoiser(config),
        config,
        states.float(),
        torch.arange(times).float(),
        1,
        torch.zeros(2, ROWS, 2 * ROWS),
        torch.ones(len(FIELDS)),
        batch=150,
        seed=0,
        leads=leads,
    )
    task.to(torch.device("cpu"))
    return task


def losses(task: CRPSTask, scale: float) -> dict[str, float]:
    """Of a model whose every member is noise of this size, wherever it comes from."""

    def model(x: dict[str, Tensor], t: Tensor, *, condition: Tensor, layouts: Any) -> dict[str, Tensor]:
        return {FIELD: scale * x[FIELD] - condition[:, : len(FIELDS)]}

    key, batch = task.prepare(0, generator=torch.Generator().manual_seed(1), rank=0, world=1)
    return {k: float(v) for k, v in task.loss(model, key, batch).items()}


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_the_score_is_that_of_normal_members(scale: float) -> None:
    """Of members N(0, s²) and a truth N(0, 1): √(2 (1 + s²) / π) − s / √π, on points and in every coefficient."""
    s = 0.999 * scale
    expected = (2 * (1 + s * s) / torch.pi) ** 0.5 - s / torch.pi**0.5
    found = losses(make(leads=3), scale)
    l = torch.arange(ROWS)
    # a day's change has twice the variance; parts of order above 0 have half of a coefficient's
    unit = float(((0.5**0.5 + 2 * l * 0.5) / (2 * l + 1)).mean())
    for k in (1, 2, 3):
        assert found[f"crps_{k}"] == pytest.approx(expected, rel=0.03)
        assert found[f"spectral_{k}"] == pytest.approx(expected * unit, rel=0.05)
    parts = [(found[f"crps_{k}"] + 0.1 * found[f"spectral_{k}"]) / k for k in (1, 2, 3)]
    assert found["loss"] == pytest.approx(sum(parts) / (1 + 1 / 2 + 1 / 3), rel=1e-5)


def test_the_right_spread_scores_best() -> None:
    """Even with two members, as the score is unbiased."""
    task = make()
    found = [losses(task, s)["loss"] for s in (0.0, 0.6, 1.0, 1.4)]
    assert min(found) == found[2]


def test_runs_too_short_for_the_leads() -> None:
    with pytest.raises(PerrinError, match="leads"):
        make(leads=4, times=5)
