"""Rollout of an ensemble to disk: a member at a time, and on from where it was.

A model supplies, for each start and member, fields of consecutive leads in segments; a template says by what they lie in
the store: by start and period (`by_period`), or, of one start, by valid time. A member is a function of the start, the
seed of the run and the member's number alone. The store (`stores.create_store`) lies in `OUT.partial` until
all of it is there; members that are done are listed in `OUT.partial/done`. After a segment is written the state at its
end is kept in `OUT.partial/state-START-MEMBER.safetensors`, from which one that was cut off goes on, with the same bits:
a rollout of many years loses no more than its last segment.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from perrin.core import sample_seeds
from perrin.errors import PerrinError
from perrin.modalities.weather.files import ORDER
from perrin.modalities.weather.means import Bins, bins
from perrin.modalities.weather.outputs import check_path
from perrin.modalities.weather.stores import create_store, finish, write_region
from perrin.run.atomic import write_tensors
from perrin.run.partial import read_key
from perrin.run.pool import map_unordered
from perrin.run.progress import progress

Fields32 = dict[str, NDArray[np.float32]]
States = dict[str, Tensor]
"""All that the next step depends on."""


class Ensemble(Protocol):
    """What can be rolled out."""

    name: str
    sha256: str

    def fields(self, start: Any) -> dict[str, dict[str, str]]:
        """Names and attributes of the variables."""

    @property
    def together(self) -> int:
        """How many members are made at once: 1 where bits are to be those of each alone, more to fill a GPU."""

    def members(
        self,
        start: Any,
        seeds: Tensor,
        cuts: Sequence[int],
        numbers: Sequence[int],
        *,
        at: int = 0,
        states: States | None = None,
    ) -> Iterator[tuple[Fields32, States]]:
        """Fields of consecutive leads, `[members, n, …]` each, a segment up to each of `cuts`, and the states at its end;
        from lead `at` and its states on, where they are given."""


class ForecastModel(Ensemble, Protocol):
    """What has leads, on latitudes and longitudes."""

    unit: str
    """Of the leads: `months` or `hours`."""
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What is asked for.

    Arguments:
        members: how many.
        leads: how many steps of the model.
        step: of the model, in its unit.
        every: means to write in place of every step (`means.bins`), for a model whose unit is hours.
        seed: of the run.
        workers: processes.
        periods: of the leads, where they are no multiples of a step.
    """

    members: int
    leads: int
    step: float
    every: str | None = None
    seed: int = 0
    workers: int = 1
    periods: tuple[float, ...] | None = None

    def pieces(self, starts: Sequence[Any]) -> Bins:
        """What is written together, of rollouts from these starts."""
        return bins(self.every, [s.time for s in starts], self.leads, int(self.step))


def member_seeds(seed: int, start: Any, members: Sequence[int]) -> Tensor:
    """The seeds of members of one start: of its date, so that they do not depend on the other starts."""
    date = zlib.crc32(_date(start.time).encode())
    return sample_seeds((seed << 32 ^ date) % 2**63, torch.tensor(members))


def _date(time: Any) -> str:
    return str(time.strftime("%Y-%m-%d %H:%M" if time.minute else "%Y-%m-%d %H"))


def rollout(
    model: Ensemble,
    starts: Sequence[Any],
    options: Rollout,
    out: str | Path,
    words: dict[str, str],
    template: xr.Dataset,
) -> int:
    """Write an ensemble; returns how many members were there already.

    Arguments:
        model: see `Ensemble`.
        starts: its starts, in the order of time.
        options: see there.
        out: .nc or .zarr.
        words: attributes of the file.
        template: coordinates of the file: `realization`, then `forecast_reference_time` and `forecast_period`, or `time`
            alone where there is one start, then those of a field.

    Raises:
        PerrinError: numbers are out of range, the name is none for an output, or unfinished work has other settings.
    """
    check_path(out)
    for name in ("members", "leads"):
        if getattr(options, name) < 1:
            raise PerrinError(f"expected {name} of at least 1, given {getattr(options, name)}")
    pieces = options.pieces(starts)
    out = Path(out)
    folder = out.with_name(out.name + ".partial")
    key = {
        "weights": model.sha256,
        "seed": options.seed,
        "members": options.members,
        "leads": options.leads,
        "every": options.every,
        "starts": [_date(s.time) for s in starts],
        "state": _digest(starts, template),
    }
    found = read_key(folder, key)
    store, log = folder / "data.zarr", folder / "done"
    if not (found and store.is_dir()):
        log.unlink(missing_ok=True)
        _create(store, template, model.fields(starts[0]), options, pieces, words)
    done = _done(log)
    each = model.together
    units = [
        (i, k)
        for i in range(len(starts))
        for k in range(0, options.members, each)
        if any((i, j) not in done for j in range(k, min(k + each, options.members)))
    ]
    whole = "forecast_reference_time" not in template.dims
    settings = (model, list(starts), options, pieces, str(store), whole)
    workers = min(options.workers, len(units) or 1)
    _STATE.clear()
    results = map_unordered(_run, units, workers=workers, setup=_setup, arguments=settings)
    total = len(starts) * options.members * pieces.leads
    with progress("forecast, steps", total) as advance, log.open("a") as file:
        _STATE["advance"] = advance if workers == 1 else None  # else a member is told of when it is whole
        advance(len(done) * pieces.leads)
        for i, numbers in (result for _, result in results):
            file.write("".join(f"{i} {k}\n" for k in numbers))
            file.flush()
            os.fsync(file.fileno())
            if workers > 1:
                advance(len(numbers) * pieces.leads)
    finish(store, out)
    shutil.rmtree(folder, ignore_errors=True)
    return len(done)


