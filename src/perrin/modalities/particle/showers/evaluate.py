"""The metrics of showers against a truth, each beside truth against truth.

- classifier AUC on voxels (low) and on features (high), CaloChallenge's;
- FPD and KPD of the high-level features; separation power of their histograms;
- response: mean deposited over incident energy, relative to the truth's; by bins of energy its linearity (largest
  deviation from its own mean) and the resolution σ/mean, and the fit σ/E = √(a²/E + b²), E in GeV;
- shapes: W1 of depth, width and sparsity; mean profiles along layers and radii, relative;
- rotation symmetry: the χ² per degree of freedom of the mean energy in the 16 angles against a flat one, with the scatter
  of the showers; 1 for showers that know no angle.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from perrin.modalities.particle.metrics.classifier import ClassifierOptions, classifier_auc
from perrin.modalities.particle.metrics.distances import Measured, fpd, kpd, separation_of, wasserstein
from perrin.modalities.particle.metrics.report import Line, bootstrapped, compared, lined, sizes, to_json
from perrin.modalities.particle.showers.features import Features, features, high_level, low_level
from perrin.modalities.particle.showers.files import Showers
from perrin.modalities.particle.showers.geometry import ANGLES, LAYERS, RADII

BINS = 8
"""Bins of incident energy, equally full."""
_NAN = float("nan")


def evaluate_showers(
    generated: Showers, truth: Showers, *, classifier: bool = True, splits: int = 3, device: str = "cpu"
) -> dict[str, Any]:
    """All metrics, as `perrin.modalities.particle.metrics.report.to_json` writes them.

    Arguments:
        classifier: train the classifiers, which takes most of the time.
        splits: trainings of each.

    Raises:
        PerrinError: too few showers.
    """
    count = sizes(len(generated), len(truth))
    parts = [truth.take(slice(count)), generated.take(slice(count)), truth.take(slice(count, 2 * count))]
    seen = [features(part) for part in parts]
    lines: list[Line] = []
    if classifier:
        options = partial(classifier_auc, options=ClassifierOptions(splits=splits), device=device)
        lines.append(compared("AUC low (voxels)", options, map(low_level, parts)))
        lines.append(compared("AUC high (features)", options, map(high_level, seen)))
    high = [high_level(f) for f in seen]
    lines.append(compared("FPD · 10³", lambda x, y: _times(fpd(x, y), 1e3), high))
    lines.append(compared("KPD · 10³", lambda x, y: _times(kpd(x, y, size=min(5000, count)), 1e3), high))
    ratio = partial(bootstrapped, lambda x, y: 100 * float(y.mean() / x.mean() - 1))
    lines.append(compared("response, from truth's", ratio, (f.response for f in seen), unit="%"))
    lines.append(lined("linearity", (Measured(100 * linearity(f), _NAN) for f in seen[1:]), "%"))
    lines.append(compared("resolution, largest ratio − 1", resolution_ratio, seen, unit="%"))
    w1 = partial(bootstrapped, wasserstein)
    lines.append(compared("W1 depth", w1, (f.depth for f in seen), unit="layers"))
    lines.append(compared("W1 response", w1, (f.response for f in seen)))
    lines.append(compared("W1 width", w1, (_weighted(f.width_eta, f) for f in seen), unit="mm"))
    lines.append(compared("W1 radius", w1, (_weighted(f.centre_r, f) for f in seen), unit="mm"))
    lines.append(compared("W1 sparsity", w1, (f.sparsity.mean(1) for f in seen)))
    lines.append(compared("separation, mean of features", separations, seen))
    lines.append(compared("separation, voxel energy", _voxels, parts))
    lines.append(compared("profile in depth", partial(_profile, axis=(0, 2, 3)), parts, unit="%"))
    lines.append(compared("profile in radius", partial(_profile, axis=(0, 1, 2)), parts, unit="%"))
    lines.append(lined("rotation, χ² per degree", (Measured(rotation(p), _NAN) for p in parts[1:])))
    return to_json("showers", count, lines, resolution=[resolution_fit(f) for f in seen])


def energy_bins(f: Features) -> list[np.ndarray]:
    """Rows of each of at most 8 equally full bins of incident energy."""
    return np.array_split(np.argsort(f.incident, kind="stable"), min(BINS, max(len(f.incident) // 10, 1)))


def linearity(f: Features) -> float:
    """The largest deviation of a bin's mean response from the mean response, relative."""
    means = np.array([f.response[rows].mean() for rows in energy_bins(f)])
    return float(np.abs(means / f.response.mean() - 1).max())


