"""What `perrin train weather/…` begins and ends with, and how its tasks noise fields, whatever it trains."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perrin.bundle import write_bundle
from perrin.core import Composite, Dense, GeneratorNoise
from perrin.core.losses import sample_times_edm, stratified
from perrin.errors import PerrinError, check_counts
from perrin.train import TrainOptions

_COUNTS = ("steps", "batch", "threads", "log_every", "save_every")


def begin(a: Namespace, data: str, *counts: str) -> Path:
    """The folder of `--out`, and the threads that are asked for.

    Arguments:
        data: what `--data` is, in words.
        counts: further arguments that must be at least 1, if given.

    Raises:
        PerrinError: there is no `--data`, or several, but `--from`, a count is below 1, or `--out` is a file.
    """
    if not a.data:
        raise PerrinError(f"expected --data with {data}, given none")
    if isinstance(a.data, list) and a.target != "weather/atmosphere":
        raise PerrinError(f"expected one file for --data of {a.target}, given {len(a.data)}: join them")
    if a.start:
        raise PerrinError(f"expected no --from for {a.target}, which starts anew: leave it out")
    check_counts(**{name: getattr(a, name) for name in (*_COUNTS, *counts)})
    if a.threads:
        torch.set_num_threads(a.threads)
    out = Path(a.out)
    if out.exists() and not out.is_dir():
        raise PerrinError(f"expected a folder for --out, given the file {out}: choose another name")
    return out


def options_of(
    a: Namespace, *, steps: int, batch: int, lr: float, warmup: int, log_every: int, **more: Any
) -> TrainOptions:
    """Those of the command line, and a model's own where none are given.

    Arguments:
        warmup: steps at most; a tenth of all if that is fewer.
        more: further ones, that cannot be given.
    """
    steps = a.steps or steps
    return TrainOptions(
        steps=steps,
        minutes=a.minutes,
        batch=a.batch or batch,
        optimizer=a.optimizer or "adamw",
        lr=a.lr if a.lr is not None else lr,
        warmup=min(warmup, max(1, steps // 10)),
        seed=a.seed,
        log_every=a.log_every or log_every,
        save_every=a.save_every,
        **more,
    )


def ship(out: Path, model: Any, card: str, training: dict[str, Any]) -> None:
    """Write the bundle of a model that has `to_json` and `weights`."""
    write_bundle(
        out, modality="weather", model=model.to_json(), weights=model.weights(), card=card, training=training
    )


def noised(
    process: Composite, field: str, x_0: Tensor, generator: torch.Generator, *, mean: float, std: float
) -> dict[str, Tensor]:
    """Times, clean and noised fields, `t`, `x_0` and `x_t`, with `ln(σ/α)` normal of this mean and deviation."""
    u = stratified(torch.rand(len(x_0), generator=generator, device=generator.device))
    t = sample_times_edm(u, process.fields[field].schedule, mean=mean, std=std, low=1e-3, high=0.999)
    layouts = {field: Dense(len(x_0), x_0.device)}
    x_t = process.corrupt_state({field: x_0}, t, GeneratorNoise(generator), layouts)[field]
    return {"t": t, "x_0": x_0, "x_t": x_t}
