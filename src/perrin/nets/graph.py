"""Which pairs of rows a network keeps features of: all of them, or edges to neighbours. And what a trunk is.

`Complete` keeps `[B, N, N, ...]`. `Edges` keeps `[E, ...]`: row i has at most k edges, to the rows it is bonded to and
then to the nearest ones, so that memory is O(kN). With `k ≥ N − 1` the two hold the same pairs. Both answer the same
questions, so that what is before a trunk (embeddings of pairs) and behind it (heads) is written once.

Edges are found by position alone, in shapes that depend on B, N and k only: no host waits for a device. A tie in distance
aside, they commute with rotations, reflections and permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from perrin.core.layout import Ragged

ABSENT = 20.0
"""Logit of category 0 ("none"), over 0 for the others, of a pair without an edge."""

_CHUNK = 1 << 22  # numbers in a block of distances


class Graph(Protocol):
    """Pairs `(i, j)` of the real rows in `mask` `[B, N]`, i ≠ j; `P` stands for the axes that number them."""

    @property
    def mask(self) -> Tensor: ...

    def select(self, x: Tensor) -> Tensor:
        """The pairs `[P, ...]` of a field `[B, N, N, ...]`."""

    def distance(self, x: Tensor) -> Tensor:
        """Distances `[P]` of positions `[B, N, 3]`, with a smooth zero."""

    def symmetric(self, e: Tensor) -> Tensor:
        """`e_ij + e_ji`, `[P, ...]`."""

    def logits(self, y: Tensor) -> Tensor:
        """Logits `[P, K]` as a field `[B, N, N, K]`, symmetric to the last bit; "none" where there is no pair."""


class Trunk(Protocol):
    """The body of a network: node scalars, node vectors and pair scalars in, the same out.

    Vectors `v` are polar (odd under inversion) and positions-like; a shift has been removed by centring.
    """

    def graph(self, mask: Tensor, positions: Sequence[Tensor], bonds: Tensor) -> Graph:
        """The pairs that the trunk wants, given positions (each `[B, N, 3]`) and categories `[B, N, N]`, 0 for none."""

    def compile_blocks(self) -> None:
        """Compile what repeats, where that pays."""

    def __call__(self, h: Tensor, v: Tensor, e: Tensor, time: Tensor, graph: Graph) -> tuple[Tensor, ...]:
        """`h` `[B, N, d]`, `v` `[B, 3, N, c]`, `e` `[P, p]`, `time` `[B, w]`; returns the new `h, v, e`."""


@dataclass(frozen=True, eq=False)
class Complete:
    """All pairs, dense. The diagonal and pairs with padding are carried along and not read."""

    mask: Tensor

    def select(self, x: Tensor) -> Tensor:
        return x

    def distance(self, x: Tensor) -> Tensor:
        return _length(x.unsqueeze(2) - x.unsqueeze(1))

    def symmetric(self, e: Tensor) -> Tensor:
        return e + e.transpose(1, 2)

    def logits(self, y: Tensor) -> Tensor:
        return y + y.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Edges:
    """Directed edges between rows numbered through the batch, `b N + i`.

    Arguments:
        target, source: row numbers, `[E]`; `target` does not fall.
        valid: False for edges that only fill up the shape, `[E]`.
        reverse: number of the edge from target to source, `[E]`; any number where there is none.
        mutual: whether there is one, `[E]`.
        sample: each row's sample, `[R]`.
        real: False for padding, `[R]`.
        mask: `[B, N]` when rows are padded, `None` when they are ragged.
        batch: number of samples.
    """

    target: Tensor
    source: Tensor
    valid: Tensor
    reverse: Tensor
    mutual: Tensor
    sample: Tensor
    real: Tensor
    mask: Tensor
    batch: int

    @classmethod
    def nearest(cls, mask: Tensor, positions: Sequence[Tensor], bonds: Tensor | None, k: int) -> Edges:
        """At most `k` edges into each row: from bonded rows first, then from the nearest.

        Arguments:
            mask: `[B, N]`.
            positions: each `[B, N, 3]`; the smallest distance in any of them counts.
            bonds: `[B, N, N]`, 0 for none.
        """
        batch, n = mask.shape
        k = max(1, min(k, n - 1))
        rows = torch.arange(n, device=mask.device)
        step = max(1, _CHUNK // (batch * n * 3))
        near, real = [], []
        for first in range(0, n, step):  # a block of rows at a time
            part = slice(first, first + step)
            d = torch.stack([_length(x[:, part].unsqueeze(2) - x.unsqueeze(1)) for x in positions]).amin(0)
            if bonds is not None:
                d = torch.where(bonds[:, part] > 0, -1 / (1 + d), d)
            known = mask[:, part, None] & mask[:, None] & (rows[part, None] != rows)
            score, index = d.masked_fill(~known, torch.inf).topk(k, dim=-1, largest=False)
            near.append(index)
            real.append(score < torch.inf)
        offset = n * torch.arange(batch, device=mask.device)
        source = (torch.cat(near, 1) + offset[:, None, None]).flatten()
        target = torch.arange(batch * n, device=mask.device).repeat_interleave(k)
        valid = torch.cat(real, 1).flatten()
        reverse, mutual = _reverse(target, source, valid, batch * n)
        sample = torch.arange(batch, device=mask.device)[:, None].expand(batch, n).flatten()
        return cls(target, source, valid, reverse, mutual, sample, mask.flatten(), mask, batch)

    @classmethod
    def ragged(cls, layout: Ragged, position: Tensor, k: int) -> Edges:
        """The same for rows without padding, positions `[R, 3]`; every edge is valid. The host waits for the device."""
        place = layout.index, layout.row_number()
        mask = torch.zeros(layout.batch, layout.count(1), dtype=torch.bool, device=position.device)
        mask[place] = True
        x = position.new_zeros(*mask.shape, 3)
        x[place] = position
        wide = cls.nearest(mask, [x], None, k)
        number = mask.flatten().cumsum(0) - 1
        target, source = (number[rows[wide.valid]] for rows in (wide.target, wide.source))
        valid = torch.ones_like(target, dtype=torch.bool)
        reverse, mutual = _reverse(target, source, valid, len(position))
        real = torch.ones_like(layout.index, dtype=torch.bool)
        return cls(target, source, valid, reverse, mutual, layout.index, real, mask, layout.batch)

    def select(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        return x.flatten(0, 1)[self.target, self.source % n]

    def distance(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        return _length(rows[self.target] - rows[self.source])

    def symmetric(self, e: Tensor) -> Tensor:
        return e + torch.where(self.mutual[:, None], e[self.reverse], e)

    def logits(self, y: Tensor) -> Tensor:
        n = self.mask.shape[1]
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        absent = y.new_zeros(y.shape[-1])
        absent[0] = ABSENT
        # relative to "no edge", so that a pair with an edge in one direction only has that one's logits
        share = torch.where(self.mutual, 1.0, 2.0).to(y.dtype) * self.valid
        out = y.new_zeros(len(self.real), n, y.shape[-1])
        out[self.target, self.source % n] = share[:, None] * (y - absent / 2)
        out = out.unflatten(0, self.mask.shape)
        return out + out.transpose(1, 2) + absent

    def sum(self, messages: Tensor) -> Tensor:
        """Messages `[E, m]` summed over the edges into each row, `[R, m]`."""
        return messages.new_zeros(len(self.real), messages.shape[-1]).index_add(0, self.target, messages)

    def mean(self, h: Tensor) -> Tensor:
        """Rows `[R, d]` averaged over their samples, `[B, d]`."""
        real = self.real[:, None].to(h.dtype)
        both = h.new_zeros(self.batch, h.shape[-1] + 1)
        both = both.index_add(0, self.sample, torch.cat((h * real, real), dim=-1))
        return both[:, :-1] / both[:, -1:].clamp(min=1)

    def degree(self, dtype: torch.dtype) -> Tensor:
        """Edges into each row, at least 1, `[R, 1]`."""
        return self.sum(self.valid[:, None].to(dtype)).clamp(min=1)


def _reverse(target: Tensor, source: Tensor, valid: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """For each edge the number of its reverse, and whether there is one."""
    key, order = (target * rows + source).sort()
    wanted = source * rows + target
    at = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
    return order[at], (key[at] == wanted) & valid


def _length(r: Tensor) -> Tensor:
    """`[..., 3]` to `[...]`."""
    return (r.square().sum(-1) + 1e-8).sqrt()
