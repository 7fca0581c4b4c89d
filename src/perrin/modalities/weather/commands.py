"""The weather side of the command line's verbs."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

from perrin.errors import PerrinError, check_counts, counted


def verify(a: Namespace) -> None:
    """`perrin verify FORECAST TRUTH`: the tables on the terminal, the numbers as JSON."""
    from perrin.modalities.weather.fields import open_fields
    from perrin.modalities.weather.report import print_report
    from perrin.modalities.weather.sources import Climatology
    from perrin.modalities.weather.verify import VerifyOptions
    from perrin.modalities.weather.verify import verify as compute
    from perrin.run.atomic import write_json

    if abs(a.place[0]) > 90:
        raise PerrinError(f"expected --place with a latitude from -90 to 90, given {a.place[0]:g}")
    options = VerifyOptions(
        against=tuple(a.against or ()),
        thresholds=tuple(a.threshold or ()),
        quantiles=tuple(a.quantile or ()),
        block=a.block,
        seed=a.seed,
    )
    forecast, truth = open_fields(a.file), open_fields(a.truth)
    climatology = None
    years = parse_years(a.climatology_years) if a.climatology_years else None
    if a.climatology or years:
        climatology = Climatology(open_fields(a.climatology) if a.climatology else truth, years)
    elif options.quantiles or set(options.against) - {"persistence"}:
        climatology = Climatology(truth, (truth.times[0].year, forecast.references[0].year - 1))
    result = compute(forecast, truth, options, climatology)
    print_report(result)
    if a.json:
        write_json(a.json, result)
    if a.html:
        from perrin.modalities.weather.page import write_page

        write_page(a.html, result, forecast, truth, (a.place[0], a.place[1]))
        print(f"page in {a.html}")


def view(a: Namespace) -> None:
    """`perrin view FILE.nc`: what is in it, with maps."""
    from perrin.modalities import page_beside
    from perrin.modalities.weather.fields import open_fields
    from perrin.modalities.weather.look import write_look

    page = Path(a.out) if a.out else page_beside(a.file)
    fields = open_fields(a.file)
    write_look(page, fields)
    print(f"{counted(len(fields.parts), 'variables')} in {page}")


def data(a: Namespace) -> None:
    """`perrin data weather/sst --file FILE -o OUT.nc`: temperatures and anomalies on a coarse grid, by CF."""
    from perrin.modalities.weather.fields import open_fields
    from perrin.modalities.weather.files import write_fields
    from perrin.modalities.weather.sst import read_sst

    if a.target == "weather/speedy":
        sample(a) if a.sample else speedy(a)
        return
    if a.target == "weather/qg":
        from perrin.modalities.weather import qg_commands

        qg_commands.data(a)
        return
    if a.target == "weather/atmosphere":
        from perrin.modalities.weather import atmosphere_commands

        atmosphere_commands.data(a)
        return
    if isinstance(a.file, list):
        raise PerrinError(f"expected one --file for {a.target}, given {len(a.file)}: join them")
    if a.target == "weather/coarse":
        coarse(a)
        return
    if a.target == "weather/rain":
        rain(a)
        return
    if a.target == "weather/ensemble":
        ensemble(a)
        return
    if a.target != "weather/sst":
        raise PerrinError(
            f"expected weather/sst, atmosphere, speedy, qg, rain, coarse or ensemble, given {a.target!r}: choose one of them"
        )
    if not a.file:
        raise PerrinError("expected --file with a monthly record of sea surface temperature, given none")
    cell = 5.0 if a.cell is None else a.cell
    sst = read_sst(open_fields(a.file), cell=cell, training=parse_years(a.years))
    words = {
        "title": f"monthly sea surface temperature on a grid of {cell:g} degrees",
        "source": Path(a.file).name,
        "comment": f"anomalies are from the means of the calendar months of {a.years}",
    }
    write_fields(a.out, sst.dataset(), words)
    print(f"{counted(len(sst.times), 'months')}, {counted(int(sst.sea.sum()), 'cells')} of sea in {a.out}")


def coarse(a: Namespace) -> None:
    """`perrin data weather/coarse --file FINE --factor F -o OUT.nc`: area-weighted means over F × F cells."""
    import numpy as np
    import xarray as xr

    from perrin.modalities.weather.downscale_train import read_record, tell_left_out
    from perrin.modalities.weather.fields import open_fields
    from perrin.modalities.weather.files import write_fields

    if not a.file:
        raise PerrinError("expected --file with fine fields, given none")
    check_counts(factor=a.factor)
    fields = open_fields(a.file)
    found = read_record(fields, a.factor, list(fields.parts))
    tell_left_out(found, a.factor)
    values = found.coarse(a.factor, whole=False).numpy()
    edges = {"latitude": found.lat_edges[:: a.factor], "longitude": found.lon_edges[:: a.factor]}
    dims = ("time", "latitude", "longitude")
    dataset = xr.Dataset(
        {n: (dims, values[:, i], words) for i, (n, words) in enumerate(found.attributes.items())},
        fields.time_coordinates() | {k: (e[1:] + e[:-1]) / 2 for k, e in edges.items()},
    )
    for k, e in edges.items():  # of these cells, not half-way to what may lie beyond
        dataset[f"{k}_bounds"] = ((k, "bound"), np.stack([e[:-1], e[1:]], 1))
    words = {"title": f"means over {a.factor} x {a.factor} cells", "source": Path(a.file).name}
    write_fields(a.out, dataset, words)
    print(f"{counted(len(found.times), 'times')}, {values.shape[-2]} x {values.shape[-1]} cells in {a.out}")


def ensemble(a: Namespace) -> None:
    """`perrin data weather/ensemble --file FOLDER -o OUT.nc`: members that are files, as one ensemble by CF."""
    from perrin.modalities.weather import MODALITY
    from perrin.modalities.weather.fields import open_fields
    from perrin.modalities.weather.members import find_files, gather, read_members

    if not a.file:
        raise PerrinError(
            "expected --file with a folder of members or a pattern such as 'run/*.pp', given none"
        )
    members = read_members(find_files(a.file, MODALITY.suffixes))
    found = gather(members, a.out, open_fields(a.like) if a.like else None)
    times = found.leads if found.is_forecast else found.times
    start = f" from {found.starts[-1].strftime('%Y-%m-%d')}" if found.is_forecast else ""
    left = f" ({counted(found.dropped, 'times')} left out that not all have)" if found.dropped else ""
    print(f"{counted(len(members), 'members')} of {counted(len(times), 'times')}{start}{left} in {a.out}")


def rain(a: Namespace) -> None:
    """`perrin data weather/rain --file RADAR.zip -o OUT.nc`: accumulations of a radar by latitude and longitude; or made-up
    ones."""
    from perrin.modalities.weather.files import write_fields
    from perrin.modalities.weather.radar import read_radar
    from perrin.modalities.weather.showers import showers

    if a.sample:
        for name in ("file", "cell", "station"):
            if getattr(a, name) is not None:
                raise PerrinError(
                    f"expected --sample alone, given --{name} too, which is for a radar's files: leave one of them out"
                )
        found = showers()
        write_fields(
            a.out, found, {"title": "made-up showers", "source": "perrin, a random field; no weather"}
        )
        print(f"{counted(found.sizes['time'], 'times')} of made-up showers in {a.out}")
        return
    if not a.file:
        raise PerrinError(
            "expected --file with a zip or a folder of radar files, given none: name one, or try with made-up showers by "
            "--sample"
        )
    found = read_radar(a.file, cell=0.01 if a.cell is None else a.cell, station=a.station)
    write_fields(a.out, found, {"title": "rain by radar", "source": Path(a.file).name})
    print(f"{counted(found.sizes['time'], 'times')} in {a.out}")


def sample(a: Namespace) -> None:
    """`perrin data weather/speedy --sample -o OUT.nc`: the truth of a forecast from the sample that ships."""
    from perrin import load
    from perrin.modalities import find_bundle
    from perrin.modalities.weather.atmosphere_model import AtmosphereModel
    from perrin.modalities.weather.files import write_fields

    model = load(find_bundle(a.target))
    assert isinstance(model, AtmosphereModel)
    found = model.sample_run()
    words = {
        "title": f"what the simulation went through that {a.target} starts from",
        "source": "jcm (SPEEDY in JAX), climatological forcing, analytic ozone",
    }
    write_fields(a.out, found, words)
    print(f"{found.sizes['time']} states in {a.out}")


def speedy(a: Namespace) -> None:
    """`perrin data weather/speedy --days N -o OUT.zarr`: a simulated atmosphere; goes on where it was stopped."""
    from perrin.modalities.weather.speedy import produce

    if Path(a.out).suffix != ".zarr":
        raise PerrinError(
            f"expected an output that ends in .zarr, given {a.out}: it is too large for one file"
        )
    spinup, interval = (b if x is None else x for x, b in ((a.spinup, 365), (a.interval, 12)))
    found = produce(a.out, days=a.days, spinup=spinup, interval=interval)
    print(f"{found['states']} states in {a.out}")


def correct(a: Namespace) -> None:
    """`perrin correct SIMULATION --reference FILE -o OUT`: the same file without its bias."""
    from perrin.modalities.weather.correct import correct_fields
    from perrin.modalities.weather.correction import CorrectionOptions
    from perrin.modalities.weather.fields import open_fields
    from perrin.run.outputs import record_path
    from perrin.run.record import record, write_record

    options = CorrectionOptions(method=a.method, ratio=a.ratio, group=a.group, nodes=a.nodes)
    simulation, reference = open_fields(a.file), open_fields(a.reference)
    historical = open_fields(a.historical) if a.historical else None
    past = f" and its past {Path(a.historical).name}" if a.historical else ""
    words = {
        "title": str(simulation.dataset.attrs.get("title", Path(a.file).name)) + ", bias corrected",
        "source": f"{Path(a.file).name}{past}, corrected to {Path(a.reference).name}",
        "comment": f"{a.method}{', by factors' if a.ratio else ''}, by {a.group}",
    }
    names = correct_fields(simulation, reference, historical, a.out, options, words)
    write_record(record_path(a.out), record("correct", a))
    print(f"{', '.join(names)} corrected by {a.method} in {a.out}")


def parse_years(text: str) -> tuple[int, int]:
    """`1950-1994` as two numbers."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match or int(match[1]) > int(match[2]):
        raise PerrinError(f"expected years such as 1950-1994, given {text!r}")
    return int(match[1]), int(match[2])


def parse_months(text: str) -> list[tuple[int, int]]:
    """`2009-12`, or `2000-01:2009-12`, as years and months.

    Raises:
        PerrinError: it is neither.
    """
    match = re.fullmatch(r"(\d{1,4})-(\d{1,2})(?::(\d{1,4})-(\d{1,2}))?", text)
    if match:
        numbers = [int(g) for g in match.groups() if g]
        first, last = 12 * numbers[0] + numbers[1] - 1, 12 * numbers[-2] + numbers[-1] - 1
        if all(1 <= m <= 12 for m in numbers[1::2]) and first <= last:
            return [(n // 12, n % 12 + 1) for n in range(first, last + 1)]
    raise PerrinError(f"expected --start such as 2009-12 or 2000-01:2009-12, given {text!r}")
