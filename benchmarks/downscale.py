"""Downscaling against interpolation, regression and analogs, on times that nothing was fitted to.

    python benchmarks/downscale.py FINE.nc --bundle weather/rain --test 2020-10-31T06:00/2020-10-31T08:00

The coarse fields are the means of FINE over f × f cells, at the test times; the rivals are fitted to the file of `--train`
(FINE itself by default) without the times that the bundle holds out. Scores are means over the cells by area, then over
times, with standard errors over times.

  bilinear, bicubic    of the coarse field
  departures           the fine climatology of the month + bilinear departures, conserving (the spatial step of BCSD:
                       Wood et al. 2004); without a climatology: bilinear, conserving
  regression           of each fine cell on 3 × 3 coarse cells, by least squares: for each cell of a region, else for each
                       of the f × f positions; conserving
  analogs              of each coarse cell, by 3 × 3 coarse cells: the M nearest of training give M members; conserving
  mean, ensemble       the bundle's

`CRPS/MAE` has the fair CRPS of the ensemble over the MAE of the bundle's deterministic mean. Analogs lie around what they
are chosen for, and are no independent draws: their CRPS is the biased one, of their empirical distribution. The spectrum
is of windows without missing cells (Hann, radial mean); its error is the mean over wave numbers of |ln(S/S_truth)|, and
the largest in brackets; members' spectra are averaged. `coarse` is the largest departure of the coarse means, as float32
values, in standard deviations of the coarse field.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perrin.core import sample_seeds
from perrin.modalities.weather.downscale_model import DownscaleModel, Downscaling, inside, parse_spans
from perrin.modalities.weather.downscale_train import FineRecord, read_record
from perrin.modalities.weather.downscaling import (
    block_mean,
    cells_of,
    conserve,
    fine_of,
    fit_regression,
    interpolate,
    neighbours,
    regress,
    spread,
)


class Rivals:
    """Fitted to training times; departures from the climatology where the model has places.

    Arguments:
        grid: of the training record.
        c: coarse departures, `[T, rows, columns]`; y: fine ones; months: of the times.
        members: of the analogs.
    """

    def __init__(self, grid: Downscaling, c: Tensor, y: Tensor, months: Tensor, members: int) -> None:
        config = grid.model.config
        self.f, self.unit, self.amounts, self.circle = config.factor, config.unit, config.amounts, grid.circle
        self.static, self.members, self.months = config.static, members, months
        X = neighbours(c, circle=self.circle)
        if self.static:
            self.X, self.detail = X.nan_to_num(0), y - spread(c, self.f)
            self.W = fit_regression(c, y, self.f, circle=self.circle)
            return
        cells = cells_of(y, self.f)
        good = (c > 0 if self.amounts else c.isfinite()) & cells.isfinite().all(1)
        x, z = X.movedim(1, -1)[good], cells.movedim(1, -1)[good]
        pick = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:40000].to(x.device)
        x, z = x[pick], z[pick]
        scale = x[:, 4:5] + self.unit if self.amounts else torch.ones_like(x[:, 4:5])
        self.W = torch.linalg.lstsq(x / scale, z / scale).solution
        self.library = self.features(x[:20000])
        self.shapes = z[:20000] / x[:20000, 4:5] if self.amounts else z[:20000] - x[:20000, 4:5]

    def features(self, x: Tensor) -> Tensor:
        """What analogs are compared by: `[N, 9]`."""
        if not self.amounts:
            return x
        z = torch.log(x + self.unit)
        return torch.cat([z[:, :4] - z[:, 4:5], 0.5 * z[:, 4:5], z[:, 5:] - z[:, 4:5]], 1)

    def regression(self, c: Tensor) -> Tensor:
        """Fine departures from coarse ones, `[rows, columns]`."""
        if self.static:
            return regress(c, self.W, self.f, circle=self.circle)
        X = neighbours(c, circle=self.circle)
        y = fine_of(torch.einsum("krc,kj->jrc", X, self.W), self.f)
        return y.clamp(min=0) if self.amounts else y

    def analogs(self, c: Tensor, month: int) -> Tensor:
        """Members `[M, rows, columns]`."""
        X = neighbours(c, circle=self.circle)
        if self.static:
            near = ((self.months - month + 1) % 12) <= 2
            away = ((self.X[near] - X.nan_to_num(0)) ** 2).sum(1)
            found = away.topk(min(self.members, len(away)), dim=0, largest=False).indices
            return self.detail[near].gather(0, spread(found, self.f)) + spread(c, self.f)
        good = c > 0 if self.amounts else c.isfinite()
        x = X.movedim(0, -1)[good]
        found = torch.cdist(self.features(x), self.library).topk(self.members, largest=False).indices
        shapes = self.shapes[found]  # [N, M, f²]
        own = x[:, None, 4:5]
        cells = torch.zeros(*c.shape, self.members, self.f**2).to(c)
        cells[good] = shapes * own if self.amounts else shapes + own
        y = fine_of(cells.permute(2, 3, 0, 1), self.f)
        return torch.where(spread(c, self.f).isfinite(), y, torch.nan)


class Spectrum:
    """Radial power of windows without missing cells, added up for every name."""

    def __init__(self, known: Tensor, size: int) -> None:
        step = size // 2
        rows, columns = known.shape
        corners = [
            (i, j) for i in range(0, rows - size + 1, step) for j in range(0, columns - size + 1, step)
        ]
        self.corners = [(i, j) for i, j in corners if bool(known[i : i + size, j : j + size].all())]
        k = torch.fft.fftfreq(size, dtype=torch.float64) * size
        self.bins = (
            torch.hypot(k[:, None], k).round().long().clamp(max=size // 2 + 1).flatten().to(known.device)
        )
        hann = torch.hann_window(size, dtype=torch.float64, device=known.device)
        self.window, self.size = hann[:, None] * hann, size
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, y: Tensor) -> None:
        """Fields `[..., rows, columns]`."""
        for i, j in self.corners:
            x = y[..., i : i + self.size, j : j + self.size].double()
            x = (x - x.mean((-2, -1), keepdim=True)) * self.window
            p = torch.fft.fft2(x).abs().square().reshape(-1, self.size**2).mean(0)
            total = torch.zeros(self.size // 2 + 2, dtype=torch.float64, device=p.device)
            self.sums[name] = self.sums.get(name, 0) + total.index_add(0, self.bins, p)

    def error(self, name: str) -> tuple[float, float]:
        """Mean and largest |ln(S/S_truth)| for wave numbers from 1 to the half of the window."""
        ratio = (self.sums[name] / self.sums["truth"])[1 : self.size // 2 + 1].clamp(min=1e-12).log().abs()
        return float(ratio.mean()), float(ratio.max())


def fair_crps(x: Tensor, y: Tensor, *, fair: bool = True) -> Tensor:
    """`[M, ...]` and `[...]`; see `perrin.modalities.weather.scores`."""
    count = len(x)
    e = (x - y).sort(0).values
    weight = 2.0 * torch.arange(1, count + 1, device=x.device).to(x) - count - 1
    pairs = 2 * torch.einsum("m,m...->...", weight, e)
    return e.abs().mean(0) - pairs / (2 * count * (count - fair))


@torch.no_grad()
def compare(
    model: DownscaleModel,
    record: FineRecord,
    test: np.ndarray,
    training: FineRecord,
    used: np.ndarray,
    *,
    members: int = 20,
    window: int = 32,
    batch: int = 1,
) -> dict[str, Any]:
    """The scores of every method: see the module's text.

    Arguments:
        model: the bundle's.
        record, test: the fine record, and the numbers of the times to score.
        training, used: what rivals are fitted to.
        members: of ensembles.
        window: of spectra, fine cells.
        batch: members at a time.
    """
    f, config = model.config.factor, model.config
    device = model.device

    def grid_of(one: FineRecord) -> Downscaling:
        centres = [(e[f::f] + e[:-f:f]) / 2 for e in (one.lat_edges, one.lon_edges)]
        return Downscaling(model, centres[0], centres[1])

    def coarse(one: FineRecord, t: int) -> tuple[Tensor, Tensor]:
        y = torch.from_numpy(one.values[t]).double().to(device)
        if grid_of_one[id(one)].climatology is not None:
            y = torch.where(grid_of_one[id(one)].climatology[0].isfinite(), y, torch.nan)
        return block_mean(y, grid_of_one[id(one)].area, f, whole=not config.static), y

    grid_of_one = {id(one): grid_of(one) for one in (record, training)}
    grid, grid_t = grid_of_one[id(record)], grid_of_one[id(training)]

    def usual(g: Downscaling, month: int) -> tuple[Tensor, Tensor]:
        if g.climatology is None:
            return torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), device=device)
        u = g.climatology[month][0]
        return u, block_mean(u, g.area, f, whole=False)

    cs, ys, months = [], [], []
    for t in np.flatnonzero(used):
        c, y = (v[0] for v in coarse(training, int(t)))
        month = training.times[t].month - 1
        u, cu = usual(grid_t, month)
        cs.append(c - cu), ys.append(y - u), months.append(month)
    rivals = Rivals(grid_t, torch.stack(cs), torch.stack(ys), torch.tensor(months, device=device), members)
    del cs, ys

    rows: dict[str, list[list[float]]] = {}
    spectrum: Spectrum | None = None
    most: dict[str, float] = {}
    for t in test:
        month = record.times[t].month - 1
        c, y = coarse(record, int(t))
        u, cu = usual(grid, month)
        away = c[0] - cu
        fix = lambda x, c=c, u=u: conserve(x + u, c[0], grid.area, f, amounts=config.amounts)  # noqa: E731
        seeds = sample_seeds(1000 + int(t), range(members)).to(device)
        drawn = torch.cat([grid.draw(c, month, s) for s in seeds.split(batch)])[:, 0]
        bilinear = interpolate(c, f, circle=grid.circle)[0]
        filled = c.nan_to_num(float(c.nanmean()))
        bicubic = interpolate(filled, f, circle=grid.circle, mode="bicubic")[0]
        found = {
            "bilinear": bilinear,
            "bicubic": bicubic.clamp(min=0) if config.amounts else bicubic,
            "departures": fix(interpolate(away[None], f, circle=grid.circle)[0]),
            "regression": fix(rivals.regression(away)),
            "analogs": torch.stack([fix(a) for a in rivals.analogs(away, month)]),
            "mean": grid.mean(c, month)[0],
            "ensemble": drawn,
        }
        known = y[0].isfinite() & spread(c[0], f).isfinite()
        w = torch.where(known, grid.area, 0)
        w = w / w.sum()
        spectrum = spectrum or Spectrum(known, window)
        spectrum.add("truth", y[0].nan_to_num(0))
        score = lambda v, w=w, known=known: float((v[known] * w[known]).sum())  # noqa: E731
        for name, x in found.items():
            middle = x.mean(0) if x.ndim == 3 else x
            mae, mse = score((middle - y[0]).abs()), score((middle - y[0]) ** 2)
            crps = partial(fair_crps, fair=name != "analogs")
            own, var = (score(crps(x, y[0])), score(x.var(0))) if x.ndim == 3 else (mae, 0.0)
            rows.setdefault(name, []).append([own, mae, mse, var])
            spectrum.add(name, x.nan_to_num(0))
            off = (
                block_mean(torch.where(known, x.float().double(), torch.nan), grid.area, f, whole=False)
                - c[0]
            )
            most[name] = max(
                most.get(name, 0.0), float((off.abs() / c[0][c[0].isfinite()].std()).nan_to_num(0).max())
            )
    assert spectrum is not None
    out: dict[str, Any] = {
        "times": len(test),
        "members": members,
        "windows": len(spectrum.corners),
        "methods": {},
    }
    for name, each in rows.items():
        v = np.array(each)
        m, se = v.mean(0), v.std(0, ddof=1) / math.sqrt(len(v)) if len(v) > 1 else np.full(4, np.nan)
        entry = {"crps": m[0], "crps_se": se[0], "mae": m[1], "mae_se": se[1], "rmse": math.sqrt(m[2])}
        if name in ("ensemble", "analogs"):
            entry["ssr"] = math.sqrt((1 + 1 / members) * m[3] / m[2])
        entry["spectrum"], entry["spectrum_max"] = (
            spectrum.error(name) if spectrum.corners else (math.nan,) * 2
        )
        entry["coarse"] = most[name]
        out["methods"][name] = {k: float(x) for k, x in entry.items()}
    out["crps_over_mae"] = out["methods"]["ensemble"]["crps"] / out["methods"]["mean"]["mae"]
    ratio = np.array([e[0] for e in rows["ensemble"]]) / np.array([e[1] for e in rows["mean"]])
    out["crps_over_mae_se"] = float(ratio.std(ddof=1) / math.sqrt(len(ratio))) if len(ratio) > 1 else math.nan
    out["spectra"] = {k: v[1 : window // 2 + 1].tolist() for k, v in spectrum.sums.items()}
    return out


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{found['times']} times, {found['members']} members, {found['windows']} windows for spectra")
    print(
        f"{'':<12} {'fair CRPS':>18} {'MAE':>18} {'RMSE':>8} {'SSR':>6} {'spectrum error':>16} {'coarse':>9}"
    )
    for name, e in found["methods"].items():
        ensemble = "ssr" in e
        crps = f"{e['crps']:.4f} ± {e['crps_se']:.4f}" if ensemble else ""
        mae = f"{e['mae']:.4f} ± {e['mae_se']:.4f}"
        ssr = f"{e['ssr']:.2f}" if ensemble else ""
        spectra = f"{e['spectrum']:.0%} ({e['spectrum_max']:.0%})"
        print(f"{name:<12} {crps:>18} {mae:>18} {e['rmse']:>8.4f} {ssr:>6} {spectra:>16} {e['coarse']:>9.1e}")
    print(f"CRPS/MAE: {found['crps_over_mae']:.3f} ± {found['crps_over_mae_se']:.3f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--bundle", default="weather/rain")
    parser.add_argument("--test", metavar="FROM/TO", help="times to score (default: all of the file)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="score one of N times")
    parser.add_argument("--train", metavar="FILE", help="what rivals are fitted to (default: the file)")
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args()
    from perrin.bundle import read_bundle
    from perrin.modalities import find_bundle
    from perrin.modalities.weather.fields import open_fields

    bundle = read_bundle(find_bundle(a.bundle))
    model = DownscaleModel.from_bundle(bundle, device=a.device)
    record = read_record(open_fields(a.file), model.config.factor, model.config.fields)
    training = (
        read_record(open_fields(a.train), model.config.factor, model.config.fields) if a.train else record
    )
    used = ~inside(training.times, parse_spans(bundle.config.get("training", {}).get("hold_out", [])))
    test = (
        np.flatnonzero(inside(record.times, parse_spans([a.test])))
        if a.test
        else np.arange(len(record.times))
    )
    found = compare(
        model, record, test[:: a.every], training, used, members=a.members, window=a.window, batch=a.batch
    )
    show(found)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
