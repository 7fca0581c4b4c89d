"""Fields of a climate scenario given its global mean temperature: pattern scaling, and diffusion of what it leaves out.

With G the scenario's temperature of a year and m the part of the year (a calendar month, or the whole year),

    x(t) = a_m + b_m G(t) + σ_m (Σ_k s_k c_k(t) φ_k + ρ n),

the first two terms are pattern scaling (Santer et al. 1990; Tebaldi & Arblaster 2014), fitted by least squares at every
point. The rest is internal variability: the amplitudes c of its leading functions φ are drawn by a diffusion model that
knows G, the season and the amplitudes one time before, so that a member is a trajectory; n is white. Spreads s and ρ are
those of years that the functions were not fitted to, by blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from perrin.bundle import Bundle, load_weights
from perrin.core import SOLVERS, CounterNoise, Dense, NetworkDenoiser, plan_steps, sample
from perrin.core.grids import logit_normal
from perrin.core.noise import splitmix64_tensor
from perrin.errors import PerrinError
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.precise import halves, take
from perrin.modalities.weather.sst_network import FIELD, AmplitudeConfig, AmplitudeTask, build_denoiser
from perrin.modalities.weather.tables import read_table
from perrin.train import Trainer, TrainOptions

Array = NDArray[np.float64]
Years = dict[int, float]
_SPINUP = 12


@dataclass(frozen=True, kw_only=True)
class Record:
    """A variable by time: months in order, or one time a year.

    Arguments:
        values: `[n, points]`, of the points that are never missing.
        keep: which cells are points, `[rows, columns]`.
        times: cftime, `[n]`.
        name, attributes: of the variable.
    """

    values: Array
    keep: NDArray[np.bool_]
    times: list[Any]
    name: str
    attributes: dict[str, str]

    @property
    def parts(self) -> NDArray[np.intp]:
        """m of each time: 0 to 11 of months, 0 where there is one time a year."""
        if len({t.month for t in self.times}) == 1:
            return np.zeros(len(self.times), dtype=np.intp)
        return np.array([t.month - 1 for t in self.times])


def read_scenario(fields: Fields, name: str | None = None) -> Record:
    """The only variable by time, or the named one.

    Raises:
        PerrinError: there is none or more than one, or the times are neither months nor years in order.
    """
    names = [name] if name else list(fields.parts)
    if len(names) != 1 or names[0] not in fields.parts:
        raise PerrinError(
            f"expected one variable in {fields.label}, given {', '.join(fields.parts)}: name one with --variables"
        )
    part = fields.parts[names[0]]
    x, times = fields.read(names[0]), fields.times
    if x.ndim != 3 or len(times) < 2:
        raise PerrinError(
            f"expected {names[0]} by time in {fields.label}, given other dimensions: choose one run of it"
        )
    month = np.array([12 * t.year + t.month for t in times])
    if len(set(np.diff(month))) != 1 or month[1] - month[0] not in (1, 12):
        raise PerrinError(
            f"expected every month or one time a year in {fields.label}, given others: average them"
        )
    keep = np.asarray(np.isfinite(x).all(0))
    if not keep.any():
        raise PerrinError(f"expected points without missing values in {fields.label}, given none")
    words = {
        k: str(v)
        for k, v in fields.dataset[part.variable].attrs.items()
        if k in ("standard_name", "long_name")
    }
    return Record(
        values=x[:, keep].astype(np.float64),
        keep=keep,
        times=times,
        name=part.variable,
        attributes=words | {"units": fields.units(names[0])},
    )


def area_mean(fields: Fields, record: Record, smooth: int = 11) -> Years:
    """G as the file itself has it: the mean over its area of each year, then over `smooth` years about it."""
    weight = fields.area[record.keep]
    mean = record.values @ weight / weight.sum()
    numbers = np.array([t.year for t in record.times])
    years = np.unique(numbers)
    each = np.array([mean[numbers == y].mean() for y in years])
    half = smooth // 2
    return {int(y): float(each[max(0, i - half) : i + half + 1].mean()) for i, y in enumerate(years)}


def read_forcing(path: str | Path, name: str | None = None) -> Years:
    """G by year: of a CSV table with the columns `year` and `temperature`, or the area mean of a file of fields.

    Raises:
        PerrinError: the table lacks a column or has a line that cannot be read.
    """
    if Path(path).suffix != ".csv":
        fields = open_fields(path)
        return area_mean(fields, read_scenario(fields, name))
    found = {}
    for row in read_table(path, {name: (name,) for name in ("year", "temperature")}, "temperatures"):
        values = row.numbers("year", "temperature")
        if values is None or values[0] % 1:
            raise PerrinError(
                f"expected a year and a temperature in {row.place}, given {row.text}: mend the table"
            )
        found[int(values[0])] = values[1]
    return found


def at_years(forcing: Years, times: list[Any], label: str) -> Array:
    """G of each time, `[n]`.

    Raises:
        PerrinError: a year is missing.
    """
    if lacking := sorted({t.year for t in times} - set(forcing)):
        raise PerrinError(
            f"expected a temperature for every year in {label}, given none for {lacking[0]}: add it"
        )
    return np.array([forcing[t.year] for t in times])


def pattern(x: Array, G: Array, parts: NDArray[np.intp]) -> tuple[Array, Array]:
    """a and b by least squares, `[parts, points]` each."""
    out = []
    for m in range(parts.max() + 1):
        basis = np.stack([np.ones((parts == m).sum()), G[parts == m]], 1)
        out.append(np.linalg.lstsq(basis, x[parts == m], rcond=None)[0])
    found = np.stack(out)
    return found[:, 0], found[:, 1]


@dataclass(frozen=True, kw_only=True)
class Variability:
    """Internal variability: σ `[parts, points]`, φ `[K, points]`, s `[K]`, ρ `[points]`."""

    scale: Array
    modes: Array
    spread: Array
    rest: Array


def fit_variability(
    r: Array, parts: NDArray[np.intp], weight: Array, *, count: int, folds: int = 6
) -> Variability:
    """Of residuals `[n, points]` of consecutive times; `weight` is of the points, sum 1."""
    count = min(count, len(r) * (folds - 1) // folds // 3, r.shape[1])
    scale = np.stack([np.sqrt((r[parts == m] ** 2).mean(0)) for m in range(parts.max() + 1)]) + 1e-9
    root = np.sqrt(weight)
    z = r / scale[parts] * root

    def modes_of(rows: Array) -> Array:
        values, left = np.linalg.eigh(rows @ rows.T)
        order = np.argsort(values)[::-1][:count]
        return np.asarray((rows.T @ left[:, order] / np.sqrt(np.maximum(values[order], 1e-12))).T)

    squares, rest = np.zeros(count), np.zeros(r.shape[1])
    for block in np.array_split(np.arange(len(r)), folds):
        phi = modes_of(np.delete(z, block, 0))
        c = z[block] @ phi.T
        squares += (c**2).sum(0)
        rest += ((z[block] - c @ phi) ** 2).sum(0)
    spread = np.sqrt(np.maximum.accumulate((squares / len(r))[::-1])[::-1])
    return Variability(
        scale=scale, modes=modes_of(z) / root, spread=spread, rest=np.sqrt(rest / len(r)) / root
    )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Times and temperatures that fields are wanted for.

    Arguments:
        times: cftime, `[n]`, consecutive ones of the model.
        G, parts: of each time, `[n]`.
    """

    times: list[Any]
    G: Array
    parts: NDArray[np.intp]

    @property
    def time(self) -> Any:
        """The first."""
        return self.times[0]


