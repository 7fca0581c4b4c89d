"""The metrics of plasmas' phase space against the solver's: charge, momentum, energy, the field's energy, fair CRPS.

Of forecasts of the truth's own starts two references are scored too: persistence, and steps of Vlasov's equation on the same
grid, from which the model starts as well, with charge, momentum and energy kept as the model keeps them.
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
from perrin.modalities.particle.flow.phase_space import PhaseSpace
from perrin.modalities.particle.metrics.distances import Measured, wasserstein
from perrin.modalities.particle.metrics.report import bootstrapped, lined, to_json
from perrin.modalities.particle.netcdf import Variable

_NAN = float("nan")


def energy_variables(flow: Trajectories) -> dict[str, Variable]:
    """Energies that the grid shows, as files of the solver have them."""
    kind = PhaseSpace.of(flow.words, flow.interval)
    told = ("of electrons", "of the electric field")
    found = kind.energies(torch.from_numpy(flow.values))
    return {
        name: Variable(("trajectory", "time"), x.numpy(), f"energy {what} over the box's length, on the grid")
        for name, what, x in zip(("kinetic_energy", "field_energy"), told, found)
    }


def evaluate_plasmas(generated: Trajectories, truth: Trajectories) -> dict[str, Any]:
    """Statistics of states beside the truth's two halves at the same times; for forecasts of the truth's own starts, scores.

    Members of an ensemble follow each other in the file, and its attribute `members` says how many there are.

    Raises:
        PerrinError: other grids or times, another box, or too few trajectories.
    """
    a, b = generated.values, truth.values
    kind = PhaseSpace.of(truth.words, truth.interval)
    other = PhaseSpace.of(generated.words, generated.interval)
    if a.shape[-1] != b.shape[-1] or not all(
        math.isclose(x, y, rel_tol=1e-6) for x, y in ((kind.box, other.box), (kind.top, other.top))
    ):
        raise PerrinError(
            f"expected the truth's grid of {b.shape[-1]} points, box {kind.box:.4g} and top {kind.top:g}, given "
            f"{a.shape[-1]}, {other.box:.4g} and {other.top:g}"
        )
    if len(b) < 2:
        raise PerrinError(f"expected at least 2 trajectories of the truth, given {len(b)}")
    if a.shape[1] > b.shape[1] or not math.isclose(generated.interval, truth.interval, rel_tol=1e-3):
        raise PerrinError(
            f"expected at most the truth's {b.shape[1]} times, {truth.interval:g} apart, given {a.shape[1]}, "
            f"{generated.interval:g} apart"
        )
    b = b[:, : a.shape[1]]
    cut = Trajectories(b, truth.interval, truth.words, truth.name, truth.begin)
    half = len(b) // 2
    base, rest, ours = (torch.from_numpy(x) for x in (b[:half], b[half:], a))
    both = (ours, rest)
    members = int(generated.words.get("members", 1))
    same = a.shape[1] > 1 and forecasts(generated, cut, members)
    own = torch.from_numpy(b[: len(a) // members]) if same else base
    fields = ((own, ours), (base, rest))
    lines = [
        lined("field energy, |ratio − 1| of its mean", (_field(kind, *x) for x in fields), "%"),
        lined("W1 of ln(1 + f)", (_w1(base[:, 1:], x[:, 1:]) for x in both)),
        lined("charge, largest relative change", (_change(x.double().mean((2, 3))) for x in both)),
        lined("momentum, largest change", (_change(_momentum(kind, x), relative=False) for x in both)),
        lined("energy on the grid, largest relative change", (_change(sum(kind.energies(x))) for x in both)),
        lined("smallest f", (Measured(float(x.min()), _NAN) for x in both)),
    ]
    more: dict[str, Any] = {}
    if same:
        start = torch.from_numpy(b[: len(a) // members, 0]).double()
        held = start[:, None].expand(-1, a.shape[1] - 1, -1, -1)
        scale = torch.from_numpy(b[:, 1:].std((0, 2, 3))).double()
        references = {"persistence": held, "a grid solver": _run(kind, start, a.shape[1] - 1)}
        scored, series = scores(generated, cut, members, references, scale)
        lines += scored
        more["series"] = series
    return to_json("phase space", len(a), lines, **more)


def _run(kind: PhaseSpace, start: Tensor, count: int) -> Tensor:
    out = [start]
    for _ in range(count):
        out.append(kind.kept(kind.step(out[-1]), start))
    return torch.stack(out[1:], 1)


def _field(kind: PhaseSpace, base: Tensor, x: Tensor) -> Measured:
    """Of all runs and times after the first, from the truth's, in per cent."""
    p, q = (kind.energies(y)[1][:, 1:].mean() for y in (base, x))
    return Measured(100 * float((q / p - 1).abs()), _NAN)


def _momentum(kind: PhaseSpace, x: Tensor) -> Tensor:
    return (x.double() * kind.velocity(x)).mean((2, 3))


def _change(x: Any, relative: bool = True) -> Measured:
    moved = x / x[:, :1] - 1 if relative else x - x[:, :1]
    return Measured(float(moved.abs().max()), _NAN)


def _w1(base: Tensor, x: Tensor) -> Measured:
    p, q = (np.log1p(y.flatten()[:: 1 + y.numel() // 50_000].numpy()) for y in (base, x))
    return bootstrapped(wasserstein, p, q)
