"""Trajectories of flows: HDF5 with dimension scales, which is NetCDF-4 to whoever reads that.

`vorticity` `[trajectory, time, y, x]`, `time` `[time]`, `y` and `x` in radians; attributes name the flow's parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.particle.hdf5 import new_hdf5, open_hdf5

SUFFIXES = (".h5", ".hdf5", ".nc")


@dataclass(frozen=True)
class Trajectories:
    """Vorticities at even times.

    Arguments:
        vorticity: `[N, T, n, n]`.
        interval: between two times.
        words: what else the file says of them.
    """

    vorticity: NDArray[np.float32]
    interval: float
    words: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vorticity)


def check_suffix(path: str | Path) -> None:
    """Raise a `PerrinError` unless trajectories can be written to a file of that name."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise PerrinError(
            f"expected a file of flows ({', '.join(SUFFIXES)}), given {path}: change its suffix"
        )


def read_flow(path: str | Path) -> Trajectories:
    """The trajectories of a file.

    Raises:
        PerrinError: it cannot be read, or holds something else.
    """
    with open_hdf5(path) as file:
        if "vorticity" not in file or "time" not in file:
            raise PerrinError(
                f"expected vorticity and time in {path}, given neither or one: is it a file of flows?"
            )
        w, time = file["vorticity"], np.asarray(file["time"], dtype=np.float64)
        if (
            w.ndim != 4
            or w.shape[2] != w.shape[3]
            or w.shape[1] != len(time)
            or 0 in w.shape
            or w.shape[2] % 2
        ):
            raise PerrinError(
                f"expected vorticity [trajectory, time, y, x] on an even square grid in {path}, given {list(w.shape)}"
            )
        data = np.asarray(w, dtype=np.float32)
        words = {
            k: v.item() if isinstance(v, np.generic) else v
            for k, v in file.attrs.items()
            if not k.startswith("_")
        }
    bad = ~np.isfinite(data).all((1, 2, 3))
    if bad.any():
        raise PerrinError(
            f"expected finite vorticity in {path}, but {bad.sum()} of {len(data)} trajectories differ, the first is "
            f"number {int(bad.argmax())}: leave them out"
        )
    step = np.diff(time)
    if len(step) and not (step.min() > 0 and np.allclose(step, step[0], rtol=1e-4)):
        raise PerrinError(f"expected even, rising times in {path}, given others")
    return Trajectories(data, float(step[0]) if len(step) else 0.0, words)


def write_flow(path: str | Path, flow: Trajectories) -> None:
    """Write trajectories, atomically."""
    check_suffix(path)

    count, times, n, _ = flow.vorticity.shape
    line = 2 * math.pi * np.arange(n) / n
    with new_hdf5(path) as file:
        axes = {
            "trajectory": np.arange(count),
            "time": flow.interval * np.arange(times),
            "y": line,
            "x": line,
        }
        for name, values in axes.items():
            file.create_dataset(name, data=values).make_scale(name)
        w = file.create_dataset(
            "vorticity", data=flow.vorticity, compression="gzip", compression_opts=4, shuffle=True
        )
        for k, name in enumerate(axes):
            w.dims[k].attach_scale(file[name])
        w.attrs["long_name"] = "vorticity of a two-dimensional flow, per unit of time"
        for key, value in flow.words.items():
            file.attrs[key] = value
