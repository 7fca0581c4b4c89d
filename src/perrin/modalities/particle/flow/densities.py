"""The metrics of densities of bodies against the solver's: power, mass, fair CRPS, and what stays correlated at which scale.

Of forecasts of the truth's own starts two references are scored too: persistence, and linear theory, in which the contrast
grows as the scale factor, `δ(η + Δη) = e^{Δη} δ(η)`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perrin.errors import PerrinError
from perrin.modalities.particle.flow.evaluate import forecasts, scores
from perrin.modalities.particle.flow.files import Trajectories
from perrin.modalities.particle.metrics.distances import Measured, wasserstein
from perrin.modalities.particle.metrics.report import Line, bootstrapped, lined, to_json

_NAN = float("nan")


def power(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Mean of `Re(x_k* y_k)` in shells of wave numbers that round to 0 … n/2 of fields `[..., n, n]`, `[..., n/2 + 1]`;
    of one field with itself its power. The whole transform is divided by n², so that a shell's waves add up to ⟨x y⟩."""
    n = x.shape[-1]
    a = torch.fft.fft2(x.double()) / n**2
    b = a if y is None else torch.fft.fft2(y.double()) / n**2
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    shell = (k[:, None] ** 2 + k[None, :] ** 2).sqrt().round().long().flatten()
    product = (a.conj() * b).real.flatten(-2)
    out = product.new_zeros(*product.shape[:-1], int(shell.max()) + 1)
    out.index_add_(-1, shell, product)
    waves = torch.bincount(shell).to(out)
    return (out / waves)[..., : n // 2 + 1]


def evaluate_densities(generated: Trajectories, truth: Trajectories) -> dict[str, Any]:
    """Statistics of states beside the truth's two halves at the same times; for forecasts of the truth's own starts, scores.

    Members of an ensemble follow each other in the file, and its attribute `members` says how many there are.

    Raises:
        PerrinError: other grids or times, or too few trajectories.
    """
    a, b = generated.values, truth.values
    if a.shape[-1] != b.shape[-1]:
        raise PerrinError(f"expected fields of the truth's grid {b.shape[-1]}, given {a.shape[-1]}")
    if len(b) < 2:
        raise PerrinError(f"expected at least 2 trajectories of the truth, given {len(b)}")
    same = (
        a.shape[1] == 1 or b.shape[1] == 1 or math.isclose(generated.interval, truth.interval, rel_tol=1e-3)
    )
    offset = (generated.begin - truth.begin) / (truth.interval or 1.0)
    first = round(offset)
    if not same or abs(offset - first) > 1e-3 or first < 0 or first + a.shape[1] > b.shape[1]:
        raise PerrinError(
            f"expected times of the truth, ln a = {truth.begin:.3g} and on in {truth.interval:.3g}, given "
            f"{generated.begin:.3g} and {generated.interval:.3g}"
        )
    b = b[:, first : first + a.shape[1]]
    cut = Trajectories(b, truth.interval, truth.words, truth.name, generated.begin)
    later = slice(1, None) if a.shape[1] > 1 else slice(None)
    half = len(b) // 2
    base, other, ours = (torch.from_numpy(x[:, later]) for x in (b[:half], b[half:], a))
    both = (ours, other)
    lines = [
        lined("power, mean |ratio − 1|", (_ratio(base, x) for x in both), "%"),
        lined(
            "power at the last time, mean |ratio − 1|", (_ratio(base[:, -1:], x[:, -1:]) for x in both), "%"
        ),
        lined("mass, largest relative change", (_mass(x) for x in (a, b[half:]))),
        lined("smallest density", (Measured(float(x.min()), _NAN) for x in both)),
        lined("W1 density", (_w1(base, x) for x in both)),
        lined("W1 density at the last time", (_w1(base[:, -1], x[:, -1]) for x in both)),
    ]
    members = int(generated.words.get("members", 1))
    more: dict[str, Any] = {}
    if a.shape[1] > 1 and forecasts(generated, cut, members):
        start = torch.from_numpy(b[: len(a) // members, :1]).double()
        growth = torch.exp(generated.interval * torch.arange(1, a.shape[1]).double())[:, None, None]
        held = start.expand(-1, a.shape[1] - 1, -1, -1)
        scored, series = scores(
            generated,
            cut,
            members,
            {"persistence": held, "linear theory": 1 + growth * (start - 1)},
            torch.from_numpy(b[:, 1:].std((0, 2, 3))).double(),
        )
        lines += scored + _kept(generated, cut, members)
        more["series"] = series
    return to_json("density", len(a), lines, **more)


def _ratio(base: Tensor, x: Tensor) -> Measured:
    """Over the shells from 1 to the highest, each time for itself, in per cent."""
    p, q = (power(y - 1).mean(0)[:, 1:] for y in (base, x))
    return Measured(100 * float((q / p - 1).abs().mean()), _NAN)


def _mass(x: np.ndarray) -> Measured:
    mass = x.mean((2, 3), dtype=np.float64)
    return Measured(float(np.abs(mass / mass[:, :1] - 1).max()), _NAN)


def _w1(base: Tensor, x: Tensor) -> Measured:
    p, q = (y.flatten()[:: 1 + y.numel() // 50_000].numpy() for y in (base, x))
    return bootstrapped(wasserstein, p, q)


def _kept(generated: Trajectories, truth: Trajectories, members: int) -> list[Line]:
    """Correlation of a member, of the members' mean and of the start (and so of linear theory) with the truth at the last
    time, by wave number; a perfect ensemble's member is correlated with the truth as two of its members are."""
    a = torch.from_numpy(generated.values[:, -1]).double() - 1
    a = a.reshape(-1, members, *a.shape[1:])
    right = torch.from_numpy(truth.values[: len(a), -1]).double() - 1
    start = torch.from_numpy(truth.values[: len(a), 0]).double() - 1
    none = Measured(_NAN, _NAN)

    def r(x: Tensor, y: Tensor) -> Tensor:
        return power(x, y).mean(0) / (power(x).mean(0) * power(y).mean(0)).sqrt()

    found = {"a member": r(a[:, 0], right), "the members' mean": r(a.mean(1), right)}
    floor = r(a[:, 0], a[:, 1]) if members > 1 else None
    found["the start"] = r(start, right)
    lines = []
    n = a.shape[-1]
    for k in (n // 8, n // 4, n // 2):
        for name, value in found.items():
            two = Measured(float(floor[k]), _NAN) if floor is not None and name == "a member" else none
            what = f"correlation of {name} at wave {k}, last time"
            lines.append(Line(what, Measured(float(value[k]), _NAN), two))
    return lines
