"""Numbers that half precision would spoil, kept in a bundle as two halves: what it holds, and 2048 times the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from perrin.errors import PerrinError

_MORE = 2048.0


def halves(whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`name.0` and `name.1` of every tensor: together 22 bits of each number of moderate size."""
    out: dict[str, Tensor] = {}
    for name, x in whole.items():
        coarse = x.half().to(x.dtype)
        out |= {f"{name}.0": coarse, f"{name}.1": (x - coarse) * _MORE}
    return out


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], source: str) -> Tensor:
    """The tensor that `halves` took apart; its parts are removed.

    Raises:
        PerrinError: a part is missing or has another shape.
    """
    found = [tensors.pop(f"{name}.{k}", torch.zeros(0)) for k in (0, 1)]
    for part in found:
        if tuple(part.shape) != tuple(shape):
            raise PerrinError(
                f"expected {name} of shape {tuple(shape)} in {source}, given {tuple(part.shape)}: "
                "the bundle is damaged, get it again"
            )
    return found[0] + found[1] / _MORE
