"""Run the commands of `docs/weather/first-ensemble.md` and draw its pictures.

    python docs/make_weather.py cobe_sst_2deg_1950_2009.nc [--folder DIR] [--radar radar_bom.zip]

Blocks marked `sh` and `python` are run in order, in a folder where `sst.nc` is the file given; their times are printed.
With `--radar` only `docs/weather/downscale.md` is run, and its picture drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PAGE = HERE / "weather" / "first-ensemble.md"
DOWNSCALE = HERE / "weather" / "downscale.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = "import sys; from perrin.cli import main; sys.exit(main(sys.argv[1:]))"


def run(kind: str, code: str, folder: Path) -> None:
    lines = code.strip().splitlines() if kind == "sh" else [code]
    for line in lines:
        words = [COMMAND, *shlex.split(line)[1:]] if kind == "sh" else [line]
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", *words], cwd=folder, check=True)
        print(f"{time.perf_counter() - begin:6.1f} s  {line.splitlines()[0][:100]}", flush=True)


def usual(folder: Path) -> tuple[xr.DataArray, xr.DataArray]:
    """The truth, and its mean of 1950–1994 for each month."""
    sst = xr.open_dataset(folder / "truth.nc").sst
    return sst, sst.sel(time=slice("1950", "1994")).groupby("time.month").mean()


def of_month(sst: xr.DataArray, year: int, month: int) -> np.ndarray:
    return sst.isel(time=(sst.time.dt.year == year) & (sst.time.dt.month == month)).values[0]


def index(x: np.ndarray, sst: xr.DataArray) -> np.ndarray:
    """The mean over Niño 3.4 of fields `[..., latitude, longitude]`."""
    rows = np.abs(sst.latitude.values) < 5
    columns = (sst.longitude.values > 190) & (sst.longitude.values < 240)
    return np.nanmean(x[..., rows, :][..., columns], axis=(-2, -1))


def plume(folder: Path) -> Any:
    sst, means = usual(folder)
    found = xr.open_dataset(folder / "ensemble.nc", decode_times=False).sst.squeeze()
    lead = np.arange(1, found.sizes["forecast_period"] + 1)
    months = (5 + lead) % 12
    members = index(found.values - means.values[months], sst)
    past = np.arange(-11, 13)
    dates = [(2007 + (5 + n) // 12, (5 + n) % 12 + 1) for n in past]
    truth = np.array([index(of_month(sst, y, m) - means.values[m - 1], sst) for y, m in dates])
    fig, ax = plt.subplots(figsize=(6.4, 2.8), dpi=100, layout="constrained")
    ax.plot(lead, members.T, color="tab:blue", lw=0.5, alpha=0.4)
    ax.plot(lead, members.mean(0), color="navy", lw=2, label="mean of 50 members")
    ax.plot(past, truth, color="k", lw=1.5, marker=".", label="what happened")
    ax.axvline(0, color="0.6", lw=0.8)
    ax.axhline(0, color="0.8", lw=0.8)
    ax.set(xlabel="months after June 2007", ylabel="Niño 3.4 (K)", xlim=(-11, 12))
    ax.legend(frameon=False, fontsize=8)
    return fig


def three_maps(
    sst: xr.DataArray, panels: list[tuple[str, np.ndarray, float]], points: np.ndarray | None = None
) -> Any:
    """Two fields of anomalies and a spread; land is grey."""
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 2.2), dpi=100, layout="constrained")
    for ax, (title, x, limit) in zip(axes, panels):
        signed = "spread" not in title
        kind = {"cmap": "RdBu_r", "vmin": -limit} if signed else {"cmap": "viridis", "vmin": 0}
        shown = ax.pcolormesh(sst.longitude, sst.latitude, x, vmax=limit, **kind)
        ax.set_facecolor("0.75")
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.set_title(title, fontsize=9)
        bar = fig.colorbar(shown, ax=ax, orientation="horizontal", shrink=0.7, pad=0.03, aspect=30)
        bar.ax.tick_params(labelsize=7)
    if points is not None:
        axes[0].plot(points[:, 1], points[:, 0], "k.", ms=2)
    return fig


def maps(folder: Path) -> Any:
    sst, means = usual(folder)
    found = xr.open_dataset(folder / "ensemble.nc", decode_times=False).sst.squeeze().values[:, 5]
    normal = means.values[11]
    panels = [
        ("mean of 50 members, December 2007 (K)", found.mean(0) - normal, 2.0),
        ("what happened (K)", of_month(sst, 2007, 12) - normal, 2.0),
        ("spread (K)", found.std(0, ddof=1), 1.0),
    ]
    return three_maps(sst, panels)


def infill(folder: Path) -> Any:
    sst, means = usual(folder)
    found = xr.open_dataset(folder / "field.nc", decode_times=False).sst.squeeze().values
    normal = means.values[11]
    panels = [
        ("mean given 100 observations (K)", found.mean(0) - normal, 2.0),
        ("what it was (K)", of_month(sst, 2007, 12) - normal, 2.0),
        ("spread (K)", found.std(0, ddof=1), 1.0),
    ]
    points = np.loadtxt(folder / "observations.csv", delimiter=",", skiprows=1, usecols=(1, 2))
    return three_maps(sst, panels, points)


def scores(folder: Path) -> Any:
    leads = json.loads((folder / "scores.json").read_text())["variables"]["sst"]["leads"]
    months = [row["months"] for row in leads]
    fig, (ax, bars) = plt.subplots(1, 2, figsize=(8, 2.8), dpi=100, layout="constrained")

    def line(label: str, values: list[float], **style: Any) -> None:
        ax.plot(months, values, marker="o", ms=3, label=label, **style)

    for name, colour in (("climatology", "0.6"), ("anomaly-persistence", "tab:orange")):
        rmse = [row["references"][name]["scores"]["rmse"]["value"] for row in leads]
        line(f"RMSE of {name}", rmse, color=colour)
    line("RMSE of the mean", [row["scores"]["rmse"]["value"] for row in leads], color="navy")
    spread = [row["scores"]["spread"]["value"] for row in leads]
    line("spread", spread, color="tab:blue", ls="--")
    ax.set(xlabel="lead (months)", ylabel="K", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    share = leads[2]["rank_histogram"]
    bars.bar(range(len(share)), share, width=0.9, color="tab:blue")
    bars.axhline(1 / len(share), color="k", lw=0.8)
    bars.set(xlabel="rank at 3 months", ylabel="share of the ocean")
    return fig


def downscale(folder: Path) -> Any:
    """Coarse rain, the members' mean, two of them, the spread and the truth, at the first time of `fine.nc`."""
    fine = xr.open_dataset(folder / "fine.nc").isel(forecast_reference_time=0, forecast_period=0)
    time = fine.forecast_reference_time
    found = fine.precipitation.values
    coarse, truth = (
        xr.open_dataset(folder / f"{n}.nc").precipitation.sel(time=time) for n in ("coarse", "rain")
    )
    panels = [
        ("means over 0.04°", coarse, coarse.values),
        (f"mean of {len(found)} members", truth, found.mean(0)),
        ("member 1", truth, found[0]),
        ("member 2", truth, found[1]),
        ("what fell", truth, truth.values),
    ]
    fig, axes = plt.subplots(1, 5, figsize=(12, 2.7), dpi=100, layout="constrained")
    for ax, (title, grid, x) in zip(axes, panels):
        norm = matplotlib.colors.LogNorm(0.05, 20)
        shown = ax.pcolormesh(
            grid.longitude, grid.latitude, np.where(x > 0.02, x, np.nan), norm=norm, cmap="turbo"
        )
        ax.set(xticks=[], yticks=[], aspect="equal", xlim=(152.3, 153.7), ylim=(-28.2, -26.9))
        ax.set_title(title, fontsize=9)
    fig.colorbar(shown, ax=axes, shrink=0.8, label="mm in 10 minutes")
    return fig


def save(draw: Any, folder: Path) -> None:
    (HERE / "images").mkdir(exist_ok=True)
    path = HERE / "images" / f"weather-{draw.__name__}.png"
    fig = draw(folder)
    fig.savefig(path)
    plt.close(fig)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--radar", metavar="FILE.zip", help="radar files, for the page on downscaling")
    parser.add_argument("--folder", help="to work in, kept (default: a temporary one)")
    parser.add_argument(
        "--draw", action="store_true", help="only: from what an earlier run left in the folder"
    )
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(a.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        page = DOWNSCALE if a.radar else PAGE
        link = folder / ("radar.zip" if a.radar else "sst.nc")
        link.unlink(missing_ok=True)
        os.symlink(Path(a.radar or a.file).resolve(), link)
        for kind, code in [] if a.draw else BLOCK.findall(page.read_text(encoding="utf-8")):
            run(kind, code, folder)
        for draw in (downscale,) if a.radar else (plume, maps, scores, infill):
            save(draw, folder)


if __name__ == "__main__":
    main()
