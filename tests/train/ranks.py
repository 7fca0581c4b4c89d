"""A run of the tiny molecule task, for `python -m torch.distributed.run`: FOLDER RANKS [STEP to be stopped at [SIGNAL]]."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tests.train.test_trainer import FIRST, SECOND, TINY

from perrin.modalities.molecule.chem import add_geometry
from perrin.modalities.molecule.network import MoleculeConfig, build_denoiser
from perrin.modalities.molecule.sources import from_files
from perrin.modalities.molecule.task import MoleculeTask
from perrin.run.signals import Interrupted
from perrin.train import Trainer, TrainOptions


class Task(MoleculeTask):
    """Its first rank is told to stop at a step, or killed."""

    stop_at, number = -1, signal.SIGTERM

    def prepare(self, step: int, *, rank: int, **more: Any) -> Any:
        if step == self.stop_at and rank == 0:
            os.kill(os.getpid(), self.number)
        return super().prepare(step, rank=rank, **more)


def main(folder: str, ranks: str, stop_at: str = "-1", number: str = "15") -> None:
    torch.set_num_threads(1)
    vocabulary, buckets, _ = from_files([add_geometry(s) for s in (*FIRST, *SECOND)], None, source="test")
    config = MoleculeConfig(vocabulary=vocabulary, network=TINY)
    options = TrainOptions(steps=40, batch=4, warmup=3, log_every=1, save_every=5, lr=1e-3)
    torch.manual_seed(0)
    task = Task(build_denoiser(config), config, buckets, batch=options.batch, seed=0)
    task.stop_at, task.number = int(stop_at), signal.Signals(int(number))
    try:
        Trainer(task, options, Path(folder), accelerator="cpu", devices=int(ranks)).run()
    except Interrupted:
        sys.exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