class ScenarioModel:
    """Draws fields of a scenario; `perrin.modalities.weather.forecast.rollout` writes them: one start, a lead for each time.

    Arguments:
        words: variable, attributes, latitudes, longitudes, parts and the month and day of yearly times.
        keep: which cells are points.
        a, b: of pattern scaling, `[parts, points]`.
        centre: mean and standard deviation of G in the training record.
        variability: see there.
        denoiser: of the amplitudes.
        name, sha256: of the bundle.
    """

    kind = "scenario"
    together = 10

    def __init__(
        self,
        words: dict[str, Any],
        keep: NDArray[np.bool_],
        a: Array,
        b: Array,
        centre: tuple[float, float],
        variability: Variability,
        denoiser: NetworkDenoiser,
        *,
        name: str = "scenario",
        sha256: str = "",
    ) -> None:
        self.words, self.keep, self.a, self.b, self.centre = words, keep, a, b, centre
        self.variability, self.denoiser = variability, denoiser.eval().requires_grad_(False)
        self.name, self.sha256 = name, sha256

    def mean(self, G: Array, parts: NDArray[np.intp]) -> Array:
        """Pattern scaling, `[n, points]`."""
        return self.a[parts] + self.b[parts] * G[:, None]

    def draw(self, G: Array, parts: NDArray[np.intp], seeds: Tensor) -> Array:
        """Fields of consecutive times, `[members, n, points]`.

        Arguments:
            G: of each time.
            parts: m of each time.
            seeds: of the members, `[members]`, int64.
        """
        return np.stack([x for x, _ in self._times(G, parts, seeds)], 1)

    def _times(
        self, G: Array, parts: NDArray[np.intp], seeds: Tensor, at: int = 0, before: Tensor | None = None
    ) -> Iterator[tuple[Array, Tensor]]:
        """Fields and amplitudes of each time in turn, `[members, points]` and `[members, K]`, from time `at` on, with the
        amplitudes one time before; from none of before, after a while that forgets it."""
        v, count = self.variability, len(seeds)
        process, layouts = self.denoiser.process, {FIELD: Dense(count)}
        plan = plan_steps(
            process, SOLVERS["heun"], 16, grid=lambda n: logit_normal(n, mean=0.0, std=1.8, start=0.999)
        )
        first = at
        if before is None:
            before, first = torch.zeros(count, len(v.spread)), -_SPINUP
        for t in range(first, len(G)):
            k = max(t, 0)
            condition = conditions(before.numpy(), G[[k] * count], parts[[k] * count], self.centre)
            noise = CounterNoise(splitmix64_tensor(seeds, t + _SPINUP))
            before = sample(
                self.denoiser, process, plan, layouts, noise, condition=torch.from_numpy(condition).float()
            )[FIELD]
            if t >= 0:
                white = noise.normal(Dense(count), v.rest.shape, field="rest", step=0).numpy()
                z = (before.numpy() * v.spread) @ v.modes + v.rest * white
                yield self.mean(G[[t]], parts[[t]]) + v.scale[parts[t]] * z, before

    def fields(self, start: Scenario) -> dict[str, dict[str, str]]:
        """The variable and its attributes."""
        return {self.words["name"]: self.words["attributes"]}

    def template(self, start: Scenario, members: int) -> xr.Dataset:
        """Coordinates of fields by time."""
        return xr.Dataset(
            coords={
                "realization": np.arange(members, dtype=np.int32),
                "time": start.times,
                "latitude": self.words["latitude"],
                "longitude": self.words["longitude"],
            }
        )

    def scenario(self, forcing: Years) -> Scenario:
        """All times of the years of a scenario, by month or by year as the model's own."""
        w = self.words
        months = range(1, 13) if w["parts"] == 12 else [w["month"]]
        times = [
            cftime.datetime(y, m, w["day"], calendar=w["calendar"]) for y in sorted(forcing) for m in months
        ]
        return Scenario(
            times=times,
            G=np.array([forcing[t.year] for t in times]),
            parts=np.array([t.month - 1 if w["parts"] == 12 else 0 for t in times]),
        )

    def members(
        self,
        start: Scenario,
        seeds: Tensor,
        cuts: Sequence[int],
        numbers: Sequence[int],
        *,
        at: int = 0,
        states: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[dict[str, NDArray[np.float32]], dict[str, Tensor]]]:
        """Members, in segments of times, `[B, n, rows, columns]`, with the amplitudes of each segment's last time.

        Arguments:
            start: see `scenario`.
            seeds: of the members, `[B]`, int64.
            cuts: times at which segments end.
            numbers: of the members.
            at: the time that `states` are of, where a rollout goes on.
            states: `amplitudes`, `[B, K]`.
        """
        steps = self._times(start.G, start.parts, seeds, at, states["amplitudes"] if states else None)
        for cut in cuts:
            out = np.full((len(seeds), cut - at, *self.keep.shape), np.nan, dtype=np.float32)
            for k in range(cut - at):
                out[:, k, self.keep], last = next(steps)
            at = cut
            yield {self.words["name"]: out}, {"amplitudes": last}

    def to_json(self) -> dict[str, Any]:
        """The configuration of a bundle."""
        network: Any = self.denoiser.network
        return {
            "kind": self.kind,
            "words": self.words,
            "centre": list(self.centre),
            "network": network.config.to_json(),
        }

    def weights(self) -> dict[str, Tensor]:
        """Of a bundle."""
        v = self.variability
        whole = {
            "a": self.a,
            "b": self.b,
            "scale": v.scale,
            "modes": v.modes,
            "spread": v.spread,
            "rest": v.rest,
        }
        tensors = {k: torch.from_numpy(np.ascontiguousarray(x)).float() for k, x in whole.items()}
        return (
            dict(self.denoiser.named_parameters()) | halves(tensors) | {"keep": torch.from_numpy(self.keep)}
        )

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ScenarioModel:
        """Read what `weights` and `to_json` gave.

        Raises:
            PerrinError: the bundle does not fit together.
        """
        config, tensors, source = bundle.config["model"], bundle.weights(), str(bundle.path)
        network = AmplitudeConfig(**config["network"])
        keep = tensors.pop("keep").numpy() > 0.5
        points, parts = int(keep.sum()), int(config["words"]["parts"])

        def get(name: str, *shape: int) -> Array:
            return take(tensors, name, shape, source).numpy().astype(np.float64)

        a, b, scale = (get(k, parts, points) for k in ("a", "b", "scale"))
        variability = Variability(
            scale=scale,
            modes=get("modes", network.count, points),
            spread=get("spread", network.count),
            rest=get("rest", points),
        )
        denoiser = build_denoiser(network)
        load_weights(denoiser, tensors, source=source)
        first, second = config["centre"]
        return cls(
            dict(config["words"]),
            keep,
            a,
            b,
            (first, second),
            variability,
            denoiser,
            name=bundle.path.name,
            sha256=bundle.sha256,
        )


