"""Two-layer quasi-geostrophic flow on a β-plane (Phillips 1951), the test bed of assimilation between Lorenz's and weather.

The potential vorticity of the layers, about a mean flow `U_1 = U, U_2 = 0` in x on a doubly periodic square,

    q_1 = ∇²ψ_1 + F_1 (ψ_2 − ψ_1),    F_1 = r_d⁻² / (1 + δ),    δ = H_1 / H_2,
    q_2 = ∇²ψ_2 + F_2 (ψ_1 − ψ_2),    F_2 = δ F_1,

moves with the flow, `(u, v) = (−∂ψ/∂y, ∂ψ/∂x)`:

    ∂q_i/∂t = −∇·((u_i + U_i, v_i) q_i) − v_i (β ± F_i U) − r ∇²ψ_2 [i = 2],

`+` above. Shear makes eddies of the size of r_d, drag r at the bottom takes their energy. Fields are Fourier series;
products are taken on the grid, time steps are Runge and Kutta's of fourth order, and after each of them waves above 0.65
of the shortest are damped by `exp(−23.6 (k Δx − 0.65 π)⁴)`, as in `pyqg` (Abernathey et al. 2022), whose eddy
configuration this is, on a square of half the length.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.errors import PerrinError
from perrin.run.atomic import write_json, write_tensors
from perrin.run.partial import read_key

if TYPE_CHECKING:
    import xarray as xr

DAY = 86400.0
DIMENSIONS = ("realization", "time", "layer", "y", "x")
PSI = {"long_name": "streamfunction of the eddies", "units": "m2 s-1"}


@dataclass(frozen=True, kw_only=True)
class TwoLayer:
    """The equations; states are q, `[…, 2, n, n]`, float64, s⁻¹.

    Arguments:
        size: n, cells each way.
        length: of the square, m.
        radius: r_d, m.
        ratio: δ.
        beta: β, m⁻¹ s⁻¹.
        shear: U, m s⁻¹.
        drag: r, s⁻¹.
        step: s.
        damped: whether short waves are damped.
    """

    size: int = 32
    length: float = 5e5
    radius: float = 15e3
    ratio: float = 0.25
    beta: float = 1.5e-11
    shear: float = 0.025
    drag: float = 5.787e-7
    step: float = 21600.0
    damped: bool = True

    def __post_init__(self) -> None:
        if self.size < 4 or self.size % 2 or not self.step > 0:
            raise ValueError(f"expected an even size of at least 4 and a step above 0, given {self}")

    @property
    def stretching(self) -> tuple[float, float]:
        """F_1 and F_2, m⁻²."""
        F_1 = self.radius**-2 / (1 + self.ratio)
        return F_1, self.ratio * F_1

    def waves(self) -> tuple[Tensor, Tensor]:
        """Wavenumbers along x and y of `rfft2`, m⁻¹, `[n, n / 2 + 1]`; the shortest are 0, so that derivatives are real."""
        unit = 2 * math.pi / self.length
        k = torch.fft.rfftfreq(self.size, 1 / self.size, dtype=torch.float64) * unit
        l = torch.fft.fftfreq(self.size, 1 / self.size, dtype=torch.float64) * unit
        k[-1] = l[self.size // 2] = 0
        return k.expand(self.size, -1), l[:, None].expand(-1, len(k))

    def vorticity(self, psi: Tensor) -> Tensor:
        """q of ψ, `[…, 2, n, n]`, m² s⁻¹."""
        spectrum = torch.fft.rfft2(psi)
        K2, (F_1, F_2) = self._squares(), self.stretching
        a, b = spectrum[..., 0, :, :], spectrum[..., 1, :, :]
        q = torch.stack([-K2 * a + F_1 * (b - a), -K2 * b + F_2 * (a - b)], -3)
        return torch.fft.irfft2(q, s=(self.size, self.size))

    def streamfunction(self, q: Tensor) -> Tensor:
        """ψ of q, of mean 0."""
        return torch.fft.irfft2(self._invert(torch.fft.rfft2(q)), s=(self.size, self.size))

    def _squares(self) -> Tensor:
        unit = 2 * math.pi / self.length
        k = torch.fft.rfftfreq(self.size, 1 / self.size, dtype=torch.float64) * unit
        l = torch.fft.fftfreq(self.size, 1 / self.size, dtype=torch.float64) * unit
        return k[None] ** 2 + l[:, None] ** 2

    def _invert(self, q: Tensor) -> Tensor:
        K2, (F_1, F_2) = self._squares(), self.stretching
        a, b = q[..., 0, :, :], q[..., 1, :, :]
        determinant = K2 * (K2 + F_1 + F_2)
        over = torch.where(determinant > 0, 1 / determinant.clamp(min=1e-300), 0.0)
        psi = [-((K2 + F_2) * a + F_1 * b) * over, -(F_2 * a + (K2 + F_1) * b) * over]
        return torch.stack(psi, -3)

    def _tendency(self, q: Tensor) -> Tensor:
        """`∂q/∂t` of Fourier coefficients."""
        (k, l), shape = self.waves(), (self.size, self.size)
        psi = self._invert(q)
        u = torch.fft.irfft2(-1j * l * psi, s=shape)
        v = torch.fft.irfft2(1j * k * psi, s=shape)
        grid = torch.fft.irfft2(q, s=shape)
        mean = torch.tensor([self.shear, 0.0], dtype=torch.float64)[:, None, None]
        flux = torch.fft.rfft2(torch.stack([(u + mean) * grid, v * grid]))
        F_1, F_2 = self.stretching
        gradient = torch.tensor([self.beta + F_1 * self.shear, self.beta - F_2 * self.shear])
        out = -1j * (k * flux[0] + l * flux[1]) - 1j * k * gradient.double()[:, None, None] * psi
        out[..., 1, :, :] += self.drag * self._squares() * psi[..., 1, :, :]
        return out

    def advance(self, q: Tensor, steps: int) -> Tensor:
        """The state some steps later."""
        at, h = torch.fft.rfft2(q), self.step
        damping = torch.ones(1, dtype=torch.float64)
        if self.damped:
            over = (self._squares().sqrt() * self.length / self.size - 0.65 * math.pi).clamp(min=0)
            damping = torch.exp(-23.6 * over**4)
        for _ in range(steps):
            a = self._tendency(at)
            b = self._tendency(at + h / 2 * a)
            c = self._tendency(at + h / 2 * b)
            d = self._tendency(at + h * c)
            at = damping * (at + h / 6 * (a + 2 * b + 2 * c + d))
        return torch.fft.irfft2(at, s=(self.size, self.size))

    def energy(self, q: Tensor) -> Tensor:
        """Kinetic and potential energy of the eddies for each unit of area and depth, m² s⁻², `[…]`."""
        psi = self.streamfunction(q)
        weight = torch.tensor([self.ratio, 1.0], dtype=torch.float64) / (1 + self.ratio)
        return -0.5 * (weight[:, None, None] * psi * q).sum(-3).mean((-2, -1))

    def first(self, runs: int, seed: int) -> Tensor:
        """Small eddies of random phases, of a few waves each way, to spin up from, `[runs, 2, n, n]`."""
        out = []
        for run in range(runs):
            generator = torch.Generator().manual_seed((seed << 20) + run)
            white = torch.randn(2, self.size, self.size, generator=generator, dtype=torch.float64)
            K = self._squares().sqrt() * self.length / (2 * math.pi)
            psi = torch.fft.irfft2(torch.fft.rfft2(white) * ((K > 0) & (K < 6)), s=(self.size, self.size))
            out.append(self.vorticity(psi * (0.01 * self.length / (2 * math.pi)) / psi.std()))
        return torch.stack(out)


def produce(
    out: str | Path,
    *,
    days: int,
    runs: int = 8,
    spinup: int = 1800,
    interval: int = 96,
    seed: int = 0,
    model: TwoLayer | None = None,
    chunk: int = 100,
) -> dict[str, Any]:
    """Write streamfunctions of several runs as a Zarr store; work that was stopped goes on with the same bits.

    Arguments:
        out: the store, made when all of it is there; what is unfinished lies in `OUT.partial`.
        days: to write.
        runs: from different eddies.
        spinup: days before that are not written.
        interval: hours between states, a multiple of the model's step.
        seed: of the first eddies.
        model: the equations.
        chunk: states between two checkpoints.

    Returns:
        The number of states of each run, and of those that were there already.

    Raises:
        PerrinError: numbers are out of range, the folder has another run, or the flow has blown up.
    """
    import zarr

    from perrin.modalities.weather.stores import finish

    model = model or TwoLayer()
    for name, value, least in (("days", days, 1), ("spinup", spinup, 0), ("runs", runs, 1)):
        if value < least:
            raise PerrinError(f"expected {name} of at least {least}, given {value}")
    each = interval * 3600 / model.step
    if each < 1 or each % 1:
        raise PerrinError(
            f"expected an interval of a multiple of {model.step / 3600:g} hours, given {interval}"
        )
    count = days * 24 // interval
    if count < 1:
        raise PerrinError(f"expected days for at least one state every {interval} hours, given {days}")
    out = Path(out)
    folder = out.with_name(out.name + ".partial")
    key = {"days": days, "runs": runs, "spinup": spinup, "interval": interval, "seed": seed, "chunk": chunk}
    found = read_key(folder, key | asdict(model))
    store, state = folder / "data.zarr", folder / "state.safetensors"
    done, q = _progress(state) if found else (None, None)
    if q is None or done is None or not store.is_dir():
        steps = round(spinup * DAY / model.step)
        q, done = model.advance(model.first(runs, seed), steps), 0
        _create(store, model, runs, count, interval, min(chunk, count))
    before = done
    array = zarr.open_array(str(store / "psi"), mode="r+")
    while done < count:
        states = []
        for _ in range(min(chunk, count - done)):
            states.append(model.streamfunction(q).float())
            q = model.advance(q, round(each))
        if not bool(torch.isfinite(q).all()):
            raise PerrinError(
                f"expected finite fields after {done} states, given others: take a shorter step"
            )
        array[:, done : done + len(states)] = torch.stack(states, 1).numpy()
        done += len(states)
        write_tensors(state, {"q": q, "done": torch.tensor(done)})
        print(f"{done} of {count} states of each run", flush=True)
    finish(store, out)
    shutil.rmtree(folder, ignore_errors=True)
    return {"states": count, "before": before}


def _progress(path: Path) -> tuple[int | None, Tensor | None]:
    from safetensors.torch import load_file

    if not path.is_file():
        return None, None
    found = load_file(str(path))
    return int(found["done"]), found["q"]


def coordinates(runs: int, hours: NDArray[np.floating[Any]], size: int, length: float) -> xr.Dataset:
    """Coordinates of ψ, whose dimensions are `DIMENSIONS`, by CF.

    Arguments:
        runs: how many, or members.
        hours: of the states; their calendar is made up.
        size: n, cells each way.
        length: of the square, m.
    """
    import xarray as xr

    middle = (np.arange(size) + 0.5) * length / size
    words = {"units": "hours since 2000-01-01", "calendar": "standard", "axis": "T"}
    return xr.Dataset(
        coords={
            "realization": np.arange(runs, dtype=np.int32),
            "time": ("time", hours, words),
            "layer": np.array([1, 2], np.int32),
            "y": middle,
            "x": middle,
        }
    )


def _create(store: Path, model: TwoLayer, runs: int, count: int, interval: int, chunk: int) -> None:
    """An empty store with its coordinates."""
    from perrin.modalities.weather.stores import create_store

    template = coordinates(runs, np.arange(count) * float(interval), model.size, model.length)
    words = {
        "title": "two-layer quasi-geostrophic flow on a doubly periodic beta plane",
        "source": f"perrin data weather/qg, {json.dumps(asdict(model))}",
    }
    create_store(store, template, {"psi": PSI}, DIMENSIONS, words, chunks={"time": chunk})
    write_json(store.parent / "model.json", asdict(model))


def read_states(path: str | Path) -> tuple[Tensor, dict[str, Any]]:
    """ψ of a store that `produce` wrote, `[runs, times, 2, n, n]`, float32, and its hours and length.

    Raises:
        PerrinError: it cannot be read, or is of something else.
    """
    import xarray as xr

    try:
        found = xr.open_zarr(path, decode_times=False, consolidated=False)
    except Exception as problem:
        raise PerrinError(
            f"expected a store of perrin data weather/qg, given {path} ({type(problem).__name__}): check the path"
        ) from problem
    if "psi" not in found or found["psi"].dims != DIMENSIONS or found.sizes["layer"] != 2:
        raise PerrinError(
            f"expected psi by {', '.join(DIMENSIONS)} with two layers in {path}, given "
            f"{', '.join(map(str, found.data_vars))}: make it with perrin data weather/qg"
        )
    psi = torch.from_numpy(found["psi"].values)
    if not bool(torch.isfinite(psi).all()):
        raise PerrinError(f"expected finite values in {path}, given missing ones: make it again")
    time, x = found["time"].values, found["x"].values
    hours = float(time[1] - time[0]) if len(time) > 1 else 0.0
    return psi, {"hours": hours, "length": float((x[1] - x[0]) * len(x))}
