"""A trained downscaling: coarse fields of a file, and fine ones drawn for each, a member at a time.

A member is a function of the coarse field, the run's seed and its own number. A map of any size is evaluated by tiles
(`perrin.nets.local_unet.by_tiles`); their size changes memory and speed, and the result only by rounding. Sums for the
conservation of the coarse means are in float64.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perrin.bundle import Bundle, tuples
from perrin.core import SOLVERS, CounterNoise, Dense, plan_steps, sample
from perrin.core.grids import logit_normal
from perrin.core.noise import splitmix64_tensor
from perrin.errors import PerrinError
from perrin.modalities.weather import amounts
from perrin.modalities.weather.downscaling import (
    FIELD,
    DownscaleConfig,
    ResidualNetwork,
    Scales,
    block_mean,
    conserve,
    inputs,
    interpolate,
    inverse,
    mean_field,
    mean_input,
    places,
    regress,
    residual_denoiser,
    spread,
    transform,
)
from perrin.modalities.weather.grid import cell_areas, is_circle
from perrin.nets.local_unet import LocalUNet, by_tiles, tiled_work

if TYPE_CHECKING:  # the model runs where there is no xarray
    from perrin.modalities.weather.fields import Fields

TILE = 256
_KELVIN, _CELSIUS = (
    ("K", "kelvin", "Kelvin", "degK"),
    ("degC", "degree_Celsius", "degrees_Celsius", "celsius", "C"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """What a model knows of its region, on its fine grid.

    Arguments:
        lat_edges, lon_edges: of the cells, degrees, ascending.
        climatology: of January to December, `[12, C, rows, columns]`, NaN where there is none.
        regression: of fine departures on coarse ones, `[C, rows / f, columns / f, 9, f²]`.
    """

    lat_edges: Tensor
    lon_edges: Tensor
    climatology: Tensor
    regression: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CoarseStart:
    """A valid time, or the start of a forecast, and its coarse fields, `[K, L, C, rows, columns]`: members and leads;
    what else is to be said of the fine fields."""

    time: Any
    months: tuple[int, ...]
    states: NDArray[np.float64]
    comments: Mapping[str, str] = field(default_factory=dict)


class DownscaleModel:
    """See the module's text.

    Arguments:
        config: its fields and sizes.
        mean, residual: the networks, in evaluation mode.
        scales: see there.
        attributes: of each field.
        place: of models with places.
        steps: network evaluations for a field.
        inflation: γ, a factor of the residual, chosen on times that were not trained on.
        interval: of amounts, seconds, where it is known.
    """

    kind = "downscale"

    def __init__(
        self,
        config: DownscaleConfig,
        mean: LocalUNet,
        residual: ResidualNetwork,
        scales: Scales,
        attributes: dict[str, dict[str, str]],
        place: Place | None = None,
        *,
        steps: int = 16,
        inflation: float = 1.0,
        interval: float | None = None,
        name: str = "",
        sha256: str = "",
    ) -> None:
        self.config, self.mean, self.residual, self.scales = config, mean, residual, scales
        self.attributes, self.place, self.steps, self.inflation = attributes, place, steps, inflation
        self.interval, self.name, self.sha256 = interval, name, sha256

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scales.mean.device

    def weights(self) -> dict[str, Tensor]:
        """All that a bundle keeps as tensors."""
        out = {f"scales.{k}": v for k, v in vars(self.scales).items()}
        out |= {f"mean.{k}": v for k, v in self.mean.named_parameters()}
        out |= {f"residual.{k}": v for k, v in self.residual.net.named_parameters()}
        if self.place is not None:  # whole numbers: half precision would round 28 °C to 0.016 K
            known = self.place.climatology.isfinite()
            out["place.known"] = known.all(0).to(torch.uint8)
            numbers = torch.where(known, self.place.climatology / self._unit(), 0)
            out["place.climatology"] = numbers.round().to(torch.int16)
            out["place.regression"] = self.place.regression
        return {k: v.detach().cpu().contiguous() for k, v in out.items()}

    def to_json(self) -> dict[str, Any]:
        """The configuration of a bundle."""
        words: dict[str, Any] = {
            "kind": self.kind,
            "network": self.config.to_json(),
            "attributes": self.attributes,
            "steps": self.steps,
            "inflation": self.inflation,
        }
        if self.interval is not None:
            words["interval"] = self.interval
        if self.place is not None:
            words["climatology_unit"] = self._unit()
            words["latitude_edges"] = self.place.lat_edges.tolist()
            words["longitude_edges"] = self.place.lon_edges.tolist()
        return words

    def _unit(self) -> float:
        """Of the climatology's whole numbers."""
        assert self.place is not None
        return float(self.place.climatology.nan_to_num(0).abs().max()) / 32000

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> DownscaleModel:
        """Read one.

        Raises:
            PerrinError: it is not a model of this kind, or incomplete.
        """
        try:
            model, w = bundle.config["model"], bundle.weights()
            config = DownscaleConfig(**tuples(model["network"]))
            mean, residual = (
                LocalUNet(config.network(residual=False)),
                ResidualNetwork(config.network(residual=True)),
            )
            with torch.no_grad():
                for head, net in (("mean", mean), ("residual", residual.net)):
                    for k, p in net.named_parameters():
                        p.copy_(w[f"{head}.{k}"])
            place = None
            if config.static:
                usual = w["place.climatology"].double() * float(model["climatology_unit"])
                climatology = torch.where(w["place.known"] > 0, usual, torch.nan)
                edges = (
                    torch.tensor(model[f"{k}_edges"], dtype=torch.float64) for k in ("latitude", "longitude")
                )
                place = Place(
                    lat_edges=next(edges),
                    lon_edges=next(edges),
                    climatology=climatology,
                    regression=w["place.regression"].double(),
                )
            mean.eval().requires_grad_(False).to(device)
            residual.eval().requires_grad_(False).to(device)
            return cls(
                config,
                mean,
                residual,
                Scales(**{k: w[f"scales.{k}"] for k in ("mean", "std", "detail", "residual")}).to(device),
                model["attributes"],
                place,
                steps=int(model["steps"]),
                inflation=float(model["inflation"]),
                interval=None if model.get("interval") is None else float(model["interval"]),
                name=bundle.path.name,
                sha256=bundle.sha256,
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected a downscaling model in {bundle.path}, given another ({error}): get it again"
            ) from error


