"""The metrics of trajectories against the solver's: spectra, divergence, energy, fair CRPS, time to correlation 0.8."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from perrin.core.scores import fair_crps
from perrin.errors import PerrinError
from perrin.modalities.particle.flow.files import Trajectories
from perrin.modalities.particle.flow.solver import divergence, energy, spectrum, velocity
from perrin.modalities.particle.metrics.distances import Measured, wasserstein
from perrin.modalities.particle.metrics.report import Line, bootstrapped, lined, to_json

_NAN = float("nan")


def evaluate_flow(generated: Trajectories, truth: Trajectories) -> dict[str, Any]:
    """Statistics of states beside the truth's two halves; for forecasts of the truth's own starts, scores in time too.

    Members of an ensemble follow each other in the file, and its attribute `members` says how many there are.

    Raises:
        PerrinError: other grids, or too few trajectories.
    """
    a, b = generated.values, truth.values
    if a.shape[-1] != b.shape[-1]:
        raise PerrinError(f"expected fields of the truth's grid {b.shape[-1]}, given {a.shape[-1]}")
    if len(b) < 2:
        raise PerrinError(f"expected at least 2 trajectories of the truth, given {len(b)}")
    half = len(b) // 2
    base, other = (torch.from_numpy(x).flatten(0, 1) for x in (b[:half], b[half:]))
    ours = torch.from_numpy(a[:, 1:] if a.shape[1] > 1 else a).flatten(0, 1)
    lines = [
        lined("spectrum, mean |ratio − 1|", (_spectra(base, x) for x in (ours, other)), "%"),
        lined("divergence, largest / largest gradient", (_divergence(x) for x in (ours, other))),
        lined("W1 vorticity", (_w1(base, x) for x in (ours, other))),
        lined(
            "W1 energy",
            (bootstrapped(wasserstein, energy(base).numpy(), energy(x).numpy()) for x in (ours, other)),
        ),
    ]
    members = int(generated.words.get("members", 1))
    more: dict[str, Any] = {}
    if forecasts(generated, truth, members):
        held = torch.from_numpy(truth.values[: len(a) // members, :1]).double()
        right = held.expand(-1, a.shape[1] - 1, -1, -1)
        scored, series = scores(generated, truth, members, {"persistence": right}, torch.tensor(b.std()))
        lines += scored
        more["series"] = series
    return to_json("flow", len(a), lines, **more)


def _spectra(base: torch.Tensor, x: torch.Tensor) -> Measured:
    """Over the shells from 1 up to where the truth's energy falls below 10⁻⁶ of its largest, in per cent."""
    p, q = spectrum(base).mean(0), spectrum(x).mean(0)
    kept = p > 1e-6 * p.max()
    kept[0] = False
    return Measured(100 * float((q / p - 1).abs()[kept].mean()), _NAN)


def _divergence(x: torch.Tensor) -> Measured:
    """Of the velocity in float32, as it would be stored, over the largest vorticity."""
    uv = velocity(x[:64]).float()
    return Measured(float(divergence(uv).abs().max() / x[:64].abs().max()), _NAN)


def _w1(base: torch.Tensor, x: torch.Tensor) -> Measured:
    return bootstrapped(wasserstein, base.flatten()[:: 1 + base.numel() // 50_000].numpy(),
                        x.flatten()[:: 1 + x.numel() // 50_000].numpy())  # fmt: skip


def forecasts(generated: Trajectories, truth: Trajectories, members: int) -> bool:
    """Whether these are forecasts of the truth's first trajectories, with so many members each."""
    count = len(generated) // members
    same = count <= len(truth) and generated.values.shape[1] <= truth.values.shape[1]
    starts = generated.values[::members, 0]
    return same and starts.shape[0] == count and np.allclose(starts, truth.values[:count, 0], atol=1e-5)


def scores(
    generated: Trajectories,
    truth: Trajectories,
    members: int,
    references: dict[str, torch.Tensor],
    scale: torch.Tensor,
) -> tuple[list[Line], dict[str, Any]]:
    """Fair CRPS and correlations in time, beside those of references.

    Arguments:
        references: single forecasts `[N, T − 1, n, n]` by name.
        scale: σ, `[]` or `[T − 1]`.
    """
    shape = generated.values.shape
    ours = torch.from_numpy(generated.values).reshape(-1, members, *shape[1:])[:, :, 1:].double()
    right = torch.from_numpy(truth.values[: len(ours), 1 : shape[1]]).double()
    crps = {"": fair_crps(ours.transpose(0, 1), right).mean((-2, -1)) / scale}  # [N, T]
    correlation = {"": _correlation(ours[:, 0], right)}
    for name, other in references.items():
        crps[f" of {name}"] = (other - right).abs().mean((-2, -1)) / scale
        correlation[f" of {name}"] = _correlation(other, right)

    def error(x: torch.Tensor) -> float:
        return float(x.std() / np.sqrt(len(x))) if len(x) > 1 else _NAN

    # another run of the solver would be the same: there is no truth against truth
    none = Measured(_NAN, _NAN)
    lines = []
    last = crps[""].shape[1] - 1
    for k in sorted({0, min(3, last), last}):
        after = f"/ σ after {k + 1} interval{'s' if k else ''}"
        for name, x in crps.items():
            lines.append(
                Line(f"fair CRPS{name} {after}", Measured(float(x[:, k].mean()), error(x[:, k])), none)
            )
    for name, c in correlation.items():
        time = Measured(_time_to(c.mean(0), generated.interval), _NAN)
        lines.append(Line(f"time to correlation 0.8{name}", time, none, "time"))
    series = {
        "interval": generated.interval,
        "crps": crps[""].mean(0).tolist(),
        "correlation_of_mean": _correlation(ours.mean(1), right).mean(0).tolist(),
        "correlation": correlation[""].mean(0).tolist(),
    }
    return lines, series


def _correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of fields less their means, `[N, T]`."""
    x, y = (z - z.mean((-2, -1), keepdim=True) for z in (x, y))
    top = (x * y).mean((-2, -1))
    return top / (x.square().mean((-2, -1)) * y.square().mean((-2, -1))).sqrt()


def _time_to(correlation: torch.Tensor, interval: float) -> float:
    """When a falling correlation passes 0.8, by linear interpolation from 1 at time 0; the last time if it never does."""
    values = [1.0, *correlation.tolist()]
    for k in range(1, len(values)):
        if values[k] < 0.8:
            return interval * (k - 1 + (values[k - 1] - 0.8) / (values[k - 1] - values[k]))
    return interval * (len(values) - 1)
