"""Weather and climate: fields on latitude–longitude grids. The command line imports this module, so it is light."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from perrin.errors import PerrinError
from perrin.modalities import Modality

if TYPE_CHECKING:
    from perrin.bundle import Bundle

REFERENCES = ("climatology", "persistence", "anomaly-persistence")


class WeatherModality(Modality):
    """See `perrin.modalities.Modality`."""

    name = "weather"
    summary = "fields on latitude–longitude grids: verification of forecasts (models are to come)"
    suffixes = (".nc", ".nc4", ".cdf", ".zarr")

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
                "--file", metavar="FILE", help="sst: a monthly record of the sea's temperature"
            )
            group.add_argument(
                "--cell", type=float, default=5.0, metavar="X", help="sst: degrees (default 5)"
            )
            group.add_argument(
                "--years",
                default="1950-1994",
                metavar="YYYY-YYYY",
                help="sst: of the climatology (1950-1994)",
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
            group.add_argument("--seed", type=int, default=0, help="of ties and the bootstrap (default 0)")

    def load(self, bundle: Bundle, *, device: str = "cpu") -> NoReturn:
        """There are no models yet.

        Raises:
            PerrinError: always.
        """
        raise PerrinError(
            "expected a bundle of a modality with models, given one of weather, which has none yet"
        )

    def data(self, arguments: Namespace) -> None:
        """Prepare data."""
        from perrin.modalities.weather import commands

        commands.data(arguments)

    def verify(self, arguments: Namespace) -> Any:
        """Score a forecast."""
        from perrin.modalities.weather import commands

        commands.verify(arguments)


MODALITY = WeatherModality()
