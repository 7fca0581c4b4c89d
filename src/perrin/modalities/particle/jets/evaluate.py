"""The metrics of jets against a truth: W1, FPD, KPD, FPND and a classifier, each beside truth against truth."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from perrin.errors import PerrinError
from perrin.modalities.particle.jets.files import Jets
from perrin.modalities.particle.jets.fpnd import MISSING, activations, available, fpnd_of
from perrin.modalities.particle.jets.observables import (
    efps,
    jet_observables,
    particle_observables,
    relative_mass,
    w1_polynomials,
)
from perrin.modalities.particle.metrics.classifier import ClassifierOptions, classifier_auc
from perrin.modalities.particle.metrics.distances import Measured, fpd, kpd, wasserstein
from perrin.modalities.particle.metrics.report import Line, bootstrapped, compared, lined, sizes, to_json


def evaluate_jets(
    generated: Jets, truth: Jets, *, kind: str | None = None, classifier: bool = False, splits: int = 3
) -> dict[str, Any]:
    """All metrics, as `perrin.modalities.particle.metrics.report.to_json` writes them.

    Arguments:
        kind: the class, for FPND to the real JetNet30 jets; without it, or without `jetnet`, FPND is left out.
        classifier: also train classifiers on the 36 polynomials with mass, pT and multiplicity.

    Raises:
        PerrinError: too few jets.
    """
    count = sizes(len(generated), len(truth))
    ours, base, other = (
        generated.take(slice(count)),
        truth.take(slice(count)),
        truth.take(slice(count, 2 * count)),
    )
    w1 = partial(bootstrapped, wasserstein)
    lines: list[Line] = []
    for read in (jet_observables, particle_observables):
        seen = [read(jets) for jets in (base, ours, other)]
        lines += [compared(f"W1 {name}", w1, (s[name] for s in seen)) for name in seen[0]]
    lines[0] = _renamed(lines[0], "W1M (relative mass)")
    polynomials = [efps(jets.particles) for jets in (base, ours, other)]
    five = [w1_polynomials(p) for p in polynomials]
    lines.append(compared("W1EFP (mean of 5)", _w1_mean, five))
    lines.append(compared("FPD", fpd, polynomials))
    lines.append(compared("KPD", partial(kpd, size=min(5000, count)), polynomials))
    notes = {"class": kind} if kind else {}
    if kind and available():
        acts = [activations(jets.particles) for jets in (ours, other)]
        lines.append(
            lined(
                "FPND (real JetNet30)",
                (bootstrapped(lambda x, _: fpnd_of(x, kind), a, a, draws=4) for a in acts),
            )
        )
    elif kind:
        notes["FPND"] = f"left out: {MISSING}"
    if classifier:
        features = [_features(j, p) for j, p in zip((base, ours, other), polynomials)]
        options = ClassifierOptions(splits=splits)
        scale = features[0].mean(0), features[0].std(0) + 1e-12
        features = [(f - scale[0]) / scale[1] for f in features]
        lines.append(compared("AUC (EFPs, mass, pT, n)", partial(classifier_auc, options=options), features))
    return to_json("jets", count, lines, **notes)


def guess_class(*names: str) -> str | None:
    """The class that a file's name says, if `jetnet` is here for its FPND."""
    for name in names:
        for kind in ("gluon", "quark", "top"):
            if kind in name.lower():
                return kind if available() else None
    return None


def check_kind(kind: str | None) -> None:
    """Raise a `PerrinError` for a class that is not known."""
    from perrin.modalities.particle.jets.files import CLASSES

    if kind is not None and kind not in CLASSES:
        raise PerrinError(f"expected a class of jets ({', '.join(CLASSES)}), given {kind!r}")


def _renamed(line: Line, name: str) -> Line:
    return Line(name, line.ours, line.floor, line.unit)


def _w1_mean(x: np.ndarray, y: np.ndarray) -> Measured:
    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([wasserstein(a[:, k], b[:, k]) for k in range(a.shape[1])]))

    return bootstrapped(mean, x, y)


def _features(jets: Jets, polynomials: np.ndarray) -> np.ndarray:
    more = np.stack([relative_mass(jets.particles), jets.jets[:, 0], jets.mask.sum(1)], 1)
    return np.concatenate([np.log(polynomials.clip(min=1e-12)), more], 1)
