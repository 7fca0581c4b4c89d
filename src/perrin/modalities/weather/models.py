"""The weather commands that need a model: forecast, assimilate, train."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from perrin.bundle import Bundle, read_bundle
from perrin.errors import PerrinError, check_counts, counted, warn
from perrin.modalities import find_bundle
from perrin.modalities.weather import qg_commands, scenario_commands
from perrin.modalities.weather.amounts import intervals
from perrin.modalities.weather.atmosphere_model import AtmosphereModel
from perrin.modalities.weather.commands import parse_months, parse_years
from perrin.modalities.weather.downscale_model import (
    TILE,
    DownscaleModel,
    Downscaling,
    find_parts,
    inside,
    parse_spans,
)
from perrin.modalities.weather.fields import Fields, open_fields
from perrin.modalities.weather.forecast import Rollout, by_period
from perrin.modalities.weather.infill import nearest
from perrin.modalities.weather.means import bins, days_of
from perrin.modalities.weather.observations import read_observations
from perrin.modalities.weather.qg_model import QGModel, read_qg_observations
from perrin.modalities.weather.rolled import rolled
from perrin.modalities.weather.scenario import ScenarioModel
from perrin.modalities.weather.seasonal import LEVEL
from perrin.modalities.weather.sst_model import SSTInfill, SSTModel
from perrin.modalities.weather.training import begin, options_of, ship
from perrin.run.device import choose_device
from perrin.run.pool import cpu_count
from perrin.run.record import record, write_record

Model = SSTModel | AtmosphereModel | DownscaleModel | QGModel | ScenarioModel

CARD = """# {name}

Monthly sea surface temperature on a grid of 5°, up to {leads} months ahead: a seasonal
regression and a diffusion model of its residual.

Data: {source}, {years} ({months} months); the width of the ensemble is chosen on {choose}.

Metrics: none measured yet; `perrin forecast` with `--start` over years that were not used, then `perrin verify`.
"""


DOWNSCALE_CARD = """# {name}

Fine fields of {fields} from means over {factor} × {factor} cells: a mean and diffusion of the residual.

Data: {source}, {times} times{held}.

