"""Telling two samples apart by a network: the area under its ROC curve, 0.5 if nobody can.

The classifier is CaloChallenge's: a perceptron of an input layer and two hidden ones of 512, leaky ReLU, Adam at 2e-4,
batches of 1,000, 50 epochs; 60 % to train on, 20 % to choose the epoch by its accuracy, 20 % for the AUC. It is trained on
several splits, and the error is the standard deviation over them; for one split it is that of the AUC of n scores of each
kind which say nothing, √((2 n + 1)/12)/n.

Reference: Krause and Shih 2021, arXiv:2106.05285; CaloChallenge, arXiv:2410.21611.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perrin.errors import PerrinError
from perrin.modalities.particle.metrics.distances import Measured

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """How the classifier is trained; the defaults are CaloChallenge's.

    Arguments:
        hidden, layers: width, and hidden layers behind the first.
        epochs, batch, lr: of Adam.
        splits: independent splits and trainings.
        seed: of all draws.
    """

    hidden: int = 512
    layers: int = 2
    epochs: int = 50
    batch: int = 1000
    lr: float = 2e-4
    splits: int = 3
    seed: int = 0


def auc(positive: Array, negative: Array) -> float:
    """The area under the ROC curve, `P(positive > negative) + ½ P(equal)`, of two sets of scores."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def classifier_auc(
    reference: Array, generated: Array, options: ClassifierOptions | None = None, device: str = "cpu"
) -> Measured:
    """The AUC of a classifier trained between two samples, on what it has not seen.

    Arguments:
        reference, generated: features `[n, d]`, `[m, d]`; the larger is cut to the size of the smaller.

    Raises:
        PerrinError: fewer than 10 samples.
    """
    o = options or ClassifierOptions()
    count = min(len(reference), len(generated))
    if count < 10:
        raise PerrinError(f"expected at least 10 samples of each kind for a classifier, given {count}")
    found = []
    for split in range(o.splits):
        generator = torch.Generator().manual_seed(1_000_003 * o.seed + split)
        parts = [
            torch.as_tensor(np.asarray(data), dtype=torch.float32)[
                torch.randperm(len(data), generator=generator)[:count]
            ]
            for data in (reference, generated)
        ]
        found.append(_train(parts[0].to(device), parts[1].to(device), o, generator))
    held = count - int(0.8 * count)
    alone = float(np.sqrt((2 * held + 1) / 12) / held)
    return Measured(float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else alone)


def _train(real: Tensor, fake: Tensor, o: ClassifierOptions, generator: torch.Generator) -> float:
    a, b = int(0.6 * len(real)), int(0.8 * len(real))
    x = torch.cat([real[:a], fake[:a]])
    y = torch.cat([torch.ones(a), torch.zeros(a)]).to(x)
    held = torch.cat([real[a:b], fake[a:b]])
    truth = torch.cat([torch.ones(b - a), torch.zeros(b - a)]).to(x).bool()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        net = network(x.shape[1], o).to(x.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=o.lr)
    best, kept = -1.0, copy.deepcopy(net)
    for _ in range(o.epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for rows in order.split(o.batch):
            loss = nn.functional.binary_cross_entropy_with_logits(net(x[rows])[:, 0], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = float(((net(held)[:, 0] > 0) == truth).float().mean())
        if right > best:
            best, kept = right, copy.deepcopy(net)
    with torch.no_grad():
        scores = [kept(part[b:])[:, 0].double().cpu().numpy() for part in (real, fake)]
    return auc(scores[0], scores[1])


def network(features: int, o: ClassifierOptions) -> nn.Sequential:
    """The perceptron."""
    parts: list[nn.Module] = [nn.Linear(features, o.hidden), nn.LeakyReLU()]
    for _ in range(o.layers):
        parts += [nn.Linear(o.hidden, o.hidden), nn.LeakyReLU()]
    return nn.Sequential(*parts, nn.Linear(o.hidden, 1))
