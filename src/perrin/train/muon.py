"""Muon: momentum, orthogonalised (Jordan et al. 2024), for the matrices of a repeated block.

A matrix is moved along `U Vᵀ` of its momentum's singular value decomposition, so that every direction moves alike. Five
Newton–Schulz iterations stand in for the decomposition; matrices of one shape go through them together. The step is
scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), so that both share one learning
rate and one weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
_RMS = 0.2
"""The root mean square of AdamW's steps, about."""


class Muon(torch.optim.Optimizer):
    """Arguments:
    parameters: matrices.
    lr: learning rate, on AdamW's scale.
    momentum: of the gradient's average; Nesterov's form is used.
    weight_decay: decoupled.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        wrong = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if wrong:
            raise ValueError(f"expected matrices, given a parameter of shape {wrong[0]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for parameters in shapes.values():
                self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        mu, lr = group["momentum"], group["lr"]
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - mu)
        ahead = torch.stack(torch._foreach_lerp(gradients, momenta, mu))
        direction = orthogonalise(ahead).to(ahead.dtype)
        rows, columns = parameters[0].shape
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(
            parameters, list(direction.unbind(0)), alpha=-lr * _RMS * max(rows, columns) ** 0.5
        )


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """`[K, R, C]` to about `U Vᵀ` of each (singular values between 0.7 and 1.2); in bfloat16 on a GPU.

    The quintic iteration `X ← a X + (b A + c A²) X`, `A = X Xᵀ`.
    """
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (matrices.norm(dim=(-2, -1), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(iterations):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
