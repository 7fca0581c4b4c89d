"""A set of molecules that holds what the training data hold, by a choice among the model's own samples.

A model's samples hold a little too much of this and too little of that. With `f(x)` what a molecule holds (its contents, and
its atoms in each of the commoner surroundings of the data; counts on the graph), the weights `w(x) = exp(θ · f(x))` give the
samples the data's mean of `f`, and are of all such the nearest to equal ones (`tilt`): an estimate of the ratio of the
densities of data and samples. Of each molecule N are drawn with its number of atoms, and one of them is kept with
probability `∝ w^a`: sampling-importance-resampling (Rubin 1987). A set that is kept so has the density

    p(x) E[N w(x)^a / (w(x)^a + Σ_{N−1} w(x_k)^a)]  ≈  p(x) (1 + a (N−1)/N (ln w(x) − E ln w)),

which with `a = N / (N−1)` is `p w` to first order in `ln w` for every N, and for large N exactly. Every number of
evaluations errs in its own way, and has its own θ.

Only means over all of the data are used: a balance cannot bring back what the model never draws, and says nothing of
geometry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core import Noise, State
from perrin.core.guides.steering import parents_of
from perrin.errors import PerrinError
from perrin.modalities.molecule.fields import BONDS, CHARGES, TYPES, Vocabulary

PREFIX = "balance."
"""Of the names, among a bundle's tensors, of a `Balance`."""
MOST = 8
"""Molecules drawn for one: more come nearer to the data by less than they cost."""
BROKEN = 1e4
"""Taken from the logarithm of the weight of what is not sound: it is kept where there is nothing else."""
_AT_A_TIME = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Balance:
    """Log-linear weights of molecules; see the module.

    Arguments:
        labels: the surroundings of atoms that are counted (`metrics.tensors.environments`), rising, int64, `[L]`.
        evaluations: numbers of network evaluations whose samples were looked at, int64, `[K]`.
        theta: the weights' logarithm for each atom, bond, ring, … more (`features`), `[K, F]`.
    """

    labels: Tensor
    evaluations: Tensor
    theta: Tensor

    def log_weight(self, state: State, mask: Tensor, vocabulary: Vocabulary, steps: int) -> Tensor:
        """`θ · f(x)`, `[B]`, float64: up to a constant, `ln w` of samples of the number of evaluations nearest to `steps`.

        Arguments:
            state: types, charges `[B, N]` and bonds `[B, N, N]` as category numbers.
            mask: the atoms, `[B, N]`.
            vocabulary: of the model.
            steps: network evaluations; what is nearest is judged by the ratio.
        """
        row = int((self.evaluations.double().log() - math.log(steps)).abs().argmin())
        found = features(state, mask, vocabulary, self.labels.to(mask.device))
        return found.double() @ self.theta[row].to(mask.device).double()

    def choose(
        self, state: State, mask: Tensor, vocabulary: Vocabulary, *, steps: int, many: int, noise: Noise
    ) -> Tensor:
        """The rows that are kept, one of `many` that follow each other, int64, `[B / many]`.

        Each is drawn with probability `∝ w^(N/(N−1))`; what is not sound is kept where there is nothing else.

        Arguments:
            state, mask, vocabulary, steps: as for `log_weight`.
            noise: of the rows; that of the first of so many draws.
        """
        from perrin.modalities.molecule.metrics.tensors import sound

        with torch.autocast(mask.device.type, enabled=False):
            value = many / (many - 1) * self.log_weight(state, mask, vocabulary, steps)
        value = torch.where(sound(state, mask, vocabulary), value, value - BROKEN).reshape(-1, many)
        which = parents_of(value, noise, field="balance", step=0, places=1)[:, 0]
        return which + many * torch.arange(len(which), device=which.device)

    def pack(self) -> dict[str, Tensor]:
        """Tensors with names for a bundle, which makes floats of all: labels are cut into bytes; theta keeps the three
        digits of half precision."""
        shifts = 8 * torch.arange(8)
        tensors = {
            "labels": ((self.labels.cpu()[:, None] >> shifts) & 255).to(torch.uint8),
            "evaluations": self.evaluations.cpu().to(torch.int32),
            "theta": self.theta.cpu().float(),
        }
        return {PREFIX + k: v for k, v in tensors.items()}

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor]) -> Balance:
        """The inverse of `pack`."""
        labels, evaluations, theta = (packed[PREFIX + k] for k in ("labels", "evaluations", "theta"))
        return cls(
            labels=(labels.long() << 8 * torch.arange(8)).sum(1),
            evaluations=evaluations.long(),
            theta=theta.float(),
        )