Metrics: none measured yet; `python benchmarks/downscale.py` of Perrin's repository scores it on times that were held out.
"""


def load(bundle: Bundle, *, device: str = "cpu") -> Model:
    """The model of a bundle.

    Raises:
        PerrinError: it is of no kind that is known.
    """
    kind = dict(bundle.config.get("model", {})).get("kind")
    if kind == SSTModel.kind:
        return SSTModel.from_bundle(bundle)
    if kind == AtmosphereModel.kind:
        return AtmosphereModel.from_bundle(bundle, device=device)
    if kind == DownscaleModel.kind:
        return DownscaleModel.from_bundle(bundle, device=device)
    if kind == QGModel.kind:
        return QGModel.from_bundle(bundle)
    if kind == ScenarioModel.kind:
        return ScenarioModel.from_bundle(bundle)
    raise PerrinError(
        f"expected a weather model of kind sst, atmosphere, downscale, qg or scenario in {bundle.path}, given {kind!r}: "
        "update perrin"
    )


def forecast(a: Namespace) -> None:
    """`perrin forecast weather/… --members M -o FILE`: resumable, one member in memory for each process."""
    path = find_bundle(a.target)
    model = load(read_bundle(path), device=choose_device(a.device))
    if isinstance(model, ScenarioModel):
        scenario_commands.forecast(a, model)
        return
    if a.forcing:
        raise PerrinError(
            f"expected --forcing for a model of scenarios, given it for {a.target}: leave it out"
        )
    assert not isinstance(model, DownscaleModel | QGModel)  # `WeatherModality.works`
    leads, step = _length(model, a)
    fields = open_fields(a.file) if a.file else None
    if fields is not None and fields.is_forecast:
        raise PerrinError(
            f"expected analyses by time to start from, given a forecast in {fields.label}: start from what it started from, "
            f"with more --{'months' if isinstance(model, SSTModel) else 'days'}"
        )
    if a.start and fields is None:
        raise PerrinError("expected --file with --start, given none: the sample has one start only")
    starts: list[Any]
    if fields is None:
        starts = model.sample_starts()
    elif isinstance(model, SSTModel):
        months = parse_months(a.start) if a.start else None
        starts = model.starts(fields, months, unlike=a.unlike_climatology)
    else:
        starts = model.starts(fields, parse_days(a.start, fields) if a.start else None)
    short = ""
    if (least := min(getattr(s, "months", LEVEL) for s in starts)) < LEVEL:
        assert isinstance(model, SSTModel)
        short = f" ({least} of the {LEVEL} months before: the others count as the model's climatology)"
        warn(f"{fields.label if fields else model.name} has {model.lacking(least, leads)}")
    many = a.members * len(starts) > 2000 or (isinstance(model, AtmosphereModel) and leads > 2)
    workers = (
        cpu_count() if many and model.together == 1 else 1
    )  # where starting a process costs more, or on a GPU
    options = Rollout(
        members=a.members,
        leads=leads,
        step=step,
        every=a.every,
        seed=a.seed,
        workers=a.workers or workers,
    )
    words = {
        "title": f"ensemble forecast of {model.name}",
        "comment": f"starts from {Path(a.file).name}{short}"
        if a.file
        else "starts from a simulated sample, not from data",
    }
    done = rolled("forecast", a, model, starts, options, words, by_period(model, starts, options))
    form = "%Y-%m" if model.unit == "months" else "%Y-%m-%d %H:%M"
    when = " to ".join(dict.fromkeys(s.time.strftime(form) for s in (starts[0], starts[-1])))
    days, hours = divmod(leads * step, 24)
    length = (
        counted(int(leads * step), model.unit)
        if model.unit == "months" or hours
        else counted(int(days), "days")
    )
    if a.every:
        pieces = bins(a.every, [s.time for s in starts], leads, int(step))
        length += f" as {counted(pieces.count, 'means')} of {a.every}"
        if left := (leads - pieces.whole) * int(step) // 24:
            length += f" ({counted(left, 'days')} in no whole one left out)"
    print(f"{counted(a.members, 'members')} from {when}{short}, {length}, in {a.out}: {done}")


def _length(model: SSTModel | AtmosphereModel, a: Namespace) -> tuple[int, float]:
    """How many steps are asked for, and how long one is in the model's unit."""
    if isinstance(model, SSTModel):
        for name in ("days", "years", "every"):
            if getattr(a, name) is not None:
                raise PerrinError(
                    f"expected --months and every month for a monthly model, given --{name}: leave it out"
                )
        months = model.longest if a.months is None else a.months
        if not 1 <= months <= model.longest:
            raise PerrinError(
                f"expected --months from 1 to {model.longest}, given {months}: ask for another number"
            )
        return months, 1
    if a.months is not None:
        raise PerrinError("expected --days for a daily model, given --months: say --days 15")
    if a.years is not None and a.days is not None:
        raise PerrinError("expected --days or --years, given both: leave one out")
    if a.years is not None and a.years < 1:
        raise PerrinError(f"expected --years of at least 1, given {a.years}")
    hours, days = model.config.hours, 15 if a.days is None else a.days
    if a.years is not None:
        days = int(365.2425 * a.years)
    if days < 1 or days * 24 % hours:
        raise PerrinError(f"expected --days of at least 1 that steps of {hours} hours make up, given {days}")
    each = days_of(a.every) if a.every else None
    if each and each <= days and days % each:
        if a.years is None:
            near = f"{days - days % each} or {days - days % each + each}"
            raise PerrinError(
                f"expected --days that means of {each} days make up, given {days} and --every {a.every}: say {near}"
            )
        days -= days % each  # a year is no whole number of them
    return days * 24 // hours, hours


def parse_days(text: str, fields: Fields) -> list[Any]:
    """`2001-03-01`, `2001-03-01T12`, or two of them with a colon: times of the file.

    Raises:
        PerrinError: it is neither, or the file has no such time.
    """
    ends = []
    for word in text.split(":"):
        match = re.fullmatch(r"(\d{1,4})-(\d{1,2})-(\d{1,2})(?:T(\d{1,2}))?", word)
        if not match:
            raise PerrinError(f"expected --start such as 2001-03-01 or 2001-03-01T12, given {text!r}")
        ends.append((*map(int, match.groups()[:3]), int(match[4] or 0)))
    found = [t for t in fields.times if ends[0] <= (t.year, t.month, t.day, t.hour) <= ends[-1]]
    if not found:
        raise PerrinError(
            f"expected --start within {fields.times[0]} to {fields.times[-1]}, the times of {fields.label}, given {text}"
        )
    return found


