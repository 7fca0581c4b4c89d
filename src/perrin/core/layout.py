"""Layouts: which rows of a field belong to which sample.

A field is one tensor that holds a whole batch. Everything that must happen once per sample (a norm, a mean, a centre of
mass, a random number) asks the layout, so that no code ever sums over a batch by accident.

- `Dense`: `[B, ...]`; all but the first axis belongs to the sample. Grids, waveforms, vectors.
- `Padded`: `[B, N, ...]` with a mask `[B, N]`. Atoms, residues, particles.
- `Pairs`: `[B, N, N, ...]` with the mask of the rows; symmetric in its two row axes. Bonds, contacts.
- `Ragged`: `[R, ...]` with an index `[R]` that names each row's sample. Large sparse graphs.

Random numbers are asked for per *element of the sample* (`Layout.count` of them, numbered from zero) and then put in
place (`Layout.place`). The numbering knows neither padding nor batch, so neither can change a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor


class Layout(ABC):
    """Rows of one field, sample by sample. `batch` is the number of samples B."""

    batch: int

    @abstractmethod
    def expand(self, values: Tensor, like: Tensor) -> Tensor:
        """Per-sample values `[B]`, shaped to broadcast against the field `like`."""

    @abstractmethod
    def sum(self, x: Tensor) -> Tensor:
        """Sum over the rows of each sample: `[B, features...]`, padding left out."""

    @abstractmethod
    def rows(self) -> Tensor:
        """Number of rows of each sample, `[B]`, int64."""

    @abstractmethod
    def restrict(self, x: Tensor) -> Tensor:
        """The field with everything outside the samples (padding) set to zero."""

    @abstractmethod
    def count(self, features: int) -> int:
        """How many elements the largest sample has when each row has `features` of them."""

    @abstractmethod
    def place(self, flat: Tensor, features: tuple[int, ...]) -> Tensor:
        """Put elements `[B, count]`, numbered within their sample, at their rows."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the rows of each sample, `[B, features...]`."""
        total = self.sum(x)
        n = self.rows().clamp(min=1).to(total.dtype)
        return total / n.reshape(-1, *([1] * (total.ndim - 1)))

    def center(self, x: Tensor) -> Tensor:
        """The field minus its per-sample mean over rows (zero centre of mass); padding stays zero."""
        return self.restrict(x - self._spread(self.mean(x), x))

    @abstractmethod
    def _spread(self, per_sample: Tensor, like: Tensor) -> Tensor:
        """Per-sample features `[B, features...]`, repeated over the rows."""


@dataclass(frozen=True)
class Dense(Layout):
    """Every axis but the first belongs to the sample: the sample is a single row of `shape` features."""

    batch: int
    device: torch.device | str = "cpu"

    def expand(self, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, *([1] * (like.ndim - 1)))

    def sum(self, x: Tensor) -> Tensor:
        return x

    def rows(self) -> Tensor:
        return torch.ones(self.batch, dtype=torch.int64, device=self.device)

    def restrict(self, x: Tensor) -> Tensor:
        return x

    def count(self, features: int) -> int:
        return features

    def place(self, flat: Tensor, features: tuple[int, ...]) -> Tensor:
        return flat.reshape(flat.shape[0], *features)

    def to(self, device: torch.device | str) -> Dense:
        return Dense(self.batch, device)

    def center(self, x: Tensor) -> Tensor:
        """The field minus its per-sample mean over all positions of the last axes but the channel axis 1."""
        if x.ndim < 2:  # one number is its own mean; an empty `dim` would take the mean over the batch
            return torch.zeros_like(x)
        return x - x.mean(dim=tuple(range(min(2, x.ndim - 1), x.ndim)), keepdim=True)

    def _spread(self, per_sample: Tensor, like: Tensor) -> Tensor:
        return per_sample