def conditions(before: Array, G: Array, parts: NDArray[np.intp], centre: tuple[float, float]) -> Array:
    """What the network is told, `[n, K + 3]`: the amplitudes one time before, G and the season."""
    angle = 2 * np.pi * parts / 12
    more = np.stack([(G - centre[0]) / centre[1], np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([before, more], 1)


def fit_scenario(
    fields: Fields,
    record: Record,
    forcing: Years,
    used: NDArray[np.bool_],
    options: TrainOptions,
    folder: str | Path,
    *,
    count: int = 24,
    share: float = 0.2,
) -> tuple[ScenarioModel, dict[str, float]]:
    """Fit the pattern, the variability and the network, which is kept where it is better on the last years than none.

    Arguments:
        fields, record, forcing: the run and its G.
        used: which times.
        options: of the training.
        folder: of the run.
        count: K at most.
        share: of the times, the last ones, on which the network is judged.

    Returns:
        The model, and the losses of the untrained and the trained network on the last years.

    Raises:
        PerrinError: there are too few times.
    """
    if used.sum() < 30:
        raise PerrinError(f"expected 30 times or more to train on, given {int(used.sum())}: hold out fewer")
    x, parts = record.values[used], record.parts[used]
    G = at_years(forcing, record.times, fields.label)[used]
    weight = fields.area[record.keep] / fields.area[record.keep].sum()
    a, b = pattern(x, G, parts)
    r = x - a[parts] - b[parts] * G[:, None]
    v = fit_variability(r, parts, weight, count=count)
    c = (r / v.scale[parts] * weight) @ v.modes.T
    c /= np.sqrt((c**2).mean(0))
    centre = (float(G.mean()), float(G.std()) + 1e-9)
    given = conditions(c[:-1], G[1:], parts[1:], centre)
    config = AmplitudeConfig(count=c.shape[1], condition=given.shape[1])
    split = int(len(given) * (1 - share))
    both = [torch.from_numpy(y).float() for y in (c[1:], given)]
    known, late = [y[:split] for y in both], [y[split:] for y in both]
    torch.manual_seed(options.seed)
    fresh, trained = build_denoiser(config), build_denoiser(config)
    task = AmplitudeTask(trained, config, *known, batch=min(options.batch, split), seed=options.seed)
    Trainer(task, options, folder, accelerator="cpu").run()
    losses = {}
    for name, one in (("normal", fresh), ("trained", trained)):
        one.eval().requires_grad_(False)
        judge = AmplitudeTask(one, config, *late, batch=len(late[0]), seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            found = [
                float(judge.loss(one, *judge.prepare(k, generator=generator, rank=0, world=1))["loss"])
                for k in range(50)
            ]
        losses[name] = float(np.mean(found))
    words = {
        "name": record.name,
        "attributes": record.attributes,
        "latitude": fields.latitude.tolist(),
        "longitude": fields.longitude.tolist(),
        "parts": int(parts.max()) + 1,
        "month": int(record.times[0].month),
        "day": int(record.times[0].day),
        "calendar": str(record.times[0].calendar),
    }
    best = fresh if losses["normal"] <= losses["trained"] else trained
    return ScenarioModel(words, record.keep, a, b, centre, v, best), losses
