"""Plots of densities, plasmas and atoms for `perrin view`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.modalities.particle.hdf5 import open_hdf5
from perrin.modalities.particle.view import Curve, figure, histogram, image

Array = NDArray[np.float64]


def densities(names: list[str]) -> list[str]:
    """Of fields of two dimensions: values, power by wave number, fields at the first and the last time."""
    import torch

    from perrin.modalities.particle.flow.densities import power
    from perrin.modalities.particle.flow.files import read_flow

    sets = [read_flow(n) for n in names]
    last = [s.values[:, -1] for s in sets]
    spectra = [power(torch.from_numpy(x) - 1).mean(0).numpy()[1:] for x in last]
    out = [
        histogram("ln(density + 0.1), last time", *_pair([np.log(x.ravel()[:500_000] + 0.1) for x in last])),
        figure(
            "power by wave number, last time, log10",
            Curve(np.arange(1.0, len(spectra[0]) + 2), *_pair(spectra)),
            log=True,
        ),
    ]
    for k in range(min(3, len(sets[0]))):
        for t in sorted({0, sets[0].values.shape[1] - 1}):
            time = sets[0].begin + t * sets[0].interval
            field = np.log1p(sets[0].values[k, t].astype(np.float64))
            out.append(image(f"run {k}, a = {math.exp(time):.2g}: ln(1 + density)", field))
    return out


def plasmas(names: list[str]) -> list[str]:
    """Energies in time of the first runs, and phase space at four times."""
    sets = [_read(n, ("phase_space", "time", "field_energy", "kinetic_energy")) for n in names]
    first = sets[0]
    time = _edges(first["time"])
    field = [s["field_energy"].mean(0)[: len(time) - 1] for s in sets]
    out = [figure("mean energy of the field in time, log10", Curve(time, *_pair(field)), log=True)]
    whole = [s["field_energy"] + s["kinetic_energy"] for s in sets]
    drift = [np.abs(w / w[:, :1] - 1).max(0)[: len(time) - 1] for w in whole]
    out.append(figure("largest relative change of the whole energy", Curve(time, *_pair(drift))))
    for k in range(min(2, len(first["phase_space"]))):
        for t in sorted({round(x * (len(time) - 2)) for x in (0, 1 / 3, 2 / 3, 1)}):
            out.append(
                image(f"run {k}, time {first['time'][t]:.3g}: f(x, v)", first["phase_space"][k, t][::-1])
            )
    return out


def atoms(names: list[str]) -> list[str]:
    """Temperatures and energies in time, speeds, and the pair correlation."""
    wanted = ("positions", "velocities", "time", "temperature", "potential_energy", "kinetic_energy", "cell")
    sets = [_read(n, wanted) for n in names]
    time = _edges(sets[0]["time"])
    count = len(time) - 1
    whole = [s["kinetic_energy"] + s["potential_energy"] for s in sets]
    found = [pairs(s["positions"], s["cell"]) for s in sets]
    return [
        figure(
            "mean temperature in time, K",
            Curve(time, *_pair([s["temperature"].mean(0)[:count] for s in sets])),
        ),
        figure(
            "largest change of the whole energy, eV",
            Curve(time, *_pair([np.abs(w - w[:, :1]).max(0)[:count] for w in whole])),
        ),
        histogram(
            "speed, Å/fs",
            *_pair([np.linalg.norm(s["velocities"], axis=-1).ravel()[:500_000] for s in sets]),
        ),
        figure(
            "pair correlation g(r), r to half the box, Å", Curve(found[0][0], *_pair([p[1] for p in found]))
        ),
    ]


def pairs(positions: Array, cell: Array, frames: int = 40) -> tuple[Array, Array]:
    """Edges of r and g(r) of some frames evenly taken."""
    flat = positions.reshape(-1, *positions.shape[2:])
    flat = flat[:: max(1, len(flat) // frames)][:frames]
    edges = np.linspace(0, 0.5 * float(cell.min()), 61)
    found, rows = np.zeros(60), np.triu_indices(flat.shape[1], 1)
    for frame in flat:
        away = frame[rows[0]] - frame[rows[1]]
        away -= cell * np.round(away / cell)
        found += np.histogram(np.linalg.norm(away, axis=-1), edges)[0]
    ideal = 4 / 3 * math.pi * np.diff(edges**3) / float(np.prod(cell)) * len(rows[0]) * len(flat)
    return edges, found / ideal


def _read(path: str | Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Variables of a file, whole.

    Raises:
        PerrinError: one is not there.
    """
    from perrin.errors import PerrinError

    with open_hdf5(path) as file:
        missing = [n for n in names if n not in file]
        if missing:
            raise PerrinError(f"expected {', '.join(missing)} in {path}, given a file without: make it again")
        return {n: np.asarray(file[n], dtype=np.float64) for n in names}


def _edges(time: Array) -> Array:
    """Times as edges of steps."""
    step = time[1] - time[0] if len(time) > 1 else 1.0
    return np.append(time, time[-1] + step)


def _pair(values: list[Array]) -> tuple[Array, Array | None]:
    return values[0], values[1] if len(values) > 1 else None
