"""Verification of ensemble forecasts, in one pass over them and in bounded memory.

Every score is a function of sums over points, members and initial times. The sums are taken in float64 over bands of
latitudes, weighted by the cells' exact areas, at the points where truth and all members of the forecast and of its
references are known; those of an initial time are kept, which gives standard errors by a bootstrap of blocks of
consecutive initial times (Künsch 1989) with the same draws for all scores, skills included. With ⟨·⟩ the mean over area and
initial times, x̄ the ensemble mean, s² the members' variance (divisor M − 1) and c the climatological mean:

    bias ⟨x̄ − y⟩    mae ⟨|x̄ − y|⟩    rmse √⟨(x̄ − y)²⟩    spread √⟨s²⟩    ssr √((M+1)/M) spread / rmse
    acc  Σ (x̄ − c)(y − c) / √(Σ (x̄ − c)² Σ (y − c)²), by area; the mean over initial times

A reliable ensemble has ssr 1 (Fortin et al. 2014). CRPS, energy score and events: `perrin.modalities.weather.scores`.
A single member's CRPS is its absolute error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perrin.errors import PerrinError
from perrin.modalities.weather import scores
from perrin.modalities.weather.fields import Fields, Lead
from perrin.modalities.weather.sources import REFERENCES, Climatology, Ensemble, Persistence, Source

Array = NDArray[np.float64]
Sums = dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What to compute.

    Arguments:
        against: references to compute skill against, of `REFERENCES`.
        thresholds: events are values above these, in the variable's unit.
        quantiles: … or above these quantiles of the climatology, at each point and time of the year.
        block: initial times in a block of the bootstrap; by default the cube root of their number.
        resamples: of the bootstrap.
        seed: of the bootstrap and of ties in ranks.
        megabytes: memory for members at a time.
        degrees: degrees of spherical harmonics of the spectra, at most; 0 for none.
    """

    against: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    block: int | None = None
    resamples: int = 1000
    seed: int = 0
    megabytes: float = 64
    degrees: int = 256

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            PerrinError: one is out of range.
        """
        for name in self.against:
            if name not in REFERENCES:
                raise PerrinError(f"expected references among {', '.join(REFERENCES)}, given {name!r}")
        for q in self.quantiles:
            if not 0 < q < 1:
                raise PerrinError(f"expected quantiles between 0 and 1, given {q}")
        if self.seed < 0:
            raise PerrinError(f"expected a seed of at least 0, given {self.seed}")
        for name in ("resamples", "megabytes", "block"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise PerrinError(f"expected {name} above 0, given {value}")


def verify(
    forecast: Fields,
    truth: Fields,
    options: VerifyOptions | None = None,
    climatology: Climatology | None = None,
) -> dict[str, Any]:
    """Scores of a forecast, by variable and forecast period.

    Arguments:
        forecast: an ensemble or a single forecast.
        truth: analyses or observations on the same grid, by valid time.
        options: see there.
        climatology: of the truth; needed for the anomaly correlation, quantiles and two of the references.

    Returns:
        What JSON can hold: `variables`, by name, each with its `units` and `leads`; a lead has `scores` (value and
        standard error), `rank_histogram`, `events`, `spectrum`, and for each reference its `scores` and the `skill`.

    Raises:
        PerrinError: grids, units, variables or times do not match, or a climatology is needed.
    """
    options = options or VerifyOptions()
    needs = [a for a in options.against if a != "persistence"] + [f"quantile {q}" for q in options.quantiles]
    if needs and climatology is None:
        raise PerrinError(f"expected a climatology for {needs[0]}, given none: add --climatology FILE")
    extra = [
        d for d in ("realization", "forecast_reference_time", "forecast_period") if d in truth.dataset.dims
    ]
    if extra:
        raise PerrinError(
            f"expected a truth by valid time alone, given {truth.label} with {', '.join(extra)}: the forecast comes "
            "first, then the truth"
        )
    check_grids(forecast, truth)
    names = match(forecast, truth)
    if climatology is not None:
        check_grids(climatology.fields, truth)
        match(climatology.fields, truth)  # for its units
        if set(names) - set(climatology.fields.parts):
            raise PerrinError(
                f"expected {', '.join(names)} in the climatology, given {', '.join(climatology.fields.parts)} in "
                f"{climatology.fields.label}: rename or add what is missing"
            )
    sources: dict[str, Source] = {"forecast": Ensemble(forecast, names)}
    for name in options.against:
        if name == "climatology":
            assert climatology is not None
            sources[name] = climatology
        else:
            sources[name] = Persistence(truth, climatology if name == "anomaly-persistence" else None)
    variables = {}
    for part in names:
        rows = []
        for lead in forecast.leads:
            starts = [
                t
                for t in forecast.references
                if truth.find(lead.after(t)) is not None and all(s.has(t, lead) for s in sources.values())
            ]
            if starts:
                rows.append(_verify_lead(part, lead, starts, sources, truth, climatology, options))
        if not rows:
            raise PerrinError(
                f"expected truth at the forecast's valid times ({forecast.leads[0].after(forecast.references[0])} …), "
                f"given {truth.label} from {truth.times[0]} to {truth.times[-1]}"
            )
        if not forecast.has_leads:
            rows[0]["lead"] = "–"
        variables[part] = {"units": truth.units(part), "leads": rows}
    return {
        "forecast": forecast.label,
        "truth": truth.label,
        "members": forecast.members,
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(options).items()},
        "variables": variables,
    }


def _verify_lead(
    part: str,
    lead: Lead,
    starts: Sequence[Any],
    sources: dict[str, Source],
    truth: Fields,
    climatology: Climatology | None,
    options: VerifyOptions,
) -> dict[str, Any]:
    spectra = _spectra(truth, options)
    kept: dict[str, list[Sums]] = {name: [] for name in sources}
    for number, start in enumerate(starts):
        valid = lead.after(start)
        total: dict[str, Sums] = {}
        width = truth.longitude.size * 8 * 6 * sum(s.members for s in sources.values())
        step = max(1, int(options.megabytes * 2**20 / width))
        for low in range(0, truth.latitude.size, step):
            rows = slice(low, min(low + step, truth.latitude.size))
            y = truth.read(part, rows, time=truth.find(valid))
            members = {name: s.ensemble(part, start, lead, rows) for name, s in sources.items()}
            mean = climatology.mean(part, valid, rows) if climatology else None
            known = np.isfinite(y)
            for x in members.values():
                known &= np.isfinite(x).all(0)
            if mean is not None:
                known &= np.isfinite(mean)
            w = truth.area[rows][known] / truth.area.sum()
            limits: list[Any] = [np.full(len(w), t) for t in options.thresholds]
            if options.quantiles and climatology:
                states = climatology.at(part, valid, rows)[:, known]
                limits += list(np.quantile(states, options.quantiles, axis=0))
            uniform = _uniform(options.seed, number, low * truth.longitude.size, y.shape)[known]
            for name, x in members.items():
                found = _sums(
                    x[:, known], y[known], w, uniform, limits, None if mean is None else mean[known]
                )
                total[name] = {k: total[name][k] + v for k, v in found.items()} if name in total else found
        for name, found in total.items():
            kept[name].append(_finish(found))
        if spectra is not None:
            kept["forecast"][-1] |= spectra(part, start, lead, sources["forecast"], truth)
    return _summary(lead, {n: _stack(k) for n, k in kept.items()}, sources, options)


def _sums(x: Array, y: Array, w: Array, uniform: Array, limits: list[Any], mean: Array | None) -> Sums:
    """Sums over points of one band: members `[M, points]`, truth, weights, ties, thresholds, climatological mean."""
    count = len(x)
    fair, biased = scores.crps(x, y)
    error = x.mean(0) - y
    out = {
        "weight": w.sum(),
        "crps": fair @ w if count > 1 else biased @ w,
        "crps_biased": biased @ w,
        "error": error @ w,
        "absolute": np.abs(error) @ w,
        "square": error**2 @ w,
        "variance": x.var(0, ddof=1) @ w if count > 1 else np.nan,
        "distances": scores.squared_distances(x - y, w),
        "ranks": np.bincount(scores.ranks(x, y, uniform), weights=w, minlength=count + 1),
    }
    if mean is not None:
        a, b = x.mean(0) - mean, y - mean
        out |= {"ab": a * b @ w, "aa": a * a @ w, "bb": b * b @ w}
    for i, limit in enumerate(limits):
        out[f"event{i}"] = scores.event_table(x, y, limit, w)
        chained = scores.crps(np.maximum(x, limit), np.maximum(y, limit))
        out[f"tail{i}"] = chained[0 if count > 1 else 1] @ w
    return {k: np.asarray(v, dtype=np.float64) for k, v in out.items()}


def _finish(found: Sums) -> Sums:
    """Replace what does not add over initial times, by a value and a count that do."""
    out = dict(found)
    energy = scores.energy_score(out.pop("distances"), float(out["weight"])) if out["weight"] > 0 else np.nan
    out["energy"], out["energies"] = np.nan_to_num(energy), np.asarray(float(np.isfinite(energy)))
    if "ab" in out:
        size = np.sqrt(out.pop("aa") * out.pop("bb"))
        with np.errstate(invalid="ignore", divide="ignore"):
            acc = out.pop("ab") / size
        out["acc"], out["accs"] = np.nan_to_num(acc), np.asarray(float(np.isfinite(acc)))
    return out


def _stack(kept: list[Sums]) -> Sums:
    """One row for each initial time; a climatology of incomplete years has more states for some, thus more ranks."""
    longest = max(len(s["ranks"]) for s in kept)
    ranks = np.stack([np.pad(s["ranks"], (0, longest - len(s["ranks"]))) for s in kept])
    return {k: ranks if k == "ranks" else np.stack([np.asarray(s[k]) for s in kept]) for k in kept[0]}


def _scores(s: Sums, members: int) -> dict[str, Array]:
    """Scores of sums over initial times, `[...]` each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        w = s["weight"]
        out = {
            "crps": s["crps"] / w,
            "crps_biased": s["crps_biased"] / w,
            "mae": s["absolute"] / w,
            "rmse": np.sqrt(s["square"] / w),
            "bias": s["error"] / w,
        }
        if members > 1:
            out["spread"] = np.sqrt(s["variance"] / w)
            out["ssr"] = math.sqrt((members + 1) / members) * out["spread"] / out["rmse"]
            out["energy"] = s["energy"] / s["energies"]
        if "acc" in s:
            out["acc"] = s["acc"] / s["accs"]
        if "power" in s:
            out["log_spectrum_error"] = np.abs(np.log(s["power"] / s["power_truth"])[..., 1:]).mean(-1)
    return out


