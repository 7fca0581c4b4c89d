"""The batch of step k is a function of the seed and k; every sample comes once per round."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from perrin.train import BatchPlan

COUNTS = (7, 40, 3)


def stream(plan: BatchPlan, bucket: int, steps: int) -> list[int]:
    """The numbers that a bucket gives out, one after another."""
    out: list[int] = []
    for step in range(steps):
        found, index = plan(step)
        if found == bucket:
            out += index.tolist()
    return out


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_a_pure_function_of_the_step(seed: int) -> None:
    plan = BatchPlan(COUNTS, 5, seed)
    steps = [0, 1, 2, 300, 4095, 4096, 4097, 9000]
    expected = {step: plan(step) for step in steps}
    for step in reversed(steps):  # another object, another order, no step before
        bucket, index = BatchPlan(COUNTS, 5, seed)(step)
        assert bucket == expected[step][0]
        assert torch.equal(index, expected[step][1])
        again = plan(step)
        assert again[0] == bucket
        assert torch.equal(again[1], index)


@pytest.mark.parametrize("batch", [1, 5, 7, 50])
def test_every_sample_once_per_round(batch: int) -> None:
    """Also where a round ends within a batch, and where a batch is longer than the bucket."""
    plan = BatchPlan(COUNTS, batch, seed=4)
    for bucket, count in enumerate(COUNTS):
        numbers = stream(plan, bucket, 400)
        rounds = [numbers[i : i + count] for i in range(0, len(numbers) - count + 1, count)]
        assert len(rounds) > 2
        assert all(sorted(r) == list(range(count)) for r in rounds)
        if count > 5:
            assert all(a != b for a, b in pairwise(rounds))


def test_rounds_go_on_over_a_boundary_of_chunks() -> None:
    plan = BatchPlan((6, 5), 4, seed=0)
    numbers = []
    for step in range(4000, 4200):
        bucket, index = plan(step)
        if bucket == 0:
            numbers += index.tolist()
    before = len(stream(BatchPlan((6, 5), 4, seed=0), 0, 4000))
    start = -before % 6
    rounds = [numbers[i : i + 6] for i in range(start, len(numbers) - 5, 6)]
    assert len(rounds) > 50
    assert all(sorted(r) == list(range(6)) for r in rounds)


def test_buckets_come_as_often_as_they_have_samples() -> None:
    counts, steps = (700, 200, 100), 10_000
    plan = BatchPlan(counts, 8, seed=0)
    drawn = torch.bincount(torch.tensor([plan(step)[0] for step in range(steps)]), minlength=3)
    for count, found in zip(counts, drawn.tolist(), strict=True):
        p = count / sum(counts)
        assert abs(found - steps * p) < 4 * math.sqrt(steps * p * (1 - p))


def test_seeds_differ() -> None:
    plans = [BatchPlan((100, 100), 8, seed) for seed in (0, 1)]
    a, b = ([(n, tuple(i.tolist())) for n, i in map(plan, range(50))] for plan in plans)
    assert sum(x == y for x, y in zip(a, b, strict=True)) == 0


def test_an_empty_bucket_never_comes() -> None:
    plan = BatchPlan((0, 3), 2, seed=0)
    assert {plan(step)[0] for step in range(100)} == {1}
    with pytest.raises(ValueError, match="at least one sample"):
        BatchPlan((0, 0), 2, seed=0)
