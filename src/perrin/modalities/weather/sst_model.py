"""Sea surface temperature, months ahead: a seasonal regression and a diffusion model of what it leaves out.

A member is  x̂ + γ r  with x̂ the mean of `SeasonalRegression` and r a trajectory of residuals (`ResidualModes`):
amplitudes from a conditional diffusion model, the rest from isotropic noise. γ is one number for each lead, chosen on
years that were not trained on: errors of later years are larger than those of the training period.

Anomalies are departures from the model's own climatology (its training years), in kelvin, on its own grid of 5°; land
is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cftime
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.bundle import Bundle
from perrin.core import SOLVERS, CounterNoise, Dense, NetworkDenoiser, plan_steps, sample
from perrin.core.grids import logit_normal
from perrin.errors import PerrinError, counted
from perrin.modalities.weather.fields import Fields
from perrin.modalities.weather.grid import coarsen, latitude_edges, longitude_edges
from perrin.modalities.weather.infill import Infill, Observations, nearest
from perrin.modalities.weather.residual import ResidualModes
from perrin.modalities.weather.seasonal import LEAST, LEVEL, PAST, SeasonalRegression, past_means
from perrin.modalities.weather.sst import celsius_offset, find_sst, weights_of
from perrin.modalities.weather.sst_network import FIELD, AmplitudeConfig, build_denoiser
from perrin.nets.sphere import SphericalHarmonics

Array = NDArray[np.float64]
_FREEZING = -1.8
UNLIKE = 4.0
"""How many times as far from the climatology a month may be, in root mean square, as the model's own months are."""
PARTS = ("scale", "modes", "spread", "fitted", "rest", "spectrum")
CONDITIONS = (4, 3)
"""Of how many of the past's amplitudes the residual's distribution depends: of the last month's departure from the level,
and of the last 6 months'."""


@dataclass(frozen=True, kw_only=True)
class SSTStart:
    """What a forecast starts from: the month, the past of anomalies (`past_means`), what the file measures in, and how many
    of the level's months it has."""

    time: Any
    past: Array
    offset: float
    units: str
    months: int = LEVEL