def resolutions(f: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean incident energy (GeV) and σ/mean of the response, in each bin."""
    rows = energy_bins(f)
    spread = np.array([f.response[r].std(ddof=1) / f.response[r].mean() for r in rows])
    return np.array([f.incident[r].mean() / 1000 for r in rows]), spread


def resolution_fit(f: Features) -> dict[str, float]:
    """a (√GeV) and b of σ/E = √(a²/E + b²), by least squares of the squares, none below 0."""
    from scipy.optimize import nnls

    energy, spread = resolutions(f)
    found, _ = nnls(np.stack([1 / energy, np.ones_like(energy)], 1), spread**2)
    return {"stochastic": float(np.sqrt(found[0])), "constant": float(np.sqrt(found[1]))}


def resolution_ratio(truth: Features, ours: Features) -> Measured:
    """The largest relative difference of a bin's resolution from the truth's, in per cent."""
    a, b = resolutions(truth)[1], resolutions(ours)[1]
    n = len(truth.incident) / len(a)
    return Measured(100 * float(np.abs(b[: len(a)] / a - 1).max()), 100 / np.sqrt(n))


def separations(truth: Features, ours: Features) -> Measured:
    """The mean separation power of the layers' energies, centres, widths and sparsities."""
    found = [separation_of(truth.layers[:, k], ours.layers[:, k], log=True) for k in range(LAYERS)]
    for name in ("centre_eta", "centre_phi", "width_eta", "width_phi", "sparsity"):
        a, b = getattr(truth, name), getattr(ours, name)
        found += [separation_of(a[:, k], b[:, k]) for k in range(LAYERS)]
    return Measured(float(np.mean(found)), _NAN)


def rotation(showers: Showers) -> float:
    """χ² per degree of freedom of the mean share of energy in each angle against 1/16.

    With the covariance of the shares over the showers; one degree is lost, because shares add to one.
    """
    share = showers.voxels.reshape(-1, LAYERS, ANGLES, RADII).sum((1, 3), dtype=np.float64)
    share = (share / np.maximum(share.sum(1, keepdims=True), 1e-16))[:, :-1]
    shift = share.mean(0) - 1 / ANGLES
    inverse = np.linalg.pinv(np.cov(share, rowvar=False) / len(share))
    return float(shift @ inverse @ shift / (ANGLES - 1))


def _weighted(x: np.ndarray, f: Features) -> np.ndarray:
    return np.asarray((x * f.layers).sum(1) / np.maximum(f.total, 1e-16))


def _profile(truth: Showers, ours: Showers, axis: tuple[int, ...]) -> Measured:
    """Σ |p − q| / Σ p of the mean energy along an axis, in per cent."""
    p, q = (
        (s.voxels / s.incident[:, None]).reshape(-1, LAYERS, ANGLES, RADII).sum(axis, dtype=np.float64)
        / len(s)
        for s in (truth, ours)
    )
    return Measured(100 * float(np.abs(p - q).sum() / p.sum()), _NAN)


def _voxels(truth: Showers, ours: Showers) -> Measured:
    a, b = truth.voxels, ours.voxels
    return Measured(separation_of(a[a > 0], b[b > 0], log=True), _NAN)


def _times(m: Measured, factor: float) -> Measured:
    return Measured(m.value * factor, m.error * factor)
