"""Weather without a download: the moist general circulation model SPEEDY as the package `jcm` has it (JAX, Apache-2.0).

SPEEDY (Molteni 2003) has 8 levels σ = p/p_s; at T31 its Gaussian grid has 48 × 96 points. Orography, land, sea surface
temperature and ice are those that come with the package, repeated every year; ozone is analytic. What is kept are the
fields of `FIELDS` on the model's own grid, a subset of the state: what a forecaster sees of the atmosphere.

A run is cut into chunks. After each one its fields are in the store and the whole state of the model in a checkpoint, so
that a run that was stopped goes on and ends with the same bits.

Perturbed states are x + s (a − b), with a and b states of other times (random field perturbations; Magnusson, Nycander
& Källén 2009): balanced as the model is, and as large as an analysis error for s near 0.1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from perrin.errors import PerrinError, install
from perrin.modalities.weather.stores import create_store, finish, write_region
from perrin.run.atomic import write_json
from perrin.run.partial import read_key

Array = NDArray[np.float32]

FIELDS: dict[str, tuple[str, int | None, float, str, str]] = {
    "zg510": ("geopotential", 4, 1 / 9.81, "geopotential_height", "m"),
    "ta835": ("temperature", 6, 1.0, "air_temperature", "K"),
    "hus835": ("specific_humidity", 6, 1.0, "specific_humidity", "1"),
    "ua835": ("u_wind", 6, 1.0, "eastward_wind", "m s-1"),
    "va835": ("v_wind", 6, 1.0, "northward_wind", "m s-1"),
    "ua340": ("u_wind", 3, 1.0, "eastward_wind", "m s-1"),
    "va340": ("v_wind", 3, 1.0, "northward_wind", "m s-1"),
    "ps": ("normalized_surface_pressure", None, 1e5, "surface_air_pressure", "Pa"),
}
"""Name: the model's field, its level from the top, a factor, CF's standard name and unit. 510 is σ = 0.51, as 500 hPa."""


class Speedy:
    """The model at T31, its state, and how to move it.

    Arguments:
        interval: hours between the states that `run` returns; a divisor of 24.
        step: of the model, minutes.

    Raises:
        PerrinError: the package is not there.
    """

    def __init__(self, interval: int = 12, step: int = 15) -> None:
        if importlib.util.find_spec("jcm") is None:
            raise PerrinError(
                f"expected the package jcm for SPEEDY, which is not installed: {install('speedy')}"
            )
        if interval < 1 or 24 % interval:
            raise PerrinError(f"expected an interval of hours that divides 24, given {interval}")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jcm
            from jcm.configurations import load

            folder = Path(str(jcm.__file__)).parent / "data" / "bc" / "t30" / "clim"
            found = load(
                "speedy-t31",
                **{
                    "terrain.file": str(folder / "terrain.nc"),
                    "forcing.file": str(folder / "forcing.nc"),
                    "forcing.align": "wrap_year",
                    "forcing.ozone_file": "analytic",
                    "run.time_step": step,
                },
            )
        self.interval, self.model, self.forcing = interval, found.model, found.forcing
        self.model.bootstrap_state(None)
        grid = self.model.coords.horizontal
        self.latitude = np.degrees(np.asarray(grid.latitudes, dtype=np.float64))
        self.longitude = np.degrees(np.asarray(grid.longitudes, dtype=np.float64))

    @property
    def constants(self) -> dict[str, Array]:
        """Orography (m) and the share of land, `[latitude, longitude]`."""
        terrain = self.model.terrain
        return {"orog": _grid(terrain.orog), "sftlf": _grid(terrain.fmask)}

    def run(self, days: int) -> tuple[NDArray[np.datetime64], dict[str, Array]]:
        """Go on for some days.

        Returns:
            Times, and the fields `[time, latitude, longitude]` of `FIELDS`.

        Raises:
            PerrinError: the model has blown up.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.model.resume(
                forcing=self.forcing, save_interval=f"{self.interval} hours", total_time=days
            )
        states = {}
        for name, (source, level, factor, _, _) in FIELDS.items():
            x = np.asarray(getattr(found.dynamics, source))
            states[name] = _grid(x if level is None else x[:, level]) * np.float32(factor)
            if not np.isfinite(states[name]).all():
                raise PerrinError(
                    f"expected finite {name} from SPEEDY, given others: report the run's settings"
                )
        return np.asarray(found.time_labels()).astype("datetime64[s]"), states

    def save(self, path: str | Path) -> None:
        """Write the whole state of the model."""
        from jcm.checkpoint import save_checkpoint

        temporary = Path(path).with_suffix(".tmp")
        save_checkpoint(self.model, str(temporary))
        os.replace(temporary, path)

    def restore(self, path: str | Path) -> None:
        """Take up the state of a file that `save` wrote."""
        from jcm.checkpoint import load_checkpoint

        load_checkpoint(self.model, str(path))

    def state(self) -> Any:
        """The dynamical state, a tree of arrays."""
        return self.model.dycore_state

    def perturb(self, a: Any, b: Any, size: float) -> None:
        """Add `size` times the difference of two dynamical states to the present one."""
        import jax

        def add(x: Any, y: Any, z: Any) -> Any:
            return x + size * (y - z) if getattr(x, "ndim", 0) >= 2 else x  # the clock is left alone

        state = jax.tree_util.tree_map(add, self.state(), a, b)
        run = self.model.run_state
        self.model._record_state(state, run.physics, run.time, run.step)


