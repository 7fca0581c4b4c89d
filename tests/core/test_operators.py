"""Measurement operators: the dot test, and values that can be written down."""

from __future__ import annotations

import pytest
import torch

from perrin.core.guides import (
    Blur,
    Chain,
    Downsample,
    LinearOperator,
    Mask,
    Matrix,
    Nonlinear,
    Operator,
    assert_adjoint,
)

F64 = torch.float64
G = torch.Generator().manual_seed(1)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=F64)


OPERATORS: list[tuple[Operator, tuple[int, ...]]] = [
    (Mask(draw(5) > 0), (3, 5)),
    (Mask(draw(1, 4, 6) > 0), (3, 2, 4, 6)),
    (Matrix(draw(2, 5)), (3, 5)),
    (Matrix(draw(3, 12), (2, 2, 3)), (3, 2, 2, 3)),
    (Blur(draw(3)), (3, 2, 7)),
    (Blur(draw(3, 5)), (3, 2, 7, 8)),
    (Blur(draw(3, 1, 3)), (2, 1, 4, 5, 6)),
    (Blur.gaussian(1.3, 2, dtype=F64), (3, 1, 6, 6)),
    (Downsample(2), (3, 2, 8)),
    (Downsample(3), (3, 2, 6, 9)),
    (Nonlinear(lambda x: torch.tanh(x) ** 2), (3, 5)),
    (Nonlinear(lambda x: x.square().sum(dim=1, keepdim=True).sqrt()), (3, 5)),
    (Chain((Blur.gaussian(1.0, 1, dtype=F64), Nonlinear(torch.tanh), Downsample(2))), (3, 2, 4, 6)),
]


@pytest.mark.parametrize(("operator", "shape"), OPERATORS, ids=lambda v: getattr(type(v), "__name__", ""))
def test_adjoint(operator: Operator, shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    assert_adjoint(operator, x)
    whole = operator(x)
    for i in range(len(x)):
        torch.testing.assert_close(operator(x[i : i + 1])[0], whole[i])
    if isinstance(operator, LinearOperator):
        assert operator.adjoint(whole).shape == x.shape
        torch.testing.assert_close(operator(2 * x - 3 * x.flip(0)), 2 * operator(x) - 3 * operator(x.flip(0)))


def test_a_wrong_adjoint_is_found() -> None:
    class Wrong(Downsample):
        def adjoint(self, y: torch.Tensor) -> torch.Tensor:
            return super().adjoint(y) * self.factor

    with pytest.raises(AssertionError):
        assert_adjoint(Wrong(2), draw(3, 1, 4))


def test_values() -> None:
    x = torch.arange(8, dtype=F64).reshape(1, 1, 8)
    torch.testing.assert_close(Downsample(4)(x), torch.tensor([[[1.5, 5.5]]], dtype=F64))
    shift = Blur(torch.tensor([0.0, 0.0, 1.0], dtype=F64))
    torch.testing.assert_close(shift(x), x.roll(-1, dims=2))
    ones = torch.ones(1, 1, 5, 5, dtype=F64)
    torch.testing.assert_close(Blur.gaussian(2.0, 2, dtype=F64)(ones), ones)


def test_errors() -> None:
    with pytest.raises(ValueError, match="odd length"):
        Blur(torch.ones(2))
    with pytest.raises(ValueError, match="multiples of 3"):
        Downsample(3)(torch.ones(1, 1, 4))
    with pytest.raises(ValueError, match="n elements"):
        Matrix(torch.ones(2, 5), (2, 2))