def assimilate(a: Namespace) -> None:
    """`perrin assimilate weather/… --observations FILE.csv -o FILE`."""
    model = load(read_bundle(find_bundle(a.target)))
    words = {
        "title": f"fields given observations, by {model.name}",
        "comment": f"observations of {Path(a.observations).name}",
    }
    if isinstance(model, QGModel):
        seen, states = read_qg_observations(a.observations, model.config, a.error), model.config.states
        workers = a.workers or (cpu_count() if a.members > 3 * model.together else 1)
        options = Rollout(members=a.members, leads=states, step=0, seed=a.seed, workers=workers)
        done = rolled("assimilate", a, model, [seen], options, words, model.template(seen, a.members))
        print(
            f"{counted(a.members, 'members')} of {counted(states, 'states')} given {counted(len(seen.value), 'values')} in "
            f"{a.out}: {done}"
        )
        return
    assert isinstance(model, SSTModel)  # `WeatherModality.works`
    months = read_observations(a.observations, a.error)
    for month in months:  # said before the work, which may take long
        nearest(model.places, (month.latitude, month.longitude))
    options = Rollout(members=a.members, leads=1, step=0, seed=a.seed, workers=a.workers or cpu_count())
    infill = SSTInfill(model)
    done = rolled("assimilate", a, infill, months, options, words, by_period(infill, months, options))
    print(f"{counted(a.members, 'members')} of {counted(len(months), 'months')} in {a.out}: {done}")


def downscale(a: Namespace) -> None:
    """`perrin downscale weather/… COARSE.nc -o FILE`: resumable, one member in memory for each process."""
    check_counts(tile=a.tile)
    model = load(read_bundle(find_bundle(a.target)), device=choose_device(a.device))
    assert isinstance(model, DownscaleModel)  # `WeatherModality.works`
    if a.factor not in (None, model.config.factor):
        raise PerrinError(
            f"expected --factor {model.config.factor}, that of {a.target}, given {a.factor}: leave it out, or train a "
            f"model for yours (perrin train weather/downscale --factor {a.factor})"
        )
    fields = open_fields(a.file)
    parts = find_parts(fields, model)
    leads = fields.leads
    unit, periods = "hours", tuple(lead.seconds / 3600 for lead in leads)
    if any(lead.months for lead in leads):
        unit, periods = "months", tuple(lead.months for lead in leads)
    grid = Downscaling(model, fields.latitude, fields.longitude, unit=unit, tile=a.tile)
    wanted = None
    if a.times:
        wanted = inside(fields.references, parse_spans([a.times], "--times")).tolist()
        if not any(wanted):
            first, last = fields.references[0], fields.references[-1]
            raise PerrinError(
                f"expected --times within {first} to {last}, the times of {fields.label}, given {a.times}"
            )
    starts = grid.starts(fields, parts, wanted)
    if a.tile < grid.margin and grid.work > 2:
        warn(
            f"tiles of {a.tile} cells are looked at with a margin of {grid.margin} on every side: {grid.work:.0f} times the "
            f"work of the whole map; a larger --tile, such as {TILE}, is faster"
        )
    many = a.members * len(starts) * len(leads) * grid.area.numel() > 10**6 and model.device.type == "cpu"
    options = Rollout(
        members=a.members,
        leads=len(leads),
        step=0,
        seed=a.seed,
        workers=a.workers or (cpu_count() if many else 1),
        periods=periods,
    )
    words = {
        "title": f"fine fields by {model.name}",
        "comment": f"means over {model.config.factor} x {model.config.factor} cells are those of {Path(a.file).name}",
    }
    done = rolled("downscale", a, grid, starts, options, words, by_period(grid, starts, options))
    size = f"{len(grid.latitude)} x {len(grid.longitude)} cells"
    print(
        f"{counted(a.members, 'members')} of {counted(len(starts) * len(leads), 'fields')}, {size}, in {a.out}: {done}"
    )


