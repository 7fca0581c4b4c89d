"""Scores of ensembles at one place and time; sums and means over them are `verify`'s.

With members x₁ … x_M and truth y:

    biased CRPS   (1/M) Σ|x_i − y| − (1/2M²) ΣΣ|x_i − x_j|                  of the members' empirical distribution
    fair CRPS     (1/M) Σ|x_i − y| − (1/2M(M−1)) ΣΣ|x_i − x_j|              of the distribution the members were drawn from
    energy score  (1/M) Σ‖x_i − y‖ − (1/2M(M−1)) ΣΣ‖x_i − x_j‖              fair, of whole fields

Only the fair ones can be compared at different M: M draws from the right distribution score worse than the distribution
itself by a factor 1 + 1/M in the biased CRPS (Ferro 2014; Zamo & Naveau 2018). An event's Brier score is biased likewise.

References: Hersbach 2000; Gneiting & Raftery 2007; Ferro, "Fair scores for ensemble forecasts", 2014; Fortin et al. 2014.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def absolute_differences(members: Array) -> Array:
    """ΣΣ|x_i − x_j| over all pairs: 2 Σ (2i − M − 1) x_(i) of the sorted members.

    Arguments:
        members: `[M, ...]`.
    """
    count = len(members)
    weight = 2.0 * np.arange(1, count + 1) - count - 1
    return 2 * np.tensordot(weight, np.sort(members, axis=0), axes=1)


def crps(members: Array, truth: Array) -> tuple[Array, Array]:
    """The fair and the biased CRPS, in the unit of the field; the fair one is NaN for a single member.

    Arguments:
        members: `[M, ...]`.
        truth: `[...]`.
    """
    count = len(members)
    error = members - truth  # small numbers, so that sums of their differences keep their digits
    distance = np.abs(error).mean(0)
    pairs = absolute_differences(error)
    biased = distance - pairs / (2 * count**2)
    fair = distance - pairs / (2 * count * (count - 1)) if count > 1 else np.full_like(biased, np.nan)
    return fair, biased


def squared_distances(error: Array, weight: Array) -> Array:
    """Weighted sums of squared differences of errors e_i = x_i − y: to the truth and to each other.

    Arguments:
        error: `[M, points]`.
        weight: `[points]`.

    Returns:
        `[M + 1, M + 1]`, the truth last; add them over chunks before `energy_score`.
    """
    scaled = error * np.sqrt(weight)
    rows = np.concatenate([scaled, np.zeros_like(scaled[:1])])
    gram = rows @ rows.T
    square = np.diag(gram)
    return np.maximum(square[:, None] + square - 2 * gram, 0)


def energy_score(squares: Array, weight: float) -> float:
    """The fair energy score, with the norm ‖x‖² = Σ w x² / Σ w, in the unit of the field; NaN for a single member.

    Arguments:
        squares: what `squared_distances` gave, added over chunks.
        weight: Σ w.
    """
    count = len(squares) - 1
    if count < 2:
        return float("nan")
    distance = np.sqrt(squares / weight)
    pairs = distance[:-1, :-1].sum()
    return float(distance[-1, :-1].mean() - pairs / (2 * count * (count - 1)))


def ranks(members: Array, truth: Array, uniform: Array) -> NDArray[np.intp]:
    """The truth's rank among the members, 0 … M; ties are broken at random.

    Arguments:
        members: `[M, ...]`.
        truth: `[...]`.
        uniform: numbers in [0, 1) that break the ties, `[...]`.
    """
    below = (members < truth).sum(0)
    ties = (members == truth).sum(0)
    return below + np.floor(uniform * (ties + 1)).astype(np.intp)


def event_table(members: Array, truth: Array, threshold: Array | float, weight: Array) -> Array:
    """Weights of the points where k members exceed a threshold and the truth does (column 1) or not (column 0).

    All scores of the event follow from this table (`event_scores`), and tables add.

    Arguments:
        members: `[M, points]`.
        truth, weight: `[points]`.
        threshold: a number, or one for each point.

    Returns:
        `[M + 1, 2]`.
    """
    k = (members > threshold).sum(0)
    seen = truth > threshold
    count = len(members)
    sums = np.bincount(2 * k + seen, weights=weight, minlength=2 * (count + 1))
    return np.asarray(sums, dtype=np.float64).reshape(count + 1, 2)


def event_scores(table: Array) -> dict[str, Array]:
    """Scores of an event from tables `[..., M + 1, 2]`.

    `brier` is that of the probability k / M; `brier_fair` takes off its expected excess, p (1 − p) / (M − 1) (Ferro 2014);
    `brier_skill` is of the fair score, or of the biased one for a single member, against the event's frequency in the
    truth of this sample. `csi`, `hit_rate`, `false_alarm_ratio` and `frequency_bias` are of the forecast that says yes
    when at least half of the members do.
    """
    count = table.shape[-2] - 1
    p = np.arange(count + 1) / count
    total = table.sum((-2, -1))
    no, yes = table[..., 0], table[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = yes.sum(-1) / total
        brier = (no @ p**2 + yes @ (1 - p) ** 2) / total
        excess = (no + yes) @ (p * (1 - p)) / total
        fair = brier - excess / (count - 1) if count > 1 else np.full_like(brier, np.nan)
        said = p >= 0.5
        hits, alarms, misses = yes[..., said].sum(-1), no[..., said].sum(-1), yes[..., ~said].sum(-1)
        return {
            "rate": rate,
            "brier": brier,
            "brier_fair": fair,
            "brier_skill": 1 - (fair if count > 1 else brier) / (rate * (1 - rate)),
            "csi": hits / (hits + misses + alarms),
            "hit_rate": hits / (hits + misses),
            "false_alarm_ratio": alarms / (hits + alarms),
            "frequency_bias": (hits + alarms) / (hits + misses),
        }


def reliability(table: Array) -> dict[str, Array]:
    """The reliability diagram of a table `[M + 1, 2]`: forecast probability, observed frequency, share of the points."""
    count = len(table) - 1
    total = table.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "probability": np.arange(count + 1) / count,
            "frequency": table[:, 1] / total,
            "share": total / total.sum(),
        }
