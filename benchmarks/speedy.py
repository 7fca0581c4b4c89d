"""Day-by-day forecasts of SPEEDY: a model, its deterministic twin, SPEEDY's own ensemble, and classical forecasts.

    python benchmarks/speedy_truth.py truth/ --states states/      # first
    python benchmarks/speedy.py truth/ [--bundle weather/speedy] [--twin FILE] [--out DIR] [--json FILE]
    python benchmarks/speedy.py truth/ --minutes 0.2 --twin-minutes 0.2 --members 2       # whether it runs, on a CPU

Without `--bundle` a model is trained, without `--twin` a twin. To rerun the tables of `docs/weather/forecast.md`
takes a GPU, jcm for `speedy_truth.py` (3 minutes there, hours on a CPU; its 2 GB do not ship) and minutes for a twin.
`weather/speedy-diffusion` was trained twice, 7649 steps of 96 from nothing and 9998 of 128 from there on other runs; what
is trained here has its configuration, from nothing. `weather/speedy` is two trainings by CRPS from there:

    python benchmarks/speedy.py truth/ --crps 1 --start weather/speedy-diffusion --minutes 6.5 --lr 8e-4 --out one
    python benchmarks/speedy.py truth/ --crps 3 --start one/bundle --minutes 5 --lr 4e-4 --cooldown 0.85 --out three
 All start from the same analyses (see `speedy_truth.py`):
member k of the model from the two states, a day apart, of member k of the truth ensemble; the twin, the same network trained
as a regression in mean absolute error, and persistence from the centre. Climatology is an ensemble of training states within
20 days of the season; the linear inverse model (`--modes` functions of the training runs' anomalies from a course of the
year with two harmonics) draws members from the centre. Fair CRPS, SSR with √((M + 1)/M), spectra are means over members;
± is a jackknife over dates. The published rows are of ERA5 at 5.6°, z500, biased CRPS of 10 members: another atmosphere,
to compare ratios with.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perrin import load
from perrin.bundle import write_bundle
from perrin.core import CounterNoise, Dense, sample_seeds
from perrin.modalities import find_bundle
from perrin.modalities.weather.atmosphere import (
    FIELD,
    AtmosphereConfig,
    AtmosphereTask,
    Normalisation,
    build_denoiser,
    extra_channels,
)
from perrin.modalities.weather.atmosphere_crps import CRPSTask
from perrin.modalities.weather.atmosphere_model import AtmosphereModel
from perrin.modalities.weather.lim import LinearInverseModel
from perrin.nets.sphere import SphericalHarmonics, gauss_latitudes, power
from perrin.run.atomic import write_json
from perrin.train import Trainer, TrainOptions

NAMES = ("zg510", "ta835", "hus835", "ua835", "va835", "ua340", "ps")
WORDS = {
    "zg": ("geopotential_height", "m"),
    "ta": ("air_temperature", "K"),
    "hu": ("specific_humidity", "1"),
    "ua": ("eastward_wind", "m s-1"),
    "va": ("northward_wind", "m s-1"),
    "ps": ("surface_air_pressure", "Pa"),
}
PUBLISHED = {"ERA5, EDM at 24 h": (65, 163, 243, 335), "ERA5, DYffusion": (97, 215, 304, 394)}
"""z500 in m²/s² at days 1, 3, 5, 10: biased CRPS of 10 members."""
TARGETS = {"/ twin MAE": (0, 0.55), "/ truth CRPS": (0, 1.15), "SSR": (0.85, 1.05), "spectrum": (0.9, 1.1)}


class Twin(AtmosphereTask):
    """The same network as a regression of the change, in mean absolute error."""

    def to(self, device: torch.device) -> None:
        """Move the data."""
        super().to(device)
        weight = gauss_latitudes(self.constants.shape[-2])[1]
        self.relative = (weight / weight.mean()).float().to(device)[:, None]

    def prepare(self, *a: Any, **k: Any) -> Any:
        """See `perrin.train.Task`."""
        key, b = super().prepare(*a, **k)
        return key, b | {"t": torch.full_like(b["t"], 0.999), "x_t": torch.zeros_like(b["x_t"])}

    def loss(self, model: Any, key: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `perrin.train.Task`."""
        layouts = {FIELD: Dense(len(batch["t"]), batch["t"].device)}
        e = model({FIELD: batch["x_t"]}, batch["t"], condition=batch["condition"], layouts=layouts)[FIELD]
        return {"loss": ((e.float() - batch["x_0"]).abs() * self.relative).mean()}


