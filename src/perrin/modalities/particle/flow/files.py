"""Trajectories of fields: HDF5 with dimension scales (`perrin.modalities.particle.netcdf`).

`vorticity` or `density` `[trajectory, time, y, x]`, or `phase_space` `[trajectory, time, v, x]`; `time` `[time]`; attributes
name the flow's, the universe's or the plasma's parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.particle.hdf5 import open_hdf5
from perrin.modalities.particle.netcdf import SUFFIXES, Variable, check_suffix, write_variables

AXES = {
    "vorticity": ("y", "x"),
    "density": ("y", "x"),
    "phase_space": ("v", "x"),
}
"""Fields that a file may hold, and their axes."""
LONG = {
    "vorticity": "vorticity of a two-dimensional flow, per unit of time",
    "density": "density over its mean",
    "phase_space": "density of electrons in position and velocity, over its mean",
}
TIME = {"vorticity": "time", "density": "logarithm of the scale factor", "phase_space": "time, 1/ω_p"}


@dataclass(frozen=True)
class Trajectories:
    """Fields at even times.

    Arguments:
        values: `[N, T, n, n]`; a density may have one or three sides, for which there is no model.
        interval: between two times.
        words: what else the file says of them.
        name: one of `AXES`.
        begin: the first time.
    """

    values: NDArray[np.float32]
    interval: float
    words: dict[str, Any] = field(default_factory=dict)
    name: str = "vorticity"
    begin: float = 0.0

    def __len__(self) -> int:
        return len(self.values)


def read_flow(path: str | Path) -> Trajectories:
    """The trajectories of a file.

    Raises:
        PerrinError: it cannot be read, or holds something else.
    """
    with open_hdf5(path) as file:
        name = next((n for n in AXES if n in file), None)
        if name is None or "time" not in file:
            raise PerrinError(
                f"expected time and one of {', '.join(AXES)} in {path}, given {', '.join(file) or 'nothing'}: 'perrin data "
                "particle/kolmogorov' and its like make such files"
            )
        w, time = file[name], np.asarray(file["time"], dtype=np.float64)
        axes = f"[trajectory, time, {', '.join(AXES[name])}]"
        if (
            w.ndim != 4
            or w.shape[2] != w.shape[3]
            or w.shape[1] != len(time)
            or 0 in w.shape
            or w.shape[2] % 2
        ):
            raise PerrinError(
                f"expected {name} {axes} on an even square grid in {path}, given {list(w.shape)}"
            )
        data = np.asarray(w, dtype=np.float32)
        words = {
            k: v.item() if isinstance(v, np.generic) else v
            for k, v in file.attrs.items()
            if not k.startswith("_") and k != "Conventions"
        }
    bad = ~np.isfinite(data).all((1, 2, 3))
    if name != "vorticity":
        bad |= data.min((1, 2, 3)) < 0
    if bad.any():
        raise PerrinError(
            f"expected finite {name}{'' if name == 'vorticity' else ' of at least 0'} in {path}, but {bad.sum()} of "
            f"{len(data)} trajectories differ, the first is number {int(bad.argmax())}: leave them out"
        )
    step = np.diff(time)
    if len(step) and not (step.min() > 0 and np.allclose(step, step[0], rtol=1e-4)):
        raise PerrinError(f"expected even, rising times in {path}, given others")
    return Trajectories(data, float(step[0]) if len(step) else 0.0, words, name, float(time[0]))


def field_variables(flow: Trajectories) -> dict[str, Variable]:
    """The field and its coordinates."""
    times, n = flow.values.shape[1], flow.values.shape[-1]
    sides = ("z", "y", "x")[5 - flow.values.ndim :] if flow.name == "density" else AXES[flow.name]
    line = np.arange(n) / n
    found = {"time": Variable(("time",), flow.begin + flow.interval * np.arange(times), TIME[flow.name])}
    if flow.name == "vorticity":
        found |= {k: Variable((k,), 2 * math.pi * line, f"{k}, radians", "radian") for k in sides}
    elif flow.name == "density":
        side = (np.arange(n) + 0.5) / n
        found |= {k: Variable((k,), side, f"comoving {k} over the box's side") for k in sides}
    else:
        rows, columns = sides
        box, top = float(flow.words.get("box", 1.0)), float(flow.words.get("top", 1.0))
        found |= {
            columns: Variable((columns,), box * line, "x, in units of v₀/ω_p"),
            rows: Variable((rows,), top * (2 * (np.arange(n) + 0.5) / n - 1), "velocity over v₀"),
        }
    axes = ("trajectory", "time", *sides)
    return found | {flow.name: Variable(axes, flow.values, LONG[flow.name])}


def write_flow(path: str | Path, flow: Trajectories, more: dict[str, Variable] | None = None) -> None:
    """Write trajectories, atomically, and more variables beside."""
    write_variables(path, field_variables(flow) | (more or {}), flow.words)


__all__ = ["AXES", "SUFFIXES", "Trajectories", "check_suffix", "field_variables", "read_flow", "write_flow"]