def fit(
    samples: Mapping[int, Iterable[tuple[State, Tensor]]],
    data: Iterable[tuple[State, Tensor]],
    vocabulary: Vocabulary,
    *,
    share: float = 0.003,
    ridge: float = 0.03,
) -> Balance:
    """The balance with which samples hold on average what the data hold.

    Arguments:
        samples: of each number of evaluations, batches of any width (state, mask), drawn without a balance and with sizes
            like the data's. Of the states only types, charges `[B, N]` and bonds `[B, N, N]` are looked at, integers of any
            kind; what is not sound is left out. On any device, all on the same.
        data: the same of the training data.
        vocabulary: of both.
        share: surroundings of atoms are counted that so many of the data's molecules have.
        ridge: see `tilt`.

    Raises:
        PerrinError: there are no data, or no two sound samples of a number of evaluations.
    """
    from perrin.modalities.molecule.metrics.tensors import sound

    real = list(data)
    if not samples or not any(len(mask) for _, mask in real):
        raise PerrinError("expected samples and data to balance them by, given none")
    labels = common_surroundings(pieces(real), vocabulary, share)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for state, mask in pieces(real):
        total = total + features(state, mask, vocabulary, labels).double().sum(0).cpu()
        count += len(mask)
    rows = []
    for steps, batches in sorted(samples.items()):
        found = [
            features(state, mask, vocabulary, labels)[sound(state, mask, vocabulary)]
            for state, mask in pieces(batches)
        ]
        if sum(map(len, found)) < 2:
            raise PerrinError(
                f"expected at least 2 sound samples of {steps} evaluations to balance, given fewer: draw more"
            )
        every = torch.cat(found)
        rows.append(tilt(every, (total / count).to(every.device), ridge=ridge)[1].cpu())
    return Balance(labels=labels.cpu(), evaluations=torch.tensor(sorted(samples)), theta=torch.stack(rows))


def common_surroundings(
    parts: Iterable[tuple[State, Tensor]], vocabulary: Vocabulary, share: float = 0.02
) -> Tensor:
    """The surroundings of atoms that a share of the molecules has, at least, sorted, `[L]`."""
    from perrin.modalities.molecule.metrics.tensors import environments

    found, total = [], 0
    for state, mask in parts:
        total += len(mask)
        labels = environments(state, mask, vocabulary).flatten(1).sort(1).values
        first = torch.ones_like(labels, dtype=torch.bool)
        first[:, 1:] = labels[:, 1:] != labels[:, :-1]
        found.append(labels[first & (labels != 0)])  # each once of each molecule
    labels, counts = torch.cat(found).unique(return_counts=True)
    return labels[counts >= share * total]


def features(state: State, mask: Tensor, vocabulary: Vocabulary, common: Tensor) -> Tensor:
    """Contents, and how many atoms have each of the common surroundings, `[B, F]`."""
    from perrin.modalities.molecule.metrics.tensors import contents, environments

    counts = contents(state, mask, vocabulary)
    if not len(common):
        return counts
    labels = environments(state, mask, vocabulary).flatten(1)
    place = torch.searchsorted(common, labels).clamp(max=len(common) - 1)
    hits = (common[place] == labels).float()
    return torch.cat(
        [counts, torch.zeros(len(mask), len(common), device=mask.device).scatter_add(1, place, hits)], dim=1
    )


def tilt(found: Tensor, wanted: Tensor, *, ridge: float = 0.03) -> tuple[Tensor, Tensor]:
    """Weights of rows, mean 1, with which their mean is the wanted one: of all such the nearest to equal weights.

    They are `exp(θ · f)`; θ minimises the convex `ln mean exp(θ · (f − wanted)) + ridge |θ|²/2` (features in standard
    units), which Newton's method finds. Where the wanted mean cannot be had, or only by few rows, they come as near as
    `ridge` lets them.

    Arguments:
        found: features, `[M, F]`, of at least two rows.
        wanted: their wanted mean, `[F]`.

    Returns:
        The weights, `[M]`, and θ in the features' own units, `[F]`, both float64.
    """
    x = found.double()
    scale = (x.std(0) > 1e-6) / x.std(0).clamp(min=1e-6)
    x = (x - wanted.double()) * scale
    theta = x.new_zeros(x.shape[1])
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(30):
        p = torch.softmax(x @ theta, 0)
        mean = p @ x
        spread = (x * p[:, None]).T @ x - mean[:, None] * mean
        step = torch.linalg.solve(spread + ridge * eye, mean + ridge * theta)
        theta = theta - step / torch.clamp(step.norm(), min=1.0)  # no step longer than 1
    return torch.softmax(x @ theta, 0) * len(x), theta * scale


def tilted(found: Tensor, wanted: Tensor, *, ridge: float = 0.03, most: float = 10.0) -> Tensor:
    """The weights of `tilt`, `[M]`, none above `most` times their mean."""
    if len(found) < 2:
        return torch.ones(len(found), device=found.device)
    weights = tilt(found, wanted, ridge=ridge)[0].clamp(max=most)
    return (weights / weights.mean()).float()


def pieces(batches: Iterable[tuple[State, Tensor]]) -> Iterator[tuple[State, Tensor]]:
    """Graphs as int64, of at most so many molecules at a time."""
    for state, mask in batches:
        for k in range(0, len(mask), _AT_A_TIME):
            here = slice(k, k + _AT_A_TIME)
            yield {name: state[name][here].long() for name in (TYPES, CHARGES, BONDS)}, mask[here]
