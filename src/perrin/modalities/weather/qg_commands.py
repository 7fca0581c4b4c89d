"""The commands for two-layer flow: data and a prior."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from perrin.errors import PerrinError, counted
from perrin.modalities.weather.qg import produce, read_states
from perrin.modalities.weather.qg_model import (
    QGConfig,
    QGDenoiser,
    QGModel,
    QGTask,
    spectrum,
)
from perrin.modalities.weather.training import begin, options_of, ship
from perrin.run.device import choose_device
from perrin.run.record import record, write_record
from perrin.train import Trainer

CARD = """# {name}

Pieces of {states} states, {hours:g} hours apart, of two-layer quasi-geostrophic flow: `perrin assimilate`.

Data: {source}, {runs} runs of {times} states.

Metrics: none measured yet; `python benchmarks/qg.py` of Perrin's repository compares it with optimal interpolation.
"""


def data(a: Namespace) -> None:
    """`perrin data weather/qg --days N --runs R -o OUT.zarr`: simulated eddies; goes on where it was stopped."""
    if Path(a.out).suffix != ".zarr":
        raise PerrinError(f"expected an output that ends in .zarr, given {a.out}: rename it")
    found = produce(
        a.out,
        days=a.days,
        runs=a.runs,
        spinup=1800 if a.spinup is None else a.spinup,
        interval=96 if a.interval is None else a.interval,
        seed=a.seed,
    )
    print(f"{found['states']} states of {counted(a.runs, 'runs')} in {a.out}")


def prior(
    psi: torch.Tensor,
    words: dict[str, float],
    *,
    states: int = 4,
    stride: int = 2,
    widths: tuple[int, ...] = (32, 64, 64),
) -> QGDenoiser:
    """An untrained denoiser, exact for a normal law, with the statistics of the data.

    Arguments:
        psi: `[runs, times, 2, n, n]`, m² s⁻¹.
        words: its `hours` between states and its `length`, m.
        states: of a piece.
        stride: states of the data from one to the next.
        widths: of the network's levels.

    Raises:
        PerrinError: the runs are shorter than a piece.
    """
    span = (states - 1) * stride + 1
    if psi.shape[1] < span:
        raise PerrinError(f"expected at least {span} states in a run, given {psi.shape[1]}: simulate more")
    scale = psi.std((0, 1, 3, 4))
    config = QGConfig(
        states=states,
        size=psi.shape[-1],
        hours=words["hours"] * stride,
        length=words["length"],
        scale=(float(scale[0]), float(scale[1])),
        widths=widths,
    )
    x = psi / torch.tensor(config.scale)[:, None, None]
    S = sum(spectrum(run.unfold(0, span, 1).movedim(-1, 1)[:, ::stride]) for run in x) / len(x)
    assert isinstance(S, torch.Tensor)
    return QGDenoiser(config, S)


def train(a: Namespace) -> None:
    """`perrin train weather/qg --data FILE.zarr --out DIR`: minutes on a CPU."""
    out = begin(a, "a store of perrin data weather/qg", "stride")
    device = choose_device(a.device)
    psi, words = read_states(a.data)
    torch.manual_seed(a.seed)
    denoiser = prior(psi, words, stride=a.stride)
    options = options_of(
        a,
        steps=10**7 if a.minutes else 2000,
        batch=32,
        lr=2e-3,
        warmup=100,
        log_every=50,
        cooldown=0.6,
        weight_decay=0.01,
        ema=0.995,
    )
    write_record(out / "run.json", record("train", a, options=options.to_json()))
    scaled = psi / torch.tensor(denoiser.config.scale)[:, None, None]
    task = QGTask(denoiser, scaled, batch=options.batch, stride=a.stride)
    found = Trainer(task, options, out, accelerator="cuda" if device != "cpu" else "cpu").run()
    model = QGModel(denoiser.cpu(), name=out.name)
    card = CARD.format(
        name=out.name,
        states=denoiser.config.states,
        hours=denoiser.config.hours,
        source=Path(a.data).name,
        runs=psi.shape[0],
        times=psi.shape[1],
    )
    ship(out, model, card, {"options": options.to_json()} | found)
    print(f"bundle in {out}: perrin assimilate {out} --observations obs.csv -o flow.nc")