def _summary(
    lead: Lead, sums: dict[str, Sums], sources: dict[str, Source], options: VerifyOptions
) -> dict[str, Any]:
    number = len(sums["forecast"]["weight"])
    draws = block_draws(number, options.block, options.resamples, options.seed)

    def table(compute: Callable[[dict[str, Sums]], dict[str, Array]]) -> dict[str, dict[str, float | None]]:
        value = compute({n: {k: v.sum(0) for k, v in s.items()} for n, s in sums.items()})
        if number == 1:
            return {k: {"value": _number(v), "error": None} for k, v in value.items()}
        again = compute({n: {k: np.tensordot(draws, v, 1) for k, v in s.items()} for n, s in sums.items()})
        with np.errstate(invalid="ignore"):
            return {
                k: {"value": _number(v), "error": _number(again[k].std(ddof=1))} for k, v in value.items()
            }

    members = {name: len(s["ranks"][0]) - 1 for name, s in sums.items()}
    own = sums["forecast"]
    out: dict[str, Any] = {
        "lead": str(lead),
        "months": lead.months,
        "seconds": lead.seconds,
        "initial_times": number,
        "coverage": _number(own["weight"].mean()),
        "scores": table(lambda s: _scores(s["forecast"], members["forecast"])),
        "rank_histogram": _shares(own["ranks"].sum(0)),
        "references": {},
    }
    for name in sums:
        if name == "forecast":
            continue

        def skill(s: dict[str, Sums], name: str = name) -> dict[str, Array]:
            ours, theirs = (_scores(s[n], members[n]) for n in ("forecast", name))
            with np.errstate(invalid="ignore", divide="ignore"):  # persistence has no error at lead 0
                return {k: 1 - ours[k] / theirs[k] for k in ("crps", "rmse")}

        out["references"][name] = {
            "members": members[name],
            "scores": table(lambda s, name=name: _scores(s[name], members[name])),  # type: ignore[misc]
            "skill": table(skill),
        }
    labels = [{"threshold": t} for t in options.thresholds] + [{"quantile": q} for q in options.quantiles]
    out["events"] = []
    for i, label in enumerate(labels):

        def event(s: dict[str, Sums], i: int = i) -> dict[str, Array]:
            own = s["forecast"]
            return scores.event_scores(own[f"event{i}"]) | {"twcrps": own[f"tail{i}"] / own["weight"]}

        diagram = scores.reliability(own[f"event{i}"].sum(0))
        shown = {k: [_number(x) for x in v] for k, v in diagram.items()}
        out["events"].append(label | {"scores": table(event), "reliability": shown})
    power, other = (own.get(k, np.full((1, 1), np.nan)).mean(0) for k in ("power", "power_truth"))
    if np.isfinite(power + other).all():
        out["spectrum"] = {"forecast": power.tolist(), "truth": other.tolist()}
    return out