@dataclass(frozen=True, eq=False)
class Padded(Layout):
    """`[B, N, ...]` where `mask` `[B, N]` (bool) says which rows are real. Real rows come first."""

    mask: Tensor

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.mask.shape[0]

    @classmethod
    def from_sizes(cls, sizes: Tensor, width: int | None = None) -> Padded:
        """Rows `0 … size−1` of each sample are real; `width` pads further than the largest size."""
        width = int(sizes.max()) if width is None else width
        return cls(torch.arange(width, device=sizes.device) < sizes[:, None])

    @cached_property
    def _outside(self) -> Tensor:
        return ~self.mask

    def expand(self, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, *([1] * (like.ndim - 1)))

    def sum(self, x: Tensor) -> Tensor:
        x = self.restrict(x)
        if (
            x.device.type == "cpu"
        ):  # adds row after row, so that neither batch nor padding changes a bit of the result
            return x.cumsum(dim=1)[:, -1]
        return x.sum(dim=1)

    def rows(self) -> Tensor:
        return self.mask.sum(dim=1)

    def restrict(self, x: Tensor) -> Tensor:
        outside = self._outside.reshape(*self.mask.shape, *([1] * (x.ndim - 2)))
        return x.masked_fill(outside, 0)  # not a product: padding may hold NaN

    def count(self, features: int) -> int:
        return self.mask.shape[1] * features

    def place(self, flat: Tensor, features: tuple[int, ...]) -> Tensor:
        return flat.reshape(flat.shape[0], self.mask.shape[1], *features)

    def to(self, device: torch.device | str) -> Padded:
        return Padded(self.mask.to(device))

    def _spread(self, per_sample: Tensor, like: Tensor) -> Tensor:
        return per_sample.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Pairs(Layout):
    """`[B, N, N, ...]`, symmetric in the two row axes, over the rows of `mask` `[B, N]`; the diagonal is not part of it.

    Element `(i, j)` with `i > j` has number `i (i − 1) / 2 + j`: it does not change when N is padded further.
    """

    mask: Tensor

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.mask.shape[0]

    def pair_mask(self) -> Tensor:
        """`[B, N, N]`, True for two different real rows."""
        both = self.mask[:, :, None] & self.mask[:, None, :]
        return both & ~torch.eye(self.mask.shape[1], dtype=torch.bool, device=self.mask.device)

    @cached_property
    def _outside(self) -> Tensor:
        return ~self.pair_mask()

    @cached_property
    def _number(self) -> Tensor:
        """The number of each pair of rows, `[N²]`."""
        n = self.mask.shape[1]
        i = torch.arange(n, device=self.mask.device)
        high, low = torch.maximum(i[:, None], i), torch.minimum(i[:, None], i)
        return (high * (high - 1) // 2 + low).clamp(max=max(n * (n - 1) // 2 - 1, 0)).reshape(-1)

    def expand(self, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, *([1] * (like.ndim - 1)))

    def sum(self, x: Tensor) -> Tensor:
        return self.restrict(x).sum(dim=(1, 2)) / 2

    def rows(self) -> Tensor:
        n = self.mask.sum(dim=1)
        return n * (n - 1) // 2

    def restrict(self, x: Tensor) -> Tensor:
        outside = self._outside.reshape(*x.shape[:3], *([1] * (x.ndim - 3)))
        return x.masked_fill(outside, 0)  # not a product: padding may hold NaN

    def count(self, features: int) -> int:
        n = self.mask.shape[1]
        return max(n * (n - 1) // 2, 1) * features  # at least one, so that `place` has something to repeat

    def place(self, flat: Tensor, features: tuple[int, ...]) -> Tensor:
        n = self.mask.shape[1]
        rows = flat.reshape(flat.shape[0], -1, prod(features))
        return rows[:, self._number].reshape(flat.shape[0], n, n, *features)

    def to(self, device: torch.device | str) -> Pairs:
        return Pairs(self.mask.to(device))

    def _spread(self, per_sample: Tensor, like: Tensor) -> Tensor:
        return per_sample[:, None, None]


@dataclass(frozen=True, eq=False)
class Ragged(Layout):
    """`[R, ...]` where `index` `[R]` (int64, sorted) names each row's sample."""

    index: Tensor
    batch: int

    def expand(self, values: Tensor, like: Tensor) -> Tensor:
        return values[self.index].reshape(-1, *([1] * (like.ndim - 1)))

    def sum(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.batch, *x.shape[1:]).index_add(0, self.index, x)

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor, int]:
        """Rows of each sample, number of each row, largest sample: once, because the last makes the host wait."""
        n = torch.bincount(self.index, minlength=self.batch)
        first = torch.cumsum(n, 0) - n
        number = torch.arange(len(self.index), device=self.index.device) - first[self.index]
        return n, number, int(n.max())

    def rows(self) -> Tensor:
        return self._numbers[0]

    def restrict(self, x: Tensor) -> Tensor:
        return x

    def row_number(self) -> Tensor:
        """Each row's number within its own sample, `[R]`."""
        return self._numbers[1]

    def count(self, features: int) -> int:
        return self._numbers[2] * features

    def place(self, flat: Tensor, features: tuple[int, ...]) -> Tensor:
        rows = flat.reshape(self.batch, self._numbers[2], *features)
        return rows[self.index, self.row_number()]

    def to(self, device: torch.device | str) -> Ragged:
        return Ragged(self.index.to(device), self.batch)

    def _spread(self, per_sample: Tensor, like: Tensor) -> Tensor:
        return per_sample[self.index]


Layouts = Mapping[str, Layout]
"""A layout for each field of a state."""
