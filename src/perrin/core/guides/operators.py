"""Measurement operators: `y = A(x_0) + s n`, with what posterior guides need of `A`.

A guide asks an operator for `linearise(x)`: the value `A(x)` and two maps, the derivative `v ↦ A′ v` and its adjoint
`w ↦ A′ᵀ w`. A linear operator is its own derivative and writes its adjoint out; a nonlinear one gets both by automatic
differentiation. An adjoint is right when `⟨A v, w⟩ = ⟨v, Aᵀ w⟩` for all `v` and `w`, which `assert_adjoint` tests.

All arrays are batch-first: `x` is `[B, …]`, `y` is `[B, …]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Operator(ABC):
    """A measurement `A`, sample by sample."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """`A(x)`, `[B, …]`."""

    @abstractmethod
    def linearise(self, x: Tensor) -> tuple[Tensor, Map, Map]:
        """`A(x)`, `v ↦ A′(x) v` and `w ↦ A′(x)ᵀ w`."""


class LinearOperator(Operator):
    """An operator with `A(x + v) = A(x) + A(v)` and an adjoint."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """`Aᵀ y`, of the shape of `x`."""

    def linearise(self, x: Tensor) -> tuple[Tensor, Map, Map]:
        return self(x), self, self.adjoint


@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """`A x = m ⊙ x`: some elements are seen, the others are zero in `y`.

    Arguments:
        keep: bool, broadcasts against the field; True is seen.
    """

    keep: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.keep, x, torch.zeros_like(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """`A x = M vec(x)`.

    Arguments:
        matrix: `M`, `[m, n]`.
        shape: of a sample, with n elements; a vector if left out.
    """

    matrix: Tensor
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or prod(self.shape or self.matrix.shape[1:]) != self.matrix.shape[1]:
            raise ValueError(
                f"expected a matrix [m, n] with n elements in {self.shape}, given {tuple(self.matrix.shape)}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).reshape(y.shape[0], *(self.shape or (self.matrix.shape[1],)))


@dataclass(frozen=True, eq=False)
class Blur(LinearOperator):
    """`(A x)_i = Σ_k K_k x_{i + k − c}` with periodic edges, channel by channel, on `[B, C, …]` with 1 to 3 space axes.

    The adjoint is the same with the kernel turned round.

    Arguments:
        kernel: `K`, as many axes as space has, each of odd length, `c` is its middle.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        if not 1 <= self.kernel.ndim <= 3 or any(k % 2 == 0 for k in self.kernel.shape):
            raise ValueError(
                f"expected a kernel of 1 to 3 axes of odd length, given {tuple(self.kernel.shape)}"
            )

    @classmethod
    def gaussian(cls, width: float, radius: int, axes: int = 2, dtype: torch.dtype = torch.float32) -> Blur:
        """A Gaussian of standard deviation `width` pixels, cut at `radius` pixels, of sum 1."""
        r = torch.arange(-radius, radius + 1, dtype=dtype)
        line = torch.exp(-0.5 * (r / width) ** 2)
        kernel = reduce(lambda k, _: k[..., None] * line, range(axes - 1), line)
        return cls(kernel / kernel.sum())

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        d, shape = kernel.ndim, x.shape
        pads = [p for k in reversed(kernel.shape) for p in (k // 2, k // 2)]
        flat = torch.nn.functional.pad(x.reshape(-1, 1, *shape[-d:]), pads, mode="circular")
        convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[d - 1]
        return convolve(flat, kernel[None, None].to(x)).reshape(shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.kernel)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._convolve(y, self.kernel.flip(tuple(range(self.kernel.ndim))))


@dataclass(frozen=True)
class Downsample(LinearOperator):
    """Means over blocks of `factor` along each space axis of `[B, C, …]`; the adjoint spreads `y / factor^d` over a block.

    Lengths must be multiples of the factor.
    """

    factor: int

    def __call__(self, x: Tensor) -> Tensor:
        if any(n % self.factor for n in x.shape[2:]):
            raise ValueError(
                f"expected space axes that are multiples of {self.factor}, given {tuple(x.shape[2:])}"
            )
        for axis in range(2, x.ndim):
            x = x.unflatten(axis, (-1, self.factor)).mean(dim=axis + 1)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for axis in range(2, y.ndim):
            y = y.repeat_interleave(self.factor, dim=axis) / self.factor
        return y


@dataclass(frozen=True)
class Nonlinear(Operator):
    """Any differentiable `A`; `A′ v` and `A′ᵀ w` come from automatic differentiation.

    Arguments:
        function: `[B, …] → [B, …]`, sample by sample, written in torch operations.
    """

    function: Map

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def linearise(self, x: Tensor) -> tuple[Tensor, Map, Map]:
        made = torch.func.vjp(self.function, x)
        y, back = made[0], made[1]

        def forward(v: Tensor) -> Tensor:
            return torch.func.jvp(self.function, (x,), (v,))[1]

        return y, forward, lambda w: back(w)[0]


@dataclass(frozen=True)
class Chain(Operator):
    """`A = A_k ∘ … ∘ A_1`: the first operator acts first (a blur, then a downsampling)."""

    operators: tuple[Operator, ...]

    def __call__(self, x: Tensor) -> Tensor:
        for operator in self.operators:
            x = operator(x)
        return x

    def linearise(self, x: Tensor) -> tuple[Tensor, Map, Map]:
        maps: list[tuple[Map, Map]] = []
        for operator in self.operators:
            x, forward, back = operator.linearise(x)
            maps.append((forward, back))

        def push(v: Tensor) -> Tensor:
            return reduce(lambda value, m: m[0](value), maps, v)

        def pull(w: Tensor) -> Tensor:
            return reduce(lambda value, m: m[1](value), reversed(maps), w)

        return x, push, pull


def assert_adjoint(operator: Operator, x: Tensor, *, tolerance: float = 1e-10) -> None:
    """The dot test in float64: `⟨A′ v, w⟩ = ⟨v, A′ᵀ w⟩` per sample, and `A′` agrees with central differences at `x`."""
    generator = torch.Generator().manual_seed(0)
    x = x.double()
    y, forward, back = operator.linearise(x)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    w = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    left, right = (forward(v) * w).flatten(1).sum(1), (v * back(w)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    h = 1e-5
    slope = (operator(x + h * v) - operator(x - h * v)) / (2 * h)
    torch.testing.assert_close(forward(v), slope, rtol=1e-5, atol=1e-7)