class Linear:
    """The linear inverse model of the training runs, a step of a day.

    Arguments:
        states: normalised, `[R, T, C, rows, columns]`, twice a day.
        days: of the year, `[R, T]`.
        weight: of the rows.
        modes: empirical orthogonal functions at most.
    """

    def __init__(self, states: Tensor, days: Tensor, weight: Tensor, modes: int) -> None:
        runs, times, channels, rows, columns = states.shape
        x = states.flatten(2).flatten(0, 1)
        course = self.course(days.flatten())
        self.year = torch.linalg.lstsq(course.T @ course + 1e-3 * torch.eye(5), course.T @ x).solution
        x = x - course @ self.year
        w = (weight[:, None].expand(rows, columns) / columns).repeat(channels, 1, 1).flatten()
        w = (w / w.sum()).double()
        some = x[torch.linspace(0, len(x) - 1, min(len(x), 1500)).long()].double() * w.sqrt()
        values, vectors = torch.linalg.eigh(some @ some.T)  # of the smaller side
        modes = min(modes, int((values > 1e-8 * values[-1]).sum()) // 4)
        E = some.T @ vectors[:, -modes:] / values[-modes:].sqrt() / w.sqrt()[:, None]
        y = torch.cat([part.double() @ (E * w[:, None]) for part in x.split(500)])
        square, product = torch.zeros_like(w), torch.zeros_like(w)
        for one, amplitudes in zip(x.unflatten(0, (runs, times)), y.unflatten(0, (runs, times))):
            rest = one.double() - amplitudes @ E.T
            square += (rest**2).sum(0) / (runs * times)
            product += (rest[2:] * rest[:-2]).sum(0) / (runs * (times - 2))
        y = y.unflatten(0, (runs, times))
        C0 = torch.einsum("rtk,rtl->kl", y, y) / (runs * times)
        C1 = torch.einsum("rtk,rtl->kl", y[:, 2:], y[:, :-2]) / (runs * (times - 2))
        damping = (product / square.clamp(min=1e-30)).clamp(0, 1)
        parts = (E, w, C1 @ torch.linalg.inv(C0), C0, square.sqrt(), damping)
        names = ("E", "weight", "G", "C0", "rest", "damping")
        self.model = LinearInverseModel(**{k: v.numpy() for k, v in zip(names, parts)})

    @staticmethod
    def course(days: Tensor) -> Tensor:
        """Two harmonics of the year, `[n, 5]`."""
        angle = 2 * torch.pi * days[:, None] / 365.2425 * torch.tensor([1.0, 2.0])
        return torch.cat([torch.ones(len(days), 1), angle.cos(), angle.sin()], 1)

    def forecast(self, state: Tensor, day: float, lead: int, members: int, seed: int) -> Tensor:
        """Members `[M, C, rows, columns]`, `lead` days after a state."""
        now, then = (self.course(torch.tensor([day + k]))[0] @ self.year for k in (0, lead))
        x = (state.cpu().flatten() - now).double().numpy()
        found = torch.from_numpy(self.model.ensemble(x, lead, members, seed)).float() + then
        return found.unflatten(1, state.shape)


def options(minutes: float, cuda: bool, crps: bool = False, **more: float) -> TrainOptions:
    """How both are trained."""
    how: dict[str, Any] = {"batch": 96, "lr": 1.2e-3, "warmup": 500, "cooldown": 0.5, "ema": 0.9995}
    if crps:  # two members of each case
        how |= {"batch": 64, "warmup": 200, "ema": 0.999, "compile": cuda}
    if not cuda:
        how |= {"batch": 8, "warmup": 2, "ema": 0.5}
    return TrainOptions(
        steps=10**9,
        minutes=minutes,
        **how | more,
        weight_decay=0.02,
        precision="bf16-mixed" if cuda else "32-true",
        cuda_graphs=cuda,
        log_every=250 if cuda else 10,
        save_every=10**9,
    )


def crps(x: Tensor, y: Tensor) -> Tensor:
    """Fair, of members `[M, …]`."""
    e, m = x - y, len(x)
    r = (2 * torch.arange(1, m + 1, device=x.device) - m - 1).to(x)
    return e.abs().mean(0) - torch.einsum("m,m...->...", r, e.sort(0).values) / (m * (m - 1))


def jackknife(f: Any, *a: np.ndarray) -> tuple[float, float]:
    """A function of means over dates, and its standard error."""
    n = len(a[0])
    every = np.array([f(*[np.delete(x, i, 0).mean(0) for x in a]) for i in range(n)])
    return float(f(*[x.mean(0) for x in a])), float(
        np.sqrt((n - 1) / n * ((every - every.mean()) ** 2).sum())
    )


class Benchmark:
    """The truth, normalised, and who forecasts it."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        x = torch.from_numpy(np.load(a.truth / "train_states.npy"))
        self.days = torch.from_numpy(np.load(a.truth / "train_days.npy"))
        self.constants = torch.from_numpy(np.load(a.truth / "constants.npy"))
        files = sorted(a.truth.glob("truth*_states.npy"))
        self.tests = np.concatenate([np.load(f, mmap_mode="r") for f in files])  # [dates, 2 + M, days, C, …]
        self.test_days = np.concatenate([np.load(str(f).replace("_states", "_days")) for f in files])
        weight = gauss_latitudes(32)[1]
        self.weight = (weight / weight.sum()).float()[:, None].to(self.device) / 64
        self.start: AtmosphereModel | None = (
            load(find_bundle(a.start), device=str(self.device)) if a.start else None
        )
        if a.bundle:
            self.model: AtmosphereModel = load(find_bundle(a.bundle), device=str(self.device))
            self.config, self.norm = self.model.config, self.model.norm
        elif self.start:
            self.config, self.norm = replace(self.start.config, dropout=0.0), self.start.norm
        else:
            self.norm = fit(x, weight).to(self.device)
            vectors = ("ua835", "va835", "ua340")
            sizes = {} if self.device.type == "cuda" else {"width": 16, "levels": 2, "blocks": 1}
            sizes = {"width": 48, "climatology": True, "bound": 6.0, "holds": ("ps",)} | sizes
            self.config = AtmosphereConfig(fields=NAMES, vectors=vectors, **sizes)
        self.states = self.norm.to(torch.device("cpu")).normalise(x).to(self.device)
        self.linear = Linear(self.states.cpu(), self.days, weight.float(), a.modes)
        self.constants = self.constants.to(self.device)
        if not a.bundle:
            self.model = self.train_model()
        self.twin = self.train(Twin, a.twin_minutes, "twin", a.twin)
        self.harmonics = SphericalHarmonics(gauss_latitudes(32)[0], 64, degree=32).to(self.device)

    def train(
        self, kind: type[AtmosphereTask], minutes: float, name: str, weights: Path | None = None
    ) -> Any:
        """A network, trained or read."""
        torch.manual_seed(0)
        denoiser = build_denoiser(self.config)
        if weights:
            found = load_file(weights)
            with torch.no_grad():
                for k, p in denoiser.named_parameters():
                    p.copy_(found[k].float())
        else:
            cuda = self.device.type == "cuda"
            change = self.norm.change.cpu()
            if self.start:
                with torch.no_grad():
                    for p, q in zip(denoiser.parameters(), self.start.denoiser.parameters(), strict=True):
                        p.copy_(q)
            elif self.config.climatology:
                denoiser.network.climatology.fit(self.states.flatten(0, 1), change)
            crps = kind is CRPSTask
            given = {"lr": self.a.lr, "cooldown": self.a.cooldown if crps else None}
            how = options(minutes, cuda, crps, **{k: v for k, v in given.items() if v is not None})
            task = kind(
                denoiser,
                self.config,
                self.states,
                self.days,
                2,
                self.constants.cpu(),
                change,
                batch=how.batch,
                seed=0,
                jitter=0.0 if kind is Twin else 0.1 if crps else 0.3,
                **({"leads": self.a.crps, "spectral": 0.2} if crps else {}),
            )
            log = Trainer(task, how, self.a.out / f"{name}-run", devices=1).run()
            print(
                f"{name}: {sum(p.numel() for p in denoiser.parameters()) / 1e6:.1f} M weights",
                log,
                flush=True,
            )
            save_file(
                {k: p.detach().half().cpu() for k, p in denoiser.named_parameters()},
                self.a.out / f"{name}.safetensors",
            )
        return denoiser.eval().requires_grad_(False).to(self.device)

    def train_model(self) -> AtmosphereModel:
        """A new model, and its bundle."""
        denoiser = self.train(CRPSTask if self.a.crps else AtmosphereTask, self.a.minutes, "model")
        words = {n: dict(zip(("standard_name", "units"), WORDS[n[:2]])) for n in NAMES}
        start = torch.from_numpy(np.ascontiguousarray(self.tests[0, 1, [1, 0]])).to(self.device)
        model = AtmosphereModel(
            denoiser,
            self.config,
            self.norm,
            self.constants,
            words,
            start,
            float(self.test_days[0, 1]),
            steps=1 if self.a.crps else 16,
        )
        write_bundle(
            self.a.out / "bundle",
            modality="weather",
            model=model.to_json(),
            weights=model.weights(),
            card="measured below\n",
        )
        return model

    @torch.no_grad()
    def regress(self, now: Tensor, before: Tensor, day: float) -> Tensor:
        """A day of the twin."""
        days = torch.full((len(now),), day, device=self.device)
        more = extra_channels(self.constants, gauss_latitudes(32)[0].to(self.device), days)
        change = self.twin(
            {FIELD: torch.zeros_like(now)},
            torch.full((len(now),), 0.999, device=self.device),
            condition=torch.cat([now, before, more], 1),
            layouts={FIELD: Dense(len(now), self.device)},
        )[FIELD]
        return now + self.norm.change[:, None, None] * change

    def area(self, x: Tensor) -> Tensor:
        """The mean over the sphere, `[…, C]`."""
        return (x * self.weight).sum((-2, -1))

    @torch.no_grad()
    def score(self, i: int) -> dict[str, Tensor]:
        """Of one date, `[leads, C]` each, normalised; spectra `[leads, C, degrees]`."""
        D = self.norm.normalise(torch.from_numpy(np.ascontiguousarray(self.tests[i])).to(self.device))
        day, y = float(self.test_days[i, 1]), D[0, 2:]
        members = min(self.a.members, len(D) - 2)
        x, before = D[2 : 2 + members, 1], D[2 : 2 + members, 0]
        tx, tb, centre = D[1:2, 1], D[1:2, 0], D[1, 1]
        days = self.days.flatten()
        near = torch.where(((days - day + 182.6) % 365.2425 - 182.6).abs() < 20)[0].numpy()
        pick = np.random.default_rng(i).choice(near if len(near) else len(days), 50)
        climate = self.states.flatten(0, 1)[torch.from_numpy(pick).to(self.device)]
        rows: list[dict[str, Tensor]] = []
        for lead in range(1, len(y) + 1):
            noise = CounterNoise(sample_seeds(1000 * i + lead, range(members)).to(self.device))
            today = (day + lead - 1) % 365.2425
            x, before = self.model.step(x, before, today, noise), x
            tx, tb = self.regress(tx, tb, today), tx
            truth, own = y[lead - 1], D[2:, lead + 1]
            linear = self.linear.forecast(centre, day, lead, 50, 1000 * i + lead).to(self.device)
            row = {}
            for name, e in (("model", x), ("truth", own), ("LIM", linear), ("climatology", climate)):
                row[f"{name} crps"] = self.area(crps(e, truth))
                row[f"{name} mse"] = self.area((e.mean(0) - truth) ** 2)
                row[f"{name} variance"] = self.area(e.var(0))
            for name, one in (("twin", tx[0]), ("control", D[1, lead + 1]), ("persistence", centre)):
                row[f"{name} mae"] = self.area((one - truth).abs())
                row[f"{name} mse"] = self.area((one - truth) ** 2)
            row["model spectrum"], row["truth spectrum"] = (
                power(self.harmonics(e)).mean(0) for e in (x, own)
            )
            rows.append(row)
        return {k: torch.stack([r[k] for r in rows]).cpu() for k in rows[0]}

    def run(self) -> dict[str, np.ndarray]:
        """All dates, `[dates, leads, C]`."""
        found = []
        for i in range(min(len(self.tests), self.a.dates or 10**9)):
            found.append(self.score(i))
            print(f"date {i + 1} of {len(self.tests)}", flush=True)
        return {k: torch.stack([f[k] for f in found]).numpy() for k in found[0]}


def fit(x: Tensor, weight: Tensor) -> Normalisation:
    """Of runs `[R, T, …]`; rounded as a bundle keeps them."""
    w = (weight / weight.sum() / x.shape[-1]).to(x)[:, None]
    mean = (x.mean((0, 1)) * w).sum((-2, -1))
    std = (((x - mean[:, None, None]) ** 2).mean((0, 1)) * w).sum((-2, -1)).sqrt()
    change = (((x[:, 2:] - x[:, :-2]) ** 2).mean((0, 1)) * w).sum((-2, -1)).sqrt() / std
    std, change = (v.log().half().float().exp() for v in (std, change))
    return Normalisation((mean / std).half().float() * std, std, change)


def ssr(variance: float, mse: float, members: int) -> float:
    """Spread over error."""
    return float(np.sqrt((members + 1) / members * variance / mse))


def plus(found: tuple[float, float], one: str, two: str) -> str:
    """A number and its error."""
    return f"{found[0]:{one}} ± {found[1]:{two}}"


HEADS = ("day", "CRPS", "truth's", "LIM's", "climat.'s", "twin MAE", "control", "persist.", "/ twin MAE", "/ truth CRPS",
         "SSR", "truth's", "spectrum")  # fmt: skip
WIDTHS = (4, 17, 9, 9, 9, 9, 9, 9, 13, 12, 11, 7, 13)


def table(r: dict[str, np.ndarray], std: np.ndarray, members: int, truth_members: int) -> None:
    """Print it: for each field a line for each lead, then targets and what others have published."""
    length = r["model crps"].shape[1]
    leads = [k for k in (1, 3, 5, 7, 10) if k <= length]
    ratios = r["model spectrum"].mean(0) / r["truth spectrum"].mean(0)
    kept: dict[str, list[float]] = {k: [] for k in TARGETS}
    for c, name in enumerate(NAMES):
        print(f"\n{name} ({WORDS[name[:2]][1]}), {len(r['model crps'])} dates, {members} members")
        print(" ".join(f"{h:>{w}}" for h, w in zip(HEADS, WIDTHS)))
        for lead in range(1, length + 1):
            v = {k: x[:, lead - 1, c] for k, x in r.items() if "spectrum" not in k}
            s = std[c]
            crps_, twin, own = (v[k] for k in ("model crps", "twin mae", "truth crps"))
            to_twin, to_truth = (jackknife(lambda x, y: x / y, crps_, o) for o in (twin, own))
            mine = jackknife(lambda x, y: ssr(x, y, members), v["model variance"], v["model mse"])
            ratio = ratios[lead - 1, c, 1:]
            for key, value in zip(TARGETS, ([to_twin[0]], [to_truth[0]], [mine[0]], ratio.tolist())):
                kept[key] += value
            if lead not in leads:
                continue
            cells = [str(lead), plus(jackknife(lambda x, s=s: x * s, crps_), ".4g", ".2g")]
            others = (
                "truth crps",
                "LIM crps",
                "climatology crps",
                "twin mae",
                "control mae",
                "persistence mae",
            )
            cells += [f"{v[k].mean() * s:.4g}" for k in others]
            cells += [plus(to_twin, ".3f", ".3f"), plus(to_truth, ".2f", ".2f"), plus(mine, ".2f", ".2f")]
            cells += [f"{ssr(v['truth variance'].mean(), v['truth mse'].mean(), truth_members):.2f}"]
            cells += [f"{ratio.min():.2f} to {ratio.max():.2f}"]
            print(" ".join(f"{x:>{w}}" for x, w in zip(cells, WIDTHS)))
    print(f"\n{'target':>14} {'wanted':>14} {'found':>16}   reached, of fields and leads")
    for key, (low, high) in TARGETS.items():
        x = np.array(kept[key])
        wanted = f"{low:g} to {high:g}" if low else f"up to {high:g}"
        share = ((x >= low) & (x <= high)).mean()
        print(f"{key:>14} {wanted:>14} {f'{x.min():.2f} to {x.max():.2f}':>16}   {share:.0%}")
    for last in (20, 25):
        part = np.abs(ratios[..., 1 : last + 1] - 1)
        print(f"spectra, degrees 1 to {last}: within 10 % {(part < 0.1).mean():.1%}, worst {part.max():.0%}")
    print("\nPublished, another atmosphere, z500 (m²/s²), biased CRPS of 10 members at days 1/3/5/10:")
    for name, row in PUBLISHED.items():
        more = "  0.50 to 0.51 of its own MAE, SSR 0.79 to 0.94" if "EDM" in name else ""
        print(f"{name:>20}: {' '.join(f'{x:>4}' for x in row)}{more}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("truth", type=Path)
    p.add_argument("--bundle")
    p.add_argument("--crps", type=int, metavar="LEADS", help="train by CRPS, one evaluation a day")
    p.add_argument("--start", metavar="BUNDLE", help="what trainings begin from, with its fields' statistics")
    p.add_argument("--lr", type=float, help="of trainings")
    p.add_argument("--cooldown", type=float, help="of a training by CRPS")
    p.add_argument("--minutes", type=float, default=5.0)
    p.add_argument("--twin", type=Path, help="weights of a twin that was trained before")
    p.add_argument("--twin-minutes", type=float, default=1.0)
    p.add_argument("--members", type=int, default=50)
    p.add_argument("--dates", type=int)
    p.add_argument("--modes", type=int, default=100, help="of the linear inverse model")
    p.add_argument("--out", type=Path, default=Path("speedy-benchmark"))
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    bench = Benchmark(a)
    found = bench.run()
    table(
        found,
        bench.norm.std.cpu().numpy(),
        min(a.members, bench.tests.shape[1] - 2),
        bench.tests.shape[1] - 2,
    )
    if a.json:
        write_json(a.json, {k: v.tolist() for k, v in found.items()})


if __name__ == "__main__":
    main()
