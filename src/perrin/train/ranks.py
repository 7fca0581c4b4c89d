"""Which of how many processes this one is, from what torchrun, srun or Fabric have put into the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Arguments:
        rank: of this process, from 0.
        local: processes on each node.
        nodes: number of nodes.
        given: whether somebody else has started them (torchrun, srun); otherwise Fabric starts those that are missing.
    """

    rank: int
    local: int
    nodes: int
    given: bool

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.local * self.nodes


def find_ranks(devices: int | str) -> Ranks:
    """The processes of this run, where `devices` were asked for on each node (`auto`: the GPUs that are there)."""
    environment = os.environ

    def number(name: str, default: int = 1) -> int:
        word = environment.get(name, "")
        return int(word) if word.isdecimal() else default

    if "TORCHELASTIC_RUN_ID" in environment:
        local = number("LOCAL_WORLD_SIZE")
        return Ranks(number("RANK", 0), local, number("WORLD_SIZE") // local, True)
    if number("SLURM_NTASKS") > 1 and "SLURM_STEP_ID" in environment:
        nodes = number("SLURM_STEP_NUM_NODES", number("SLURM_NNODES"))
        return Ranks(number("SLURM_PROCID", 0), number("SLURM_NTASKS") // nodes, nodes, True)
    if devices == "auto":
        import torch

        local = max(1, torch.cuda.device_count())
    else:
        local = int(devices)
    return Ranks(number("LOCAL_RANK", 0), local, 1, False)