_STATE: dict[str, Any] = {}


def _setup(
    model: Ensemble, starts: list[Any], options: Rollout, pieces: Bins, store: str, whole: bool
) -> None:
    _STATE.update(model=model, starts=starts, options=options, pieces=pieces, store=store, whole=whole)
    torch.set_num_threads(1)


def _run(unit: tuple[int, int]) -> tuple[int, range]:
    """The members of one start from one number on, written segment by segment."""
    model, options, store = _STATE["model"], _STATE["options"], _STATE["store"]
    pieces: Bins = _STATE["pieces"]
    i, first = unit
    start = _STATE["starts"][i]
    made = range(
        first, first + model.together
    )  # always as many, so that a member does not depend on how many are asked for
    numbers = range(first, min(first + model.together, options.members))
    kept = Path(store).with_name(f"state-{i}-{first}.safetensors")
    at, states = _read_states(kept)
    if at and _STATE.get("advance"):
        _STATE["advance"](at * len(numbers))
    cuts = [c for c in pieces.cuts if c > at]
    segments = model.members(start, member_seeds(options.seed, start, made), cuts, made, at=at, states=states)
    for cut, (part, states) in zip(cuts, segments, strict=True):
        for name, values in part.items():
            where, values = pieces.reduce(values, at)
            for k, x in zip(numbers, values):
                if len(x):
                    write_region(store, name, (k, where) if _STATE["whole"] else (k, i, where), x)
        if cut < pieces.cuts[-1]:
            write_tensors(kept, states, {"at": str(cut)})
        if _STATE.get("advance"):
            _STATE["advance"]((cut - at) * len(numbers))
        at = cut
    kept.unlink(missing_ok=True)
    return i, numbers


def _read_states(path: Path) -> tuple[int, States | None]:
    """How far a member was, and its states there: from the start, unless they can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return int(file.metadata()["at"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return 0, None


def _done(log: Path) -> set[tuple[int, int]]:
    """Members that are whole; a line that was cut off does not count."""
    out = set()
    for line in log.read_text().splitlines(keepends=True) if log.is_file() else []:
        if line.endswith("\n") and len(words := line.split()) == 2:
            out.add((int(words[0]), int(words[1])))
    return out


def by_period(model: ForecastModel, starts: Sequence[Any], options: Rollout) -> xr.Dataset:
    """The template of forecasts by start and period."""
    leads, bounds = options.pieces(starts).periods(options.step)
    if options.periods is not None:
        leads = np.array(options.periods)
    period: dict[str, Any] = {"units": model.unit}
    coords: dict[str, Any] = {}
    if bounds is not None:
        coords["forecast_period_bounds"] = (("forecast_period", "bound"), bounds)
        period["bounds"] = "forecast_period_bounds"
    return xr.Dataset(
        coords={
            "realization": np.arange(options.members, dtype=np.int32),
            "forecast_reference_time": [s.time for s in starts],
            "forecast_period": (
                "forecast_period",
                leads.astype(np.int32) if model.unit == "months" else leads,
                period,
            ),
            "latitude": model.latitude,
            "longitude": model.longitude,
        }
        | coords
    )


def _create(
    store: Path,
    template: xr.Dataset,
    fields: dict[str, dict[str, str]],
    options: Rollout,
    pieces: Bins,
    words: dict[str, str],
) -> None:
    dims = tuple(d for d in ORDER if d in template.dims)
    lead = "time" if "time" in dims else "forecast_period"
    if pieces.edges is not None:
        each = f"{options.step:g} {template[lead].attrs['units']}"
        mean = {"cell_methods": f"{lead}: mean (interval: {each})"}
        fields = {name: dict(attributes) | mean for name, attributes in fields.items()}
    create_store(store, template, fields, dims, words, chunks={lead: 1}, shards={lead: pieces.group})


def _digest(starts: Sequence[Any], template: xr.Dataset) -> str:
    """A hash of the states that forecasts start from and of the times they are for: unfinished work of others is other
    work."""
    import hashlib

    found = hashlib.sha256(
        str([str(t) for t in template["time"].values] if "time" in template else "").encode()
    )
    for start in starts:
        for value in vars(start).values():
            if isinstance(value, np.ndarray | Tensor):
                found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]