def train_downscale(a: Namespace) -> None:
    """`perrin train weather/downscale --data FINE.nc --factor F --out DIR`."""
    from perrin.modalities.weather import downscale_train
    from perrin.modalities.weather.downscaling import DownscaleConfig

    out = begin(a, "fine fields by time", "factor", "patch", "width")
    device = choose_device(a.device)
    gpu = device != "cpu"
    spans = [*a.hold_out, *([a.calibrate] if a.calibrate else [])]
    held = parse_spans(spans, "--hold-out")
    names = a.variables.split(",") if a.variables else []
    data = open_fields(a.data)
    record_ = downscale_train.read_record(data, a.factor, names)
    downscale_train.tell_left_out(record_, a.factor)
    config = DownscaleConfig(
        fields=tuple(record_.attributes),
        factor=a.factor,
        amounts=a.amounts,
        static=not (a.anywhere or a.amounts),
        cell=float(record_.lat_edges[1] - record_.lat_edges[0]),
        unit=a.unit,
        width=a.width or 32,
    )
    used = ~inside(record_.times, held)
    chosen = inside(record_.times, parse_spans([a.calibrate] if a.calibrate else []))
    if a.calibrate and not chosen.any():
        raise PerrinError(f"expected times of {Path(a.data).name} in --calibrate, given {a.calibrate}")
    options = options_of(
        a,
        steps=10**7 if a.minutes else 4000,
        batch=64 if gpu else 16,
        lr=1.5e-3,
        warmup=200,
        log_every=50 if gpu else 10,
        cooldown=0.6,
        weight_decay=0.02,
        ema=0.999,
        precision="bf16-mixed" if gpu else "32-true",
        cuda_graphs=gpu,
    )
    write_record(out / "run.json", record("train", a, options=options.to_json()))
    model, losses = downscale_train.train_downscale(
        record_, config, used, options, out, patch=a.patch or 64, accelerator="cuda" if gpu else "cpu"
    )
    if config.amounts:
        span = intervals(data, config.fields[0])
        model.interval = None if span is None else sum(span) / 2
    found: dict[str, Any] = dict(losses)
    if a.calibrate:
        few = np.flatnonzero(chosen)[:: max(1, int(chosen.sum()) // 12)]
        found["inflation"] = downscale_train.choose_inflation(model, record_, few)
    card = DOWNSCALE_CARD.format(
        name=out.name,
        fields=", ".join(config.fields),
        factor=config.factor,
        source=Path(a.data).name,
        times=int(used.sum()),
        held=f"; held out: {', '.join(spans)}" if spans else "",
    )
    ship(out, model, card, {"options": options.to_json(), "hold_out": spans} | found)
    print(f"bundle in {out}: perrin downscale {out} coarse.nc -o fine.nc")


def train(a: Namespace) -> None:
    """`perrin train weather/sst --data FILE --out DIR`: under a minute on a CPU."""
    if a.target == "weather/downscale":
        train_downscale(a)
        return
    if a.target == "weather/atmosphere":
        from perrin.modalities.weather import atmosphere_commands

        atmosphere_commands.train(a)
        return
    if a.target in ("weather/qg", "weather/scenario"):
        (qg_commands if a.target == "weather/qg" else scenario_commands).train(a)
        return
    from perrin.modalities.weather.sst import read_sst
    from perrin.modalities.weather.sst_train import SSTOptions, train_sst

    if a.target != "weather/sst":
        raise PerrinError(
            f"expected weather/atmosphere, sst, downscale, scenario or qg, given {a.target!r}: say one of them "
            "(weather/speedy is made by weather/atmosphere, weather/rain and "
            "weather/sst-fine are made by weather/downscale); others cannot be trained so far"
        )
    out = begin(a, "a monthly record of sea surface temperature")
    a.years, a.choose = a.years or "1950-1994", a.choose or "1995-1999"
    options = SSTOptions(training=parse_years(a.years), choice=parse_years(a.choose))
    train_options = options_of(
        a, steps=800, batch=128, lr=1e-3, warmup=100, log_every=200, weight_decay=0.1, ema=0.98
    )
    sst = read_sst(open_fields(a.data), training=options.training)
    write_record(
        out / "run.json",
        record(
            "train",
            a,
            options=train_options.to_json(),
        ),
    )
    model, found = train_sst(sst, options, train_options, out)
    used = sum(options.training[0] <= t.year <= options.training[1] for t in sst.times)
    card = CARD.format(
        name=out.name,
        leads=options.leads,
        source=Path(a.data).name,
        years=a.years,
        months=used,
        choose=a.choose,
    )
    ship(out, model, card, {"options": train_options.to_json()} | found)
    print(f"bundle in {out}: perrin forecast {out} --file {a.data} -o ensemble.nc")
