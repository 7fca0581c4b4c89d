"""Which samples make up the batch of step k: a pure function of the seed and k, so that a restart needs no state.

Samples are grouped in buckets (of similar size, so that batches have one of a few static shapes). Each step draws a bucket
with probability proportional to its number of samples, and takes the next `batch` entries of that bucket's stream: one
random permutation after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 4096


class BatchPlan:
    """The stream of batches.

    Arguments:
        counts: samples in each bucket.
        batch: samples per step.
        seed: of bucket choice and permutations.
    """

    def __init__(self, counts: Sequence[int], batch: int, seed: int) -> None:
        if sum(counts) < 1:
            raise ValueError("expected at least one sample to train on, given none")
        self.counts, self.batch, self.seed = tuple(counts), batch, seed
        self._choices: list[Tensor] = []
        self._before: list[Tensor] = [torch.zeros(len(counts), dtype=torch.int64)]
        self._permutations: dict[tuple[int, int], Tensor] = {}

    def __call__(self, step: int) -> tuple[int, Tensor]:
        """The bucket of `step` and the numbers of its samples within the bucket, `[batch]`, int64."""
        chunk, row = divmod(step, _CHUNK)
        while len(self._choices) <= chunk:
            generator = self._generator(1, len(self._choices))
            weights = torch.tensor(self.counts, dtype=torch.float64)
            drawn = torch.multinomial(weights, _CHUNK, replacement=True, generator=generator)
            self._choices.append(drawn)
            self._before.append(self._before[-1] + torch.bincount(drawn, minlength=len(self.counts)))
        choices = self._choices[chunk]
        bucket = int(choices[row])
        turn = int(self._before[chunk][bucket]) + int((choices[:row] == bucket).sum())
        count = self.counts[bucket]
        position = torch.arange(turn * self.batch, (turn + 1) * self.batch)
        rounds = position // count
        out = torch.empty_like(position)
        for r in rounds.unique().tolist():
            inside = rounds == r
            out[inside] = self._permutation(bucket, r)[position[inside] % count]
        return bucket, out

    def _permutation(self, bucket: int, number: int) -> Tensor:
        key = (bucket, number)
        if key not in self._permutations:
            for old in [k for k in self._permutations if k[0] == bucket and k[1] < number - 1]:
                del self._permutations[old]
            self._permutations[key] = torch.randperm(
                self.counts[bucket], generator=self._generator(2 + bucket, number)
            )
        return self._permutations[key]

    def _generator(self, stream: int, number: int) -> torch.Generator:
        mixed = (self.seed * 1_000_003 + stream) * 1_000_003 + number
        return torch.Generator().manual_seed(mixed % 2**63)
