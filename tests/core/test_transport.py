"""Transport against brute force; rotations and permutations that were put in are found again."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from perrin.core.transport import (
    align,
    assignment,
    draw_pairs,
    pair,
    pair_clouds,
    rotation,
    sinkhorn,
    squared_distances,
    superpose,
)

F64 = torch.float64


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(6))
def test_assignment_against_brute_force(n: int, seed: int) -> None:
    cost = torch.randn(n, n, generator=gen(seed), dtype=F64)
    if seed == 5:
        cost = cost.round()  # ties
    got = assignment(cost)
    assert sorted(got.tolist()) == list(range(n))
    rows = torch.arange(n)
    best = min(float(cost[rows, torch.tensor(p)].sum()) for p in permutations(range(n)))
    assert float(cost[rows, got].sum()) == pytest.approx(best, abs=1e-12)


def test_large_assignment_is_no_worse_than_any_exchange() -> None:
    x, z = (torch.randn(256, 2, generator=gen(i), dtype=F64) for i in range(2))
    cost = squared_distances(x, z)
    got = assignment(cost)
    assert sorted(got.tolist()) == list(range(256))
    chosen = cost[:, got]
    diagonal = chosen.diagonal()
    assert bool((chosen + chosen.T - diagonal - diagonal[:, None] >= -1e-9).all())
    assert float(diagonal.mean()) < 0.2 * float(cost.mean())
    torch.testing.assert_close(pair(x, z), z[got])
    line = torch.randn(100, 1, generator=gen(3), dtype=F64)
    other = torch.randn(100, 1, generator=gen(4), dtype=F64)
    torch.testing.assert_close(pair(line, other)[line[:, 0].argsort()], other.sort(dim=0).values)


def test_assignment_errors() -> None:
    with pytest.raises(ValueError, match="square"):
        assignment(torch.ones(2, 3))
    with pytest.raises(ValueError, match="finite"):
        assignment(torch.full((2, 2), float("nan")))


def test_sinkhorn() -> None:
    x, z = (torch.randn(32, 2, generator=gen(i), dtype=F64) for i in range(2))
    cost = squared_distances(x, z)
    exact = float(cost[torch.arange(32), assignment(cost)].mean())
    plan = sinkhorn(cost, epsilon=0.01, iterations=2000)
    torch.testing.assert_close(plan.sum(0), torch.full((32,), 1 / 32, dtype=F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(plan.sum(1), torch.full((32,), 1 / 32, dtype=F64), rtol=1e-2, atol=0)
    assert exact - 1e-3 <= float((plan * cost).sum()) < 1.15 * exact
    u = torch.rand(20_000, 32, generator=gen(2), dtype=F64)
    columns = torch.stack([draw_pairs(plan, row) for row in u[:500]])
    first = torch.bincount(columns[:, 0], minlength=32).double() / 500
    torch.testing.assert_close(first, plan[0] / plan[0].sum(), rtol=0, atol=0.08)


def turns(n: int, seed: int = 0) -> torch.Tensor:
    q = torch.randn(n, 4, generator=gen(seed), dtype=F64)
    return rotation(q / q.norm(dim=1, keepdim=True))


def test_rotations_are_found_again() -> None:
    r = turns(20)
    torch.testing.assert_close(r @ r.transpose(1, 2), torch.eye(3, dtype=F64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(20, dtype=F64))
    x = torch.randn(20, 6, 3, generator=gen(1), dtype=F64)
    torch.testing.assert_close(superpose(x @ r.transpose(1, 2), x), r)
    mask = torch.arange(8) < 6
    padded = torch.nn.functional.pad(x, (0, 0, 0, 2), value=7.0)
    torch.testing.assert_close(superpose(padded @ r.transpose(1, 2), padded, mask.expand(20, 8)), r)


def test_best_rotation_against_many() -> None:
    """A mirror image cannot be turned into the cloud: the best proper rotation beats 20 000 random ones."""
    x = torch.randn(1, 5, 3, generator=gen(2), dtype=F64)
    y = x * torch.tensor([1.0, 1.0, -1.0], dtype=F64)
    r = superpose(x, y)
    assert float(torch.linalg.det(r)) == pytest.approx(1.0)
    best = float((x - y @ r.transpose(1, 2)).square().sum())
    others = turns(20_000, 5)
    costs = (x - y @ others.transpose(1, 2)).square().sum(dim=(1, 2))
    assert best <= float(costs.min()) + 1e-12
    assert best == pytest.approx(float(costs.min()), rel=0.1)


def test_alignment_of_clouds() -> None:
    """The cost never rises; kinds and padding stay in place; a permuted and slightly turned cloud is found again."""
    sizes = torch.tensor([5, 8, 3])
    mask = torch.arange(8) < sizes[:, None]
    x, z = (torch.randn(3, 8, 3, generator=gen(i), dtype=F64) for i in (1, 2))
    x, z = x * mask[..., None], z * mask[..., None]
    before = (x - z).square().sum(dim=(1, 2))
    last = (x - z @ superpose(x, z, mask).transpose(1, 2)).square().sum(dim=(1, 2))
    assert bool((last <= before + 1e-12).all())
    for rounds in (1, 2, 5):
        out = align(x, z, mask, rounds=rounds)
        cost = (x - out).square().sum(dim=(1, 2))
        assert bool((cost <= last + 1e-9).all())
        last = cost
        torch.testing.assert_close(out.square().sum(dim=(1, 2)), z.square().sum(dim=(1, 2)))
        assert float(out[~mask].abs().max()) == 0
    kinds = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0]).expand(3, 8)
    out = align(x, z, mask, kinds=kinds)
    for i, n in enumerate(sizes.tolist()):
        for kind in range(3):
            chosen = kinds[i, :n] == kind
            a, b = out[i, :n][chosen].norm(dim=1), z[i, :n][chosen].norm(dim=1)
            torch.testing.assert_close(a.sort().values, b.sort().values)
    small = rotation(torch.nn.functional.normalize(torch.tensor([[1.0, 0.05, -0.03, 0.04]], dtype=F64)))
    order = torch.randperm(8, generator=gen(3))
    found = align(x[1:2], (x[1:2] @ small.transpose(1, 2))[:, order])
    torch.testing.assert_close(found, x[1:2], rtol=1e-7, atol=1e-7)


def test_pairs_of_clouds() -> None:
    x, z = (torch.randn(12, 6, 3, generator=gen(i), dtype=F64) for i in (1, 2))
    x, z = x - x.mean(1, keepdim=True), z - z.mean(1, keepdim=True)
    out = pair_clouds(x, z)
    turned = z @ superpose(x, z).transpose(1, 2)
    costs = [float((x - v).square().sum()) for v in (z, pair(x, z), turned, out)]
    assert costs[3] < min(costs[:3])