def _grid(x: Any) -> Array:
    """`[…, longitude, latitude]` as `[…, latitude, longitude]`."""
    return np.ascontiguousarray(np.swapaxes(np.asarray(x, dtype=np.float32), -1, -2))


def produce(
    out: str | Path, *, days: int, spinup: int = 365, interval: int = 12, chunk: int = 30
) -> dict[str, Any]:
    """Write a run of the model as a Zarr store; one that was stopped goes on from its last chunk.

    Arguments:
        out: the store, made when all of it is there; what is unfinished lies in `OUT.partial`.
        days: to write.
        spinup: days before, from rest, that are not written.
        interval: hours between states.
        chunk: days between two checkpoints.

    Returns:
        The number of states and of those that were there already.

    Raises:
        PerrinError: jcm is missing, numbers are out of range, the folder has another run.
    """
    for name, value, least in (("days", days, 1), ("spinup", spinup, 0), ("chunk", chunk, 1)):
        if value < least:
            raise PerrinError(f"expected {name} of at least {least}, given {value}")
    out = Path(out)
    folder = out.with_name(out.name + ".partial")
    key = {"days": days, "spinup": spinup, "interval": interval, "chunk": chunk}
    found = read_key(folder, key)
    model = Speedy(interval)
    done = -spinup  # days written; below 0 while it spins up
    if found and (folder / "state").is_file():
        done = _progress(folder)
        model.restore(folder / "state")
    before = max(done, 0)
    store = folder / "data.zarr"
    while done < days:
        length = min(chunk, days - done if done >= 0 else -done)
        times, states = model.run(length)
        if done >= 0:
            if not store.exists():
                _create(store, model, times[0], days * 24 // interval, length * 24 // interval)
            at = done * 24 // interval
            for name, x in states.items():
                write_region(store, name, (slice(at, at + len(times)),), x)
        done += length
        _keep(model, folder, done)
        print(f"{max(done, 0)} of {days} days" if done > 0 else f"spin-up, {-done} days left", flush=True)
    finish(store, out)
    shutil.rmtree(folder, ignore_errors=True)
    return {"states": days * 24 // interval, "before": before * 24 // interval}


def _keep(model: Speedy, folder: Path, done: int) -> None:
    """The state first under its day's name, then the name that counts: a crash between leaves the older pair."""
    model.save(folder / f"state-{done}")
    write_json(folder / "done.json", {"days": done})
    os.replace(folder / f"state-{done}", folder / "state")


def _progress(folder: Path) -> int:
    import json

    done = int(json.loads((folder / "done.json").read_text())["days"])
    late = folder / f"state-{done}"
    if late.is_file():  # stopped between the two
        os.replace(late, folder / "state")
    for other in folder.glob("state-*"):
        with contextlib.suppress(OSError):
            other.unlink()
    return done


def _create(store: Path, model: Speedy, first: np.datetime64, count: int, block: int) -> None:
    """An empty store with all coordinates and the fields that do not change."""
    dims = ("time", "latitude", "longitude")
    words = {"orog": ("surface_altitude", "m"), "sftlf": ("land_area_fraction", "1")}
    fixed = {
        name: (dims[1:], value, {"standard_name": words[name][0], "units": words[name][1]})
        for name, value in model.constants.items()
    }
    times = first + np.arange(count) * np.timedelta64(model.interval, "h")
    template = xr.Dataset(
        fixed,
        {
            "time": times.astype("datetime64[ns]"),
            "latitude": model.latitude,
            "longitude": model.longitude,
        },
    )
    fields = {name: {"standard_name": f[3], "units": f[4]} for name, f in FIELDS.items()}
    create_store(
        store,
        template,
        fields,
        dims,
        {
            "title": "SPEEDY at T31, a subset of its state on its own grid",
            "source": "jcm (SPEEDY in JAX), climatological forcing, analytic ozone",
        },
        chunks={"time": block},
    )
