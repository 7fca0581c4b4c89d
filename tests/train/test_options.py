"""Options say what is wrong with them; the learning rate has the shape it is said to have."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest

from perrin.errors import PerrinError
from perrin.train import TrainOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("steps", "batch", "log_every", "save_every") for value in (0, -1)]
    + [("lr", value) for value in (0.0, -1e-3, math.nan, math.inf)]
    + [("cooldown", value) for value in (-0.1, 1.1, math.nan)]
    + [("ema", value) for value in (-0.1, 1.0, math.nan)]
    + [("clip", value) for value in (0.0, -1.0, math.nan)]
    + [("precision", "16"), ("optimizer", "sgd")],
)
def test_wrong_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(PerrinError, match=r"^expected ") as caught:
        TrainOptions(**{"steps": 10, name: value})
    assert str(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_rate_rises_stays_and_falls() -> None:
    options = TrainOptions(steps=1000, lr=0.5, warmup=100, cooldown=0.4)
    rates = [options.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.5 / 100)
    assert rates[49] == pytest.approx(0.25)
    assert all(rate == 0.5 for rate in rates[99:601])
    assert rates[800] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.5 / 400)
    assert options.rate(1000) == 0
    assert all(0 < b - a < 0.0051 for a, b in pairwise(rates[:100]))
    assert all(b - a == pytest.approx(-0.5 / 400) for a, b in pairwise(rates[601:]))


@pytest.mark.parametrize(
    "changes", [{"warmup": 0}, {"warmup": 1}, {"cooldown": 0.0}, {"cooldown": 1.0}, {"warmup": 500}]
)
def test_the_rate_is_positive_and_bounded_at_the_edges(changes: dict[str, Any]) -> None:
    for steps in (1, 2, 50):
        options = TrainOptions(steps=steps, lr=0.5, **changes)
        rates = [options.rate(step) for step in range(steps)]
        assert all(0 < rate <= 0.5 for rate in rates)
    flat = TrainOptions(steps=50, lr=0.5, warmup=0, cooldown=0.0)
    assert {flat.rate(step) for step in range(50)} == {0.5}


def test_the_average_forgets_its_start() -> None:
    options = TrainOptions(steps=10, ema=0.999)
    assert options.ema_decay(0) == pytest.approx(0.1)
    decays = [options.ema_decay(step) for step in range(20_000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.999
    assert TrainOptions(steps=10, ema=0.0).ema_decay(5) == 0


def test_options_are_plain_json() -> None:
    options = TrainOptions(steps=10, lr=1e-4)
    assert TrainOptions(**json.loads(json.dumps(options.to_json()))) == options
