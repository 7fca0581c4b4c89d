"""Muon moves matrices along the orthogonal factor of their momentum."""

from __future__ import annotations

import pytest
import torch

from perrin.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 40)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = orthogonalise(x)
    s = torch.linalg.svdvals(y)
    assert float(s.min()) > 0.5
    assert float(s.max()) < 1.25
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    core = u.mT @ y @ v.mT  # diagonal where y has the singular vectors of x
    off = core - torch.diag_embed(torch.diagonal(core, dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 1e-10


def test_matrices_of_one_shape_move_as_each_would_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5)]
    start = [torch.randn(s, generator=generator) for s in shapes]
    gradients = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(4)]

    def run(members: list[int]) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(start[i].clone()) for i in members]
        optimizer = Muon(parameters, lr=0.1, weight_decay=0.01)
        for step in gradients:
            for p, i in zip(parameters, members, strict=True):
                p.grad = step[i]
            optimizer.step()
        return [p.detach() for p in parameters]

    together = run([0, 1, 2, 3])
    for i in range(4):
        torch.testing.assert_close(together[i], run([i])[0], rtol=1e-5, atol=1e-6)


def test_the_first_step_has_the_size_of_adamw() -> None:
    p = torch.nn.Parameter(torch.zeros(64, 256))
    p.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    Muon([p], lr=0.01).step()
    # singular values near one: the root mean square is about 0.2 lr √(max / (rows · columns) · rank) = 0.2 lr
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.15)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected matrices, given a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
