"""Gradients of a batch in parts: over ranks, and one after another in each rank (accumulation).

The loss is a mean over samples, so the gradient of a batch is the mean of the gradients of equal parts of it. Which samples
make up the batch does not depend on the parts: a run on two ranks with two parts each follows one on one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

Gradients = Callable[[Hashable, dict[str, Tensor]], dict[str, Tensor]]
"""Computes the losses of a batch and leaves gradients in the parameters' `.grad`."""


def accumulated(gradients: Gradients, parameters: Sequence[Tensor], parts: int) -> Gradients:
    """The same for a batch that is too large for the device: part by part, every `parts`-th sample in each."""
    if parts == 1:
        return gradients

    def compute(key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        total: list[Tensor | None] = [None] * len(parameters)
        losses: dict[str, Tensor] = {}
        for part in range(parts):
            for p in parameters:
                p.grad = None
            found = gradients(key, {k: v[part::parts].contiguous() for k, v in batch.items()})
            for i, p in enumerate(parameters):
                if p.grad is not None:
                    share = p.grad / parts  # a new tensor: a graph's own is written over by the next replay
                    before = total[i]
                    total[i] = share if before is None else before.add_(share)
            losses = {k: losses.get(k, 0) + v / parts for k, v in found.items()}
        for p, g in zip(parameters, total, strict=True):
            p.grad = g
        return losses

    return compute


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace gradients by their mean over the ranks, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    parts = (flat / torch.distributed.get_world_size()).split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])