class SSTModel:
    """See the module's text.

    Arguments:
        regression, residuals: the mean, and what it leaves out.
        denoiser: of the residuals' amplitudes, in evaluation mode.
        condition_scale: standard deviations of the conditions, `[C − 2]`.
        climatology: of January to December, °C, `[12, points]`.
        sea: which cells are points, `[rows, columns]`.
        inflation: γ, `[leads]`.
        sample_months: anomalies of a simulated record that a forecast may start from, `[n, points]`.
        field: the prior of a month's anomalies, for observations (`perrin.modalities.weather.infill`).
        field_denoiser: of its amplitudes.
        field_scale: a factor of its spread, chosen as γ is.
        steps: network evaluations for a member.
        by_past: what was measured of short pasts, if anything: `years` and `climatology`, spans of years, `leads`, and by
            number of months the RMSE at these leads, K.
    """

    kind = "sst"
    unit = "months"
    together = 1

    def __init__(
        self,
        regression: SeasonalRegression,
        residuals: ResidualModes,
        denoiser: NetworkDenoiser,
        condition_scale: Array,
        climatology: Array,
        sea: NDArray[np.bool_],
        inflation: Array,
        sample_months: Array,
        field: ResidualModes,
        field_denoiser: NetworkDenoiser,
        field_scale: float = 1.0,
        *,
        steps: int = 20,
        name: str = "",
        sha256: str = "",
        by_past: Mapping[str, Any] | None = None,
    ) -> None:
        self.by_past = by_past or {}
        self.regression, self.residuals, self.denoiser = regression, residuals, denoiser
        self.condition_scale, self.climatology, self.sea = condition_scale, climatology, sea
        self.inflation, self.sample_months = inflation, sample_months
        self.field, self.field_denoiser, self.field_scale = field, field_denoiser, field_scale
        self.steps, self.name, self.sha256 = steps, name, sha256
        rows, columns = sea.shape
        self.edges = np.linspace(-90, 90, rows + 1), np.linspace(0, 360, columns + 1)
        self.latitude, self.longitude = ((e[1:] + e[:-1]) / 2 for e in self.edges)
        self.harmonics, self.field_harmonics = (
            SphericalHarmonics(torch.from_numpy(self.latitude), columns, degree=len(part.spectrum))
            for part in (residuals, field)
        )
        self.places = (
            np.repeat(self.latitude[:, None], columns, 1)[sea],
            np.repeat(self.longitude[None], rows, 0)[sea],
        )

    @property
    def longest(self) -> int:
        """The longest lead, months."""
        return self.regression.leads

    def fields(self, start: SSTStart) -> dict[str, dict[str, str]]:
        """The variables of a forecast and their attributes."""
        return {"sst": {"standard_name": "sea_surface_temperature", "units": start.units}}

    # ---- from and to a bundle

    def weights(self) -> dict[str, Tensor]:
        """All that a bundle keeps as tensors."""
        m = self.regression
        arrays: dict[str, Any] = {
            f"{name}.{k}": getattr(part, k)
            for name, part in (("residuals", self.residuals), ("field", self.field))
            for k in PARTS
        } | {
            "regression.E": m.E,
            "regression.B": m.B,
            "regression.c": m.c,
            "condition_scale": self.condition_scale,
            "climatology": self.climatology,
            "inflation": self.inflation,
            "sample_months": self.sample_months,
        }
        out = {k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for k, v in arrays.items()}
        out["sea"] = torch.from_numpy(self.sea.astype(np.uint8))
        for name, denoiser in (("network", self.denoiser), ("field_network", self.field_denoiser)):
            out |= {f"{name}.{k}": v for k, v in denoiser.named_parameters()}
        return out

    def to_json(self) -> dict[str, Any]:
        """The configuration of a bundle."""
        return {
            "kind": self.kind,
            "network": config_of(self.denoiser),
            "field_network": config_of(self.field_denoiser),
            "field_scale": self.field_scale,
            "memory": self.residuals.memory,
            "steps": self.steps,
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> SSTModel:
        """Read one.

        Raises:
            PerrinError: it is not a model of this kind, or incomplete.
        """
        try:
            model = bundle.config["model"]
            tensors = bundle.weights()
            w = {k: v.numpy().astype(np.float64) for k, v in tensors.items() if "network." not in k}
            denoisers = []
            for name in ("network", "field_network"):
                denoiser = build_denoiser(AmplitudeConfig(**model[name]))
                with torch.no_grad():
                    for k, p in denoiser.named_parameters():
                        p.copy_(tensors[f"{name}.{k}"])
                denoisers.append(denoiser.eval().requires_grad_(False))
            sea = w["sea"] > 0
            parts = {n: {k: w[f"{n}.{k}"] for k in PARTS} for n in ("residuals", "field")}
            if w["regression.c"].ndim != 4:
                raise PerrinError(
                    f"expected a model that forecasts departures from the level of ten years in {bundle.path}, given one of "
                    "an earlier version of Perrin: train it again (perrin train weather/sst)"
                )
            regression = SeasonalRegression(
                E=w["regression.E"], weight=weights_of(sea), B=w["regression.B"], c=w["regression.c"]
            )
            return cls(
                regression,
                ResidualModes(**parts["residuals"], memory=float(model["memory"])),
                denoisers[0],
                w["condition_scale"],
                w["climatology"],
                sea,
                w["inflation"],
                w["sample_months"],
                ResidualModes(**parts["field"], memory=0.0),
                denoisers[1],
                float(model["field_scale"]),
                steps=int(model["steps"]),
                name=bundle.path.name,
                sha256=bundle.sha256,
                by_past=bundle.config.get("rmse_by_past"),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected a model of sea surface temperature in {bundle.path}, given another ({error}): get it again"
            ) from error

    # ---- starts

    def sample_starts(self) -> list[SSTStart]:
        """The end of the simulated record that comes with the model; its dates are made up."""
        n = len(self.sample_months)
        past = past_means(self.sample_months, np.array([n - 1]))[0]
        time = cftime.datetime(2000, (n - 1) % 12 + 1, 1, calendar="standard")
        return [SSTStart(time=time, past=past, offset=0.0, units="degC")]

    def starts(
        self, fields: Fields, months: Sequence[tuple[int, int]] | None = None, *, unlike: bool = False
    ) -> list[SSTStart]:
        """The starts that a file allows.

        Arguments:
            fields: a monthly record over the whole sphere.
            months: (year, month) of the starts; the last month by default.
            unlike: take months that differ from the climatology by more than `limit`, too.

        Raises:
            PerrinError: no such variable or unit, less than a year of months before a start, too little sea, or fields that
                are not this sea's.
        """
        part = find_sst(fields)
        times = fields.times
        place = {(t.year, t.month): i for i, t in enumerate(times)}
        if len(place) != len(times):
            raise PerrinError(
                f"expected one state for each month, given several in {fields.label}: take monthly means first"
            )
        offset, units = celsius_offset(fields, part), fields.units(part) or "degC"
        kept: dict[int, Array] = {-1: np.zeros(self.climatology.shape[1])}
        out = []
        for year, month in months or [(times[-1].year, times[-1].month)]:
            wanted = [divmod(12 * year + month - 1 - i, 12) for i in range(LEVEL)]
            lacking = [(y, m + 1) for y, m in wanted[:LEAST] if (y, m + 1) not in place]
            if lacking:
                raise PerrinError(
                    f"expected the {LEAST} months up to {year}-{month:02d} in {fields.label}, given none for "
                    f"{lacking[-1][0]}-{lacking[-1][1]:02d}: choose another --start or give a longer file"
                )
            rows = []
            for y, m in reversed(wanted):
                i = place.get((y, m + 1), -1)  # -1: the file lacks it, and it counts as the climatology
                if i not in kept:
                    kept[i] = self._anomaly(fields, part, i, offset, unlike)
                rows.append(kept[i])
            t = times[place[(year, month)]]
            out.append(
                SSTStart(
                    time=cftime.datetime(year, month, 1, calendar=t.calendar),
                    past=past_means(np.stack(rows), np.array([LEVEL - 1]))[0],
                    offset=offset,
                    units=units,
                    months=sum((y, m + 1) in place for y, m in wanted),
                )
            )
        return out

    @property
    def limit(self) -> float:
        """The largest root mean square of a month's anomalies that is believed, K: `UNLIKE` times that of simulated months,
        and 2 K at least. Of COBE's months of 1950 to 2009 the largest has 0.95 K."""
        own = float(np.sqrt((self.sample_months**2 @ self.regression.weight).mean()))
        return max(2.0, UNLIKE * own)

    def _anomaly(self, fields: Fields, part: str, i: int, offset: float, unlike: bool) -> Array:
        """Anomalies of one state, °C, `[points]`; cells of sea without data from the model's functions."""
        edges = latitude_edges(fields.latitude), longitude_edges(fields.longitude)
        field = coarsen(fields.read(part, time=i), *edges, *self.edges, least=1e-6)[self.sea] - offset
        known = np.isfinite(field)
        share = self.regression.weight[known].sum()
        if share < 0.7:
            raise PerrinError(
                f"expected data on the world's oceans, given {100 * share:.0f} % of them in {fields.label} at "
                f"{fields.times[i]}: fill or extend the field first"
            )
        x = field - self.climatology[fields.times[i].month - 1]
        w = self.regression.weight[known] / share
        mean, rms = float(w @ x[known]), float(np.sqrt(w @ x[known] ** 2))
        if rms > self.limit and not unlike:
            t = fields.times[i]
            raise PerrinError(
                f"expected the sea's temperature within {self.limit:.1f} K (root mean square) of the model's climatology, "
                f"given {rms:.1f} K, {mean:+.1f} K in the mean, in {part} of {fields.label} at {t.year}-{t.month:02d}: "
                "check the units and that it is the sea's, or add --unlike-climatology"
            )
        if not known.all():
            x = self._fill(x, known)
        return x

    def _fill(self, x: Array, known: NDArray[np.bool_]) -> Array:
        """Missing points by the leading functions, damped least squares."""
        E, w = self.regression.E[:, :20], self.regression.weight
        A = E[known] * np.sqrt(w[known])[:, None]
        y = np.linalg.solve(A.T @ A + 0.05 * np.eye(A.shape[1]), A.T @ (x[known] * np.sqrt(w[known])))
        return np.where(known, x, E @ y)

    def lacking(self, months: int, leads: int) -> str:
        """What to expect of a past with fewer months than the level takes.

        Arguments:
            months: that the file has of `LEVEL`.
            leads: of the forecast, months.
        """
        told = f"{months} of the {LEVEL} months before the start: the others count as "
        if not self.by_past:
            return f"{told}the model's climatology, towards which the forecast leans: give ten years"
        know = self.by_past
        k = max(i for i, lead in enumerate(know["leads"]) if lead <= leads)
        past = max(n for n in map(int, filter(str.isdigit, know)) if n <= months)
        lead = counted(know["leads"][k], "months")
        return (
            f"{told}the climatology of {know['climatology']}, towards which the forecast leans. In {know['years']}, which "
            f"were warmer, the RMSE at {lead} was {know[str(past)][k]:.3f} K with {past} months and "
            f"{know[str(LEVEL)][k]:.3f} K with {LEVEL}: give ten years"
        )

    # ---- members

    def condition(self, past: Array, month: int) -> Array:
        """What the network is told, `[C]`."""
        return np.concatenate(
            [
                conditions(self.regression, past) / self.condition_scale,
                season(np.array([month]))[0],
            ]
        )

    def anomalies(self, start: SSTStart, seed: Tensor) -> Array:
        """One member: anomalies of the months after the start, `[leads, points]`.

        Arguments:
            start: see `starts`.
            seed: of the member, `[1]`, int64.
        """
        month = start.time.month - 1
        noise = CounterNoise(seed)
        layouts = {FIELD: Dense(1)}
        plan = plan_steps(self.denoiser.process, SOLVERS["heun"], self.steps, grid=logit_normal_grid)
        given = torch.from_numpy(self.condition(start.past, month)).float()[None]
        state = sample(self.denoiser, self.denoiser.process, plan, layouts, noise, condition=given)
        a = state[FIELD][0].numpy().astype(np.float64)
        degree = len(self.residuals.spectrum)
        white = noise.normal(Dense(1), (self.longest, degree**2), field="rest", step=0)[0]
        n = self.residuals.noise(white.numpy().astype(np.float64), self.harmonics, self.sea)
        r = self.residuals.residual(a, n, month)
        return self.regression.mean(start.past, month) + self.inflation[:, None] * r

    def members(
        self,
        start: SSTStart,
        seeds: Tensor,
        cuts: Sequence[int],
        numbers: Sequence[int],
        *,
        at: int = 0,
        states: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[dict[str, NDArray[np.float32]], dict[str, Tensor]]]:
        """One member's fields, `[1, leads, rows, columns]` each, all leads at once and so without states between.

        Arguments:
            start: see `starts`.
            seeds: of the member, `[1]`, int64.
            cuts: how many months, at most `longest`.
            numbers: of the member.
            at, states: nothing goes on from a month between.
        """
        (leads,) = cuts
        x = self.anomalies(start, seeds)[:leads]
        months = (start.time.month + np.arange(leads)) % 12
        out = np.full((leads, *self.sea.shape), np.nan, dtype=np.float32)
        out[:, self.sea] = np.maximum(x + self.climatology[months], _FREEZING) + start.offset
        yield {"sst": out[None]}, {}

    def with_inflation(self, inflation: Array) -> SSTModel:
        """The same model with another γ."""
        return SSTModel(
            self.regression,
            self.residuals,
            self.denoiser,
            self.condition_scale,
            self.climatology,
            self.sea,
            inflation,
            self.sample_months,
            self.field,
            self.field_denoiser,
            self.field_scale,
            steps=self.steps,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedMonth:
    """A month with observations: °C, at degrees; `error` is their standard deviation."""

    time: Any
    latitude: Array
    longitude: Array
    value: Array
    error: Array


class SSTInfill:
    """A month's field given observations of it, as something to roll out: one lead, of no months.

    Arguments:
        model: with its prior.
    """

    unit = "months"
    together = 1

    def __init__(self, model: SSTModel) -> None:
        self.model, self.name, self.sha256 = model, model.name, model.sha256
        self.latitude, self.longitude = model.latitude, model.longitude
        self._kept: tuple[ObservedMonth, Infill] | None = None

    def fields(self, start: ObservedMonth) -> dict[str, dict[str, str]]:
        """The variable and its attributes."""
        return {"sst": {"standard_name": "sea_surface_temperature", "units": "degC"}}

    def infill(self, start: ObservedMonth) -> Infill:
        """The posterior of a month."""
        m, month = self.model, start.time.month - 1
        at = nearest(m.places, (start.latitude, start.longitude))
        observations = Observations(
            latitude=start.latitude,
            longitude=start.longitude,
            value=start.value - m.climatology[month, at],
            error=start.error,
        )
        return Infill(
            m.field,
            m.field_denoiser,
            m.places,
            m.sea,
            m.field_harmonics,
            season(np.array([month]))[0],
            month,
            observations,
            scale=m.field_scale,
        )

    def members(
        self,
        start: ObservedMonth,
        seeds: Tensor,
        cuts: Sequence[int],
        numbers: Sequence[int],
        *,
        at: int = 0,
        states: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[dict[str, NDArray[np.float32]], dict[str, Tensor]]]:
        """One field from the posterior, `[1, 1, rows, columns]`."""
        if self._kept is None or self._kept[0] is not start:
            self._kept = (start, self.infill(start))
        x = self._kept[1].members(seeds)[0]
        out = np.full((1, *self.model.sea.shape), np.nan, dtype=np.float32)
        out[0, self.model.sea] = np.maximum(x + self.model.climatology[start.time.month - 1], _FREEZING)
        yield {"sst": out[None]}, {}


def config_of(denoiser: NetworkDenoiser) -> dict[str, Any]:
    """The sizes of a network, plain values."""
    config = denoiser.network.config
    assert isinstance(config, AmplitudeConfig)
    return config.to_json()


def logit_normal_grid(n: int) -> Tensor:
    """The sampler's times: where the network was trained."""
    return logit_normal(n, mean=0.0, std=1.4, start=0.999)


def conditions(regression: SeasonalRegression, past: Array) -> Array:
    """The amplitudes of the past `[..., 5, points]` that the network sees."""
    a = regression.amplitudes(past[..., [0, PAST.index(6)], :])
    return np.concatenate([a[..., i, :count] for i, count in enumerate(CONDITIONS)], -1)


def season(month: NDArray[np.intp]) -> Array:
    """Cosine and sine of the time of the year, `[n, 2]`."""
    angle = 2 * np.pi * month / 12
    return np.stack([np.cos(angle), np.sin(angle)], -1)