class Downscaling:
    """A model on the grid of coarse fields: what `perrin.modalities.weather.forecast.rollout` rolls out.

    Arguments:
        model: see there.
        latitude, longitude: of the coarse cells' centres, ascending, degrees.
        unit: of forecast periods.
        tile: cells of a tile, each way.

    Raises:
        PerrinError: the cells are not those of the model's region, or not of about the size that it was trained on.
    """

    def __init__(
        self,
        model: DownscaleModel,
        latitude: NDArray[np.float64],
        longitude: NDArray[np.float64],
        *,
        unit: str = "hours",
        tile: int = TILE,
    ) -> None:
        self.model, self.unit = model, unit
        self.name, self.sha256 = model.name, model.sha256
        config, f = model.config, model.config.factor
        coarse = even_edges(latitude, "latitude"), even_edges(longitude, "longitude")
        lat_edges, lon_edges = (np.linspace(e[0], e[-1], f * (len(e) - 1) + 1) for e in coarse)
        self.latitude, self.longitude = ((e[1:] + e[:-1]) / 2 for e in (lat_edges, lon_edges))
        self.circle = is_circle(self.longitude)
        self.area = torch.from_numpy(cell_areas(lat_edges, lon_edges)).to(model.device)
        rows, columns = self.area.shape
        fixed, self.climatology, self.detail = [places(rows, columns, f)], None, model.scales.detail
        if model.place is None:
            cell = abs(lat_edges[1] - lat_edges[0])
            if not 2 / 3 < cell / config.cell < 3 / 2:
                raise PerrinError(
                    f"expected coarse cells of about {config.cell * f:.2g} degrees, given {cell * f:.2g}: "
                    "remap them, or train a model for them"
                )
        else:
            i, j = self._find(model.place, lat_edges, lon_edges)
            self.climatology = model.place.climatology[:, :, i][..., j].double().to(model.device)
            self.detail = model.scales.detail[:, i][..., j]
            self.regression = model.place.regression[:, i[::f] // f][:, :, j[::f] // f].to(model.device)
            phi = torch.deg2rad(torch.from_numpy(self.latitude)).float()[:, None].expand(rows, columns)
            fixed += [self.detail.cpu().clamp(min=1e-6).log(), torch.stack([phi.sin(), phi.cos()])]
        self.static = torch.cat(fixed).to(model.device)
        net = model.residual.net.config
        size = max(net.stride, tile // net.stride * net.stride)
        self.margin, self.work = net.halo, tiled_work(rows, columns, size, net.halo, circle=self.circle)
        self.evaluate = partial(by_tiles, size=size, halo=net.halo, stride=net.stride, circle=self.circle)
        self.denoiser = residual_denoiser(model.residual, rows, columns)
        self.plan = plan_steps(
            self.denoiser.process,
            SOLVERS["dpmpp-2m"],
            model.steps,
            grid=lambda n: logit_normal(n, mean=0.2, std=1.6, start=0.999),
        )

    @staticmethod
    def _find(
        place: Place, lat_edges: NDArray[np.float64], lon_edges: NDArray[np.float64]
    ) -> tuple[Tensor, Tensor]:
        """Where the fine cells are in the model's region."""
        out = []
        for word, own, given in (
            ("latitude", place.lat_edges.numpy(), lat_edges),
            ("longitude", place.lon_edges.numpy(), lon_edges),
        ):
            step = own[1] - own[0]
            turn = 360.0 if word == "longitude" else 0.0
            away = given[:-1] - own[0]
            away = np.mod(away + step / 2, 360) - step / 2 if turn else away
            number = np.round(away / step).astype(np.int64)
            wrong = np.abs(away - number * step).max() > 0.01 * step
            wrong |= abs(given[1] - given[0] - step) > 0.01 * step
            if wrong or number.min() < 0 or number.max() >= len(own) - 1:
                raise PerrinError(
                    f"expected coarse cells made of the model's cells of {step:g} degrees between {word}s {own[0]:g} and "
                    f"{own[-1]:g}, given edges {given[0]:g} to {given[-1]:g}: remap them (perrin data weather/coarse "
                    "makes such cells)"
                )
            out.append(torch.from_numpy(number))
        return out[0], out[1]

    @property
    def together(self) -> int:
        """One member at a time: its bits are then its own, and one map is in memory."""
        return 1

    def fields(self, start: CoarseStart) -> dict[str, dict[str, str]]:
        """The variables and their attributes."""
        # `cell_methods` speaks of `time`, which forecasts have in two parts
        attributes = self.model.attributes.items()
        out = {k: {a: v for a, v in words.items() if a != "cell_methods"} for k, words in attributes}
        for name, comment in start.comments.items():
            out[name]["comment"] = comment
        return out

    @torch.no_grad()
    def members(
        self,
        start: CoarseStart,
        seeds: Tensor,
        cuts: Sequence[int],
        numbers: Sequence[int],
        *,
        at: int = 0,
        states: dict[str, Tensor] | None = None,
    ) -> Iterator[tuple[dict[str, NDArray[np.float32]], dict[str, Tensor]]]:
        """Fine fields, each of its own coarse one, so that there is no state; member k is of coarse member k mod K."""
        for cut in cuts:
            found = []
            for lead in range(at, cut):
                own = seeds if lead == 0 else splitmix64_tensor(seeds, lead)
                for seed, number in zip(own, numbers):
                    c = torch.from_numpy(start.states[number % len(start.states), lead])
                    found.append(self.draw(c, start.months[lead], seed[None])[0].float().cpu().numpy())
            # one after another: members fastest
            each = np.stack(found).reshape(cut - at, -1, *found[0].shape).swapaxes(0, 1)
            yield {name: each[:, :, i] for i, name in enumerate(self.model.config.fields)}, {}
            at = cut

    @torch.no_grad()
    def look(self, c: Tensor, month: int) -> dict[str, Tensor]:
        """What there is to know of a coarse field before any member: what the networks see, and ŷ, `mean`.

        `usual` is what is left out of these, the fine climatology or zeros, NaN where there is to be nothing.

        Arguments:
            c: `[C, rows, columns]`, float64, NaN where there is none.
            month: 0 for January.
        """
        model, f = self.model, self.model.config.factor
        c = c.to(model.device)
        usual = torch.zeros_like(spread(c, f)) if self.climatology is None else self.climatology[month]
        mask = (spread(c, f) + usual).isfinite().all(0, keepdim=True)
        coarse_usual = block_mean(usual, self.area, f, whole=False)
        away = c - coarse_usual
        b = self.first_guess(away)
        parts = {"b": b, "c": spread(away, f)}
        out = {k: torch.where(mask, v, 0).float()[None] for k, v in parts.items()}
        out["mask"] = mask[None].float()
        seen = [inputs(out["b"], out["c"], out["mask"], model.config, model.scales), self.static[None]]
        if self.climatology is not None:
            seen.append(self.seasonal(usual, coarse_usual, month)[None])
        out |= {"condition": torch.cat(seen, 1), "coarse": c, "usual": torch.where(mask, usual, torch.nan)}
        zero = torch.zeros(1, device=model.device)
        u = self.evaluate(lambda x: model.mean(x, zero), out["condition"])
        return out | {"mean": mean_field(u, out["b"], out["c"], self.detail, model.config)}

    def first_guess(self, away: Tensor) -> Tensor:
        """b of coarse departures `[C, rows, columns]`."""
        f = self.model.config.factor
        if self.model.place is None:
            return interpolate(away, f, circle=self.circle)
        return torch.stack([regress(v, w, f, circle=self.circle) for v, w in zip(away, self.regression)])

    def seasonal(self, usual: Tensor, coarse_usual: Tensor, month: int) -> Tensor:
        """What the mean is told of the climatology of a month: its detail in units of s, and the season."""
        smooth = interpolate(coarse_usual, self.model.config.factor, circle=self.circle)
        fine = ((usual - smooth) / self.detail).nan_to_num(0)
        angle = torch.tensor(2 * np.pi * month / 12)
        season = torch.stack([angle.cos(), angle.sin()])[:, None, None].expand(-1, *usual.shape[-2:])
        return torch.cat([fine.float(), season.to(fine.device)])

    def mean(self, c: Tensor, month: int) -> Tensor:
        """The deterministic fine field, conserving, `[C, rows, columns]`, float64."""
        seen = self.look(c, month)
        return self._finish(seen["mean"], seen)[0]

    def draw(self, c: Tensor, month: int, seeds: Tensor) -> Tensor:
        """Members' fine fields, conserving, `[B, C, rows, columns]`, float64.

        Arguments:
            c: coarse field, `[C, rows, columns]`, float64, NaN where there is none.
            month: 0 for January.
            seeds: of the members, `[B]`, int64.
        """
        seen = self.look(c, month)
        return self.compose(self.residual(seen, seeds), seen)

    @torch.no_grad()
    def residual(self, seen: dict[str, Tensor], seeds: Tensor) -> Tensor:
        """r of members, `[B, C, rows, columns]`, given what `look` found."""
        config = self.model.config
        counted = seen["mask"] * (seen["c"] > 0).all(1, keepdim=True) if config.amounts else seen["mask"]
        if not counted.any():  # dry, or all of it missing
            return torch.zeros_like(seen["b"]).expand(len(seeds), -1, -1, -1)
        told = mean_input(seen["mean"], seen["b"], self.detail, config)

        def denoiser(x: Any, t: Tensor, **more: Any) -> Any:
            return {FIELD: self.denoiser(x, t, **more)[FIELD] * counted}  # the rest was zero in training

        self.model.residual.evaluate = partial(self.evaluate, where=counted[0, 0] > 0)
        state = sample(
            denoiser,
            self.denoiser.process,
            self.plan,
            {FIELD: Dense(len(seeds), self.model.device)},
            CounterNoise(seeds.to(self.model.device)),
            condition=torch.cat([seen["condition"], told], 1).expand(len(seeds), -1, -1, -1),
        )
        return state[FIELD]

    @torch.no_grad()
    def compose(self, r: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """Fine fields of residuals."""
        config, scales = self.model.config, self.model.scales
        scale = self.model.inflation * scales.residual[:, None, None] * (1 if config.amounts else self.detail)
        return self._finish(inverse(transform(seen["mean"], config) + scale * r, config), seen)

    def _finish(self, y: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """With the climatology and the coarse means."""
        config = self.model.config
        return conserve(seen["usual"] + y, seen["coarse"], self.area, config.factor, amounts=config.amounts)

    # ---- reading

    def starts(
        self, fields: Fields, parts: Sequence[str], wanted: Sequence[bool] | None = None
    ) -> list[CoarseStart]:
        """The coarse fields of a file: one start for each valid time, or for each start of forecasts.

        Arguments:
            fields: the file; its grid is this one's.
            parts: its variables, in the model's order.
            wanted: whether each of its starts is; all by default.

        Raises:
            PerrinError: amounts are negative, or of another interval than the model's; a unit cannot be converted; all is
                missing.
        """
        names = self.model.config.fields
        convert = [self._conversion(fields, part, name) for part, name in zip(parts, names)]
        comments = {n: c for part, n in zip(parts, names) if (c := self._comment(fields, part, n))}
        out = []
        for init, time in enumerate(fields.references):
            if wanted is not None and not wanted[init]:
                continue
            each = []
            for lead in range(len(fields.leads)):
                found = [k(fields.forecast(p, init, lead)) for p, k in zip(parts, convert)]
                each.append(np.stack(found, 1))  # [K, C, rows, columns]
            states = np.stack(each, 1)
            if not np.isfinite(states).any():
                raise PerrinError(
                    f"expected values at {time}, given none in {fields.label}: leave that time out"
                )
            if self.model.config.amounts and np.nanmin(states) < 0:
                raise PerrinError(
                    f"expected amounts, given {np.nanmin(states):g} at {time} in {fields.label}: set negative ones to 0"
                )
            months = tuple(lead.after(time).month - 1 for lead in fields.leads)
            out.append(CoarseStart(time=time, months=months, states=states, comments=comments))
        return out

    def _conversion(self, fields: Fields, part: str, name: str) -> Any:
        """From the file's unit to the model's."""
        given, wanted = fields.units(part), self.model.attributes[name].get("units", "")
        if self.model.config.amounts:
            if wanted and not given:
                raise PerrinError(
                    f"expected {part} with its unit, given none in {fields.label}: set its attribute units, for example "
                    f"{wanted!r}"
                )
            amounts.check_interval(fields, part, self.model.interval)
            factor = amounts.factor(given, wanted, self.model.interval)
            if factor is not None:
                return lambda x: x if factor == 1 else x * factor
        if given == wanted or not given or not wanted:
            return lambda x: x
        if given in (*_KELVIN, *_CELSIUS) and wanted in (*_KELVIN, *_CELSIUS):
            offset = 273.15 * ((wanted in _KELVIN) - (given in _KELVIN))
            return lambda x: x + offset
        raise PerrinError(f"expected {part} in {wanted}, given {given!r} in {fields.label}: convert it")

    def _comment(self, fields: Fields, part: str, name: str) -> str:
        """Over how long amounts are that the file has as rates."""
        units = fields.units(part), self.model.attributes[name].get("units", "")
        given, wanted = map(amounts.parse_unit, units)
        if not self.model.interval or not (given and wanted) or given.seconds is None or wanted.seconds:
            return ""
        return f"amounts over {amounts.duration(self.model.interval)}, made of rates in {units[0]}"


def even_edges(centres: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """The edges of cells of one size in degrees.

    Raises:
        PerrinError: they are of several sizes.
    """
    step = np.diff(centres)
    if len(step) < 1 or step.min() <= 0 or step.max() - step.min() > 0.01 * step.mean():
        given = f"steps of {step.min():g} to {step.max():g} degrees" if len(step) else "a single one"
        raise PerrinError(f"expected {name}s in even steps, given {given}: remap them to a regular grid")
    half = (centres[-1] - centres[0]) / (2 * len(step))
    return np.linspace(centres[0] - half, centres[-1] + half, len(centres) + 1)


def find_parts(fields: Fields, model: DownscaleModel) -> list[str]:
    """A file's variables for the model's fields: by name, else by standard name.

    Raises:
        PerrinError: there is none.
    """
    out = []
    for name in model.config.fields:
        standard = model.attributes[name].get("standard_name", "")
        attributes = {p: fields.dataset[v.variable].attrs for p, v in fields.parts.items()}
        same = amounts.STANDARD_NAMES if standard in amounts.STANDARD_NAMES else (standard,)
        by_standard = [p for p, a in attributes.items() if standard and a.get("standard_name") in same]
        found = [name] if name in fields.parts else by_standard
        if not found:
            raise PerrinError(
                f"expected {name} ({standard or 'no standard_name'}) in {fields.label}, given {', '.join(fields.parts)}: "
                "rename the variable or set its standard_name"
            )
        out.append(found[0])
    return out


def parse_spans(texts: Sequence[str], option: str = "a span") -> list[tuple[str, str]]:
    """`1990-01/2009-12`, or `2020-10-31T05:30/2020-10-31T08:30`, as pairs.

    Raises:
        PerrinError: it is neither.
    """
    form = r"\d{4}(-\d{2}(-\d{2}(T\d{2}(:\d{2})?)?)?)?"
    out = []
    for text in texts:
        ends = text.split("/")
        if len(ends) != 2 or not all(re.fullmatch(form, e) for e in ends) or ends[0] > ends[1]:
            raise PerrinError(f"expected {option} such as 1990-01/2009-12, given {text!r}")
        out.append((ends[0], ends[1]))
    return out


def inside(times: Sequence[Any], spans: Sequence[tuple[str, str]]) -> NDArray[np.bool_]:
    """Which times lie in any of the spans, ends included."""
    words = [t.isoformat() for t in times]
    return np.array([any(a <= w[: len(a)] and w[: len(b)] <= b for a, b in spans) for w in words], dtype=bool)
