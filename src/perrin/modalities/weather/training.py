"""What `perrin train weather/…` begins with, whatever it trains."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from perrin.errors import PerrinError, check_counts
from perrin.train import TrainOptions

_COUNTS = ("steps", "batch", "threads", "log_every", "save_every")


def begin(a: Namespace, *counts: str) -> Path:
    """The folder of `--out`, and the threads that are asked for.

    Arguments:
        counts: further arguments that must be at least 1, if given.

    Raises:
        PerrinError: a count is below 1, or `--out` is a file.
    """
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