def block_draws(number: int, block: int | None, resamples: int, seed: int) -> Array:
    """How often each initial time is drawn, `[resamples, number]`: a circular bootstrap of consecutive blocks."""
    size = min(block or math.ceil(number ** (1 / 3)), number)
    blocks = math.ceil(number / size)
    start = np.random.default_rng(seed).integers(0, number, (resamples, blocks, 1))
    index = ((start + np.arange(size)) % number).reshape(resamples, -1)[:, :number]
    flat = index + np.arange(resamples)[:, None] * number
    return (
        np.bincount(flat.ravel(), minlength=resamples * number).reshape(resamples, number).astype(np.float64)
    )


def _spectra(truth: Fields, options: VerifyOptions) -> Callable[..., Sums] | None:
    """A function that gives the mean power spectrum of members and that of the truth; `None` off the whole sphere."""
    spacing = np.diff(truth.longitude)
    if not options.degrees or not truth.is_global or not np.allclose(spacing, spacing[0], rtol=1e-3):
        return None
    import torch

    from perrin.nets.sphere import SphericalHarmonics, power

    rows, columns = truth.latitude.size, truth.longitude.size
    room = int(math.sqrt(2**28 / (16 * rows)))  # tables of 256 MB
    polar = 1 if abs(truth.latitude[0]) > 90 - 1e-6 else 0
    degree = min(options.degrees, room, rows - polar, (columns + 1) // 2)
    weight = torch.from_numpy(truth.area[:, 0])
    transform = SphericalHarmonics(torch.from_numpy(truth.latitude), columns, degree, weight=weight)

    def spectrum(x: Array) -> Array:
        if not np.isfinite(x).all():
            return np.full(degree, np.nan)
        return np.asarray(power(transform(torch.from_numpy(x))).numpy())

    def compute(part: str, start: Any, lead: Lead, source: Ensemble, truth: Fields) -> Sums:
        out = {"power_truth": spectrum(truth.read(part, time=truth.find(lead.after(start))))}
        out["power"] = np.zeros(degree)
        for k in range(source.members if np.isfinite(out["power_truth"]).all() else 0):
            out["power"] += spectrum(source.member(part, start, lead, k)) / source.members
        return out

    return compute


def _uniform(seed: int, number: int, offset: int, shape: tuple[int, ...]) -> Array:
    """Uniform numbers that belong to an initial time and its points, however these are cut into bands."""
    generator = np.random.PCG64([seed, number])
    generator.advance(offset)
    return np.random.Generator(generator).random(shape)


def check_grids(forecast: Fields, truth: Fields) -> None:
    """Say that two grids are not the same.

    Raises:
        PerrinError: they are not.
    """
    for name in ("latitude", "longitude"):
        a, b = getattr(forecast, name), getattr(truth, name)
        if len(a) != len(b) or np.abs(a - b).max() > 1e-3:
            raise PerrinError(
                f"expected the same grid, given {len(a)} {name}s from {a[0]:g} to {a[-1]:g} in {forecast.label} and "
                f"{len(b)} from {b[0]:g} to {b[-1]:g} in {truth.label}: remap one of them"
            )


def match(forecast: Fields, truth: Fields) -> dict[str, str]:
    """The forecast's name for each variable of the truth that it has.

    Raises:
        PerrinError: it has none, or units differ.
    """

    def standard(fields: Fields, part: str) -> str:
        attributes = fields.dataset[fields.parts[part].variable].attrs
        return str(attributes.get("standard_name", "")) + part.partition("@")[1] + part.partition("@")[2]

    names = {part: part for part in truth.parts if part in forecast.parts}
    if not names:
        theirs = {standard(forecast, p): p for p in forecast.parts if standard(forecast, p)}
        names = {p: theirs[standard(truth, p)] for p in truth.parts if standard(truth, p) in theirs}
    if not names and len(truth.parts) == len(forecast.parts) == 1:
        (ours,), (other,) = truth.parts, forecast.parts
        if not standard(truth, ours) or not standard(
            forecast, other
        ):  # else they say themselves that they differ
            names = {ours: other}
    if not names:
        raise PerrinError(
            f"expected a variable that both files have, given {', '.join(forecast.parts)} in {forecast.label} and "
            f"{', '.join(truth.parts)} in {truth.label}: rename one"
        )
    for ours, other in names.items():
        a, b = truth.units(ours), forecast.units(other)
        if a and b and a != b:
            raise PerrinError(
                f"expected {other} in {a}, as {ours} in {truth.label}, given {b} in {forecast.label}: if both are the same "
                "quantity, convert one and set its units"
            )
    return names


def _number(value: Any) -> float | None:
    """A float, or `None` for what JSON cannot say."""
    number = float(value)
    return number if math.isfinite(number) else None


def _shares(counts: Array) -> list[float | None]:
    with np.errstate(invalid="ignore"):
        return [_number(x) for x in counts / counts.sum()]
