"""Weather and climate: fields on latitude–longitude grids. The command line imports this module, so it is light."""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from perrin.modalities import Modality

if TYPE_CHECKING:
    from perrin.bundle import Bundle

REFERENCES = ("climatology", "persistence", "anomaly-persistence")


class _Files(Action):
    """One name as it is, several as a list."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def _add_record(group: Any) -> None:
    """What a record for an atmosphere is made of."""
    group.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="atmosphere: of the Gauss grid, a multiple of 8 (default: what the files resolve, at most 32)",
    )
    group.add_argument(
        "--static", metavar="FILE", help="atmosphere: a file with orography and land, if the others have none"
    )


class WeatherModality(Modality):
    """See `perrin.modalities.Modality`."""

    name = "weather"
    summary = "fields on latitude–longitude grids: forecasts, verification, data"
    suffixes = (".nc", ".nc4", ".cdf", ".zarr", ".grib", ".grib2", ".grb", ".grb2", ".pp")
    instead = MappingProxyType(
        {
            "evaluate": "perrin verify {file} TRUTH",
        }
    )

    def bundle_folder(self) -> Path:
        """The bundles in the package."""
        return Path(__file__).parent / "bundles"

    def requirements(self) -> Iterable[str]:
        """xarray, netCDF4 and cftime for files."""
        return ("xarray", "netCDF4", "cftime")

    def add_arguments(self, verb: str, parser: ArgumentParser) -> None:
        """The weather options."""
        group = parser.add_argument_group("weather")
        if verb == "data":
            group.add_argument(
                "--file",
                metavar="FILE",
                nargs="+",
                action=_Files,
                help="sst: a monthly record of the sea's temperature; atmosphere: fields by time, one file or more; "
                "coarse: fine fields; rain: radar files, zipped; "
                "ensemble: a folder of members or a pattern in quotes",
            )
            group.add_argument(
                "--like",
                metavar="FILE",
                help="ensemble: a file of the grid to write on (default: the members')",
            )
            _add_record(group)
            group.add_argument(
                "--variables",
                metavar="NAMES",
                help="atmosphere: which, with commas (default: all that have a time)",
            )
            group.add_argument(
                "--cell", type=float, metavar="X", help="sst, rain: degrees (default 5; rain 0.01)"
            )
            group.add_argument(
                "--years",
                default="1950-1994",
                metavar="YYYY-YYYY",
                help="sst: of the climatology (1950-1994)",
            )
            group.add_argument(
                "--factor", type=int, default=4, metavar="F", help="coarse: cells each way in one (default 4)"
            )
            group.add_argument("--station", metavar="ID", help="rain: the radar's, where FILE has several")
            group.add_argument(
                "--sample",
                action="store_true",
                help="speedy: the truth of the sample that ships, simulate nothing; rain: made-up showers to try with",
            )
            group.add_argument("--days", type=int, default=3650, help="speedy, qg: to write (default 3650)")
            group.add_argument(
                "--spinup", type=int, metavar="DAYS", help="speedy, qg: before, from rest (365; qg 1800)"
            )
            group.add_argument(
                "--interval", type=int, metavar="HOURS", help="speedy, qg: between states (12; qg 96)"
            )
            group.add_argument(
                "--runs", type=int, default=8, metavar="N", help="qg: from different first eddies (8)"
            )
            group.add_argument("--seed", type=int, default=0, metavar="N", help="qg: of the first eddies (0)")
        elif verb == "forecast":
            group.add_argument(
                "--file",
                metavar="FILE",
                help="NetCDF or Zarr with the states to start from (default: a simulated sample)",
            )
            group.add_argument(
                "--months", type=int, metavar="N", help="sst: how far ahead, 1 to 12 (default 12)"
            )
            group.add_argument(
                "--unlike-climatology",
                action="store_true",
                help="sst: start from months however far from the model's climatology, such as those of another climate",
            )
            group.add_argument("--days", type=int, metavar="N", help="by day: how far ahead (default 15)")
            group.add_argument("--years", type=int, metavar="N", help="by day: how far ahead, in years")
            group.add_argument(
                "--every",
                metavar="5d|month",
                help="by day: write means over days or calendar months (default: write every step)",
            )
            group.add_argument(
                "--forcing",
                metavar="FILE",
                help="scenario: a CSV table of year and temperature, or a run whose area mean is taken",
            )
            group.add_argument(
                "--start",
                metavar="DATE[:DATE]",
                help="the last month or time known, such as 2009-12 or 2001-03-01T12, or all from one to another "
                "with a colon (default: the file's last)",
            )
        elif verb == "downscale":
            group.add_argument(
                "--times",
                metavar="FROM/TO",
                help="which of the file's, such as 2020-10-31T07:00/2020-10-31T08:00 (default: all)",
            )
            group.add_argument(
                "--factor",
                type=int,
                metavar="F",
                help="cells each way in one: the model's own; another takes a model of its own",
            )
            group.add_argument(
                "--tile",
                type=int,
                default=256,
                metavar="N",
                help="fine cells of a tile, each way: changes memory and speed, and the fields by rounding (256)",
            )
        elif verb == "assimilate":
            group.add_argument(
                "--observations",
                metavar="FILE.csv",
                required=True,
                help="columns time, latitude, longitude (qg: time, h, layer, y, x, m), value and, if they differ, error",
            )
            group.add_argument(
                "--error", type=float, metavar="X", help="standard deviation of the observations' errors"
            )
        elif verb == "train":
            group.add_argument(
                "--data",
                metavar="FILE",
                nargs="+",
                action=_Files,
                help="atmosphere: fields by time of the whole sphere, one file or more; sst: a monthly record; "
                "downscale: fine fields by time; qg: of perrin data weather/qg",
            )
            _add_record(group)
            group.add_argument(
                "--hours",
                type=int,
                default=24,
                metavar="H",
                help="atmosphere: of a step, which the record's interval divides (default 24)",
            )
            group.add_argument(
                "--loss",
                default="crps",
                metavar="NAME",
                help="atmosphere: crps, one evaluation a step, or diffusion, 16 of them (default crps)",
            )
            group.add_argument(
                "--leads",
                type=int,
                default=1,
                metavar="N",
                help="atmosphere: steps that members go in training by crps, each of them scored (default 1)",
            )
            group.add_argument(
                "--forcing",
                metavar="FILE",
                help="scenario: a CSV table of year and temperature (default: the run's own area mean)",
            )
            group.add_argument(
                "--variables",
                metavar="NAMES",
                help="downscale, scenario: which, with commas (default: the only one); atmosphere: (default: all "
                "that have a time)",
            )
            group.add_argument(
                "--factor", type=int, default=4, metavar="F", help="downscale: cells each way in one (4)"
            )
            group.add_argument(
                "--hold-out",
                action="append",
                default=[],
                metavar="FROM/TO",
                help="downscale, scenario: times not to train on, such as 1990-01/2009-12; may be given several times",
            )
            group.add_argument(
                "--calibrate",
                metavar="FROM/TO",
                help="downscale: times on which the ensemble's width is chosen, and which are not trained on",
            )
            group.add_argument(
                "--anywhere",
                action="store_true",
                help="downscale: a model for any region, that knows no climatology of places",
            )
            group.add_argument(
                "--amounts",
                action="store_true",
                help="downscale: fields are never negative and often zero, such as rain; implies --anywhere",
            )
            group.add_argument(
                "--unit", type=float, default=0.1, metavar="X", help="amounts: what is little (default 0.1)"
            )
            group.add_argument(
                "--stride",
                type=int,
                default=2,
                metavar="N",
                help="qg: the data's states from one to the next (2)",
            )
            group.add_argument(
                "--width",
                type=int,
                metavar="N",
                help="downscale: of the networks (default 32); atmosphere: a multiple of 16 (default 48 on a GPU, "
                "32 on a CPU)",
            )
            group.add_argument(
                "--patch", type=int, metavar="N", help="downscale: cells of a piece to train on (64)"
            )
            group.add_argument(
                "--years",
                metavar="YYYY-YYYY",
                help="to fit; sst: (default 1950-1994); atmosphere: (default: all but what is to choose on)",
            )
            group.add_argument(
                "--choose",
                metavar="YYYY-YYYY",
                help="sst: on which the ensemble's width is chosen (default 1995-1999); atmosphere: kept apart, to score "
                "forecasts on (default: the last tenth)",
            )
        elif verb == "correct":
            group.add_argument(
                "--reference", metavar="FILE", required=True, help="observations or analyses on the same grid"
            )
            group.add_argument(
                "--historical",
                metavar="FILE",
                help="the simulation of the reference's period (default: the simulation that is corrected)",
            )
            group.add_argument(
                "--method",
                default="quantile-delta",
                metavar="NAME",
                help="quantile-delta, quantile-mapping, mean-variance or mean (default quantile-delta)",
            )
            group.add_argument(
                "--ratio", action="store_true", help="correct by factors: precipitation, wind speed"
            )
            group.add_argument(
                "--group",
                default="month",
                metavar="NAME",
                help="what is corrected apart: month, season or all (default month)",
            )
            group.add_argument(
                "--nodes", type=int, default=50, metavar="N", help="quantiles at most (default 50)"
            )
        elif verb == "verify":
            group.add_argument(
                "--against",
                nargs="+",
                metavar="NAME",
                choices=REFERENCES,
                help=f"references for skill: {', '.join(REFERENCES)}",
            )
            group.add_argument("--climatology", metavar="FILE", help="a record of the truth (default: TRUTH)")
            group.add_argument(
                "--climatology-years",
                metavar="YYYY-YYYY",
                help="the years of it to use (default: all of FILE, or those of TRUTH before the forecasts)",
            )
            group.add_argument(
                "--threshold",
                type=float,
                nargs="+",
                metavar="X",
                help="events above X: Brier score, reliability, CSI, tail-weighted CRPS",
            )
            group.add_argument(
                "--quantile",
                type=float,
                nargs="+",
                metavar="Q",
                help="events above a quantile of the climatology at each point",
            )
            group.add_argument(
                "--block",
                type=int,
                metavar="N",
                help="consecutive initial times that are drawn together for standard errors "
                "(default: the cube root of their number)",
            )
            group.add_argument("--html", metavar="FILE.html", help="also write a page with plots and maps")
            group.add_argument(
                "--place",
                nargs=2,
                type=float,
                default=(52.0, 13.0),
                metavar=("LAT", "LON"),
                help="of the page's plumes (default 52 13)",
            )
            group.add_argument("--seed", type=int, default=0, help="of ties and the bootstrap (default 0)")

    def outputs(self, verb: str, arguments: Namespace) -> list[Path]:
        """NetCDF files and Zarr stores.

        Raises:
            PerrinError: the name is none of either.
        """
        from perrin.modalities.weather.outputs import check_path

        if verb in ("data", "forecast", "downscale", "assimilate", "correct"):
            check_path(arguments.out)
        return super().outputs(verb, arguments)

    def load(self, bundle: Bundle, *, device: str = "cpu") -> Any:
        """The model of a bundle.

        Raises:
            PerrinError: it is of no kind that is known.
        """
        from perrin.modalities.weather import models

        return models.load(bundle, device=device)

    def works(self, verb: str, model: Mapping[str, Any]) -> bool:
        """Observations are of the sea's temperature and of two-layer flow; downscaling has models of its own."""
        kind = model.get("kind")
        if verb == "assimilate" or kind == "qg":
            return verb == "assimilate" and kind in ("sst", "qg")
        return (verb == "downscale") == (kind == "downscale")

    def forecast(self, arguments: Namespace) -> None:
        """Roll out an ensemble."""
        from perrin.modalities.weather import models

        models.forecast(arguments)

    def downscale(self, arguments: Namespace) -> None:
        """Fine fields given coarse ones."""
        from perrin.modalities.weather import models

        models.downscale(arguments)

    def assimilate(self, arguments: Namespace) -> None:
        """States given observations."""
        from perrin.modalities.weather import models

        models.assimilate(arguments)

    def train(self, arguments: Namespace) -> None:
        """Train a model on a record."""
        from perrin.modalities.weather import models

        models.train(arguments)

    def data(self, arguments: Namespace) -> None:
        """Prepare data."""
        from perrin.modalities.weather import commands

        commands.data(arguments)

    def view(self, arguments: Namespace) -> None:
        """A page of maps."""
        from perrin.modalities.weather import commands

        commands.view(arguments)

    def correct(self, arguments: Namespace) -> None:
        """Correct a simulation's bias."""
        from perrin.modalities.weather import commands

        commands.correct(arguments)

    def verify(self, arguments: Namespace) -> Any:
        """Score a forecast."""
        from perrin.modalities.weather import commands

        commands.verify(arguments)


MODALITY = WeatherModality()
