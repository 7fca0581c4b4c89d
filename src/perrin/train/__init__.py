"""The trainer: a task from a modality, a loop on Lightning Fabric, checkpoints that resume exactly."""

from perrin.train.averages import snapshots
from perrin.train.batches import BatchPlan
from perrin.train.checkpoint import Checkpoint
from perrin.train.options import TrainOptions
from perrin.train.ranks import Ranks, find_ranks
from perrin.train.shared import shared_tensors
from perrin.train.trainer import Task, Trainer

__all__ = [
    "BatchPlan",
    "Checkpoint",
    "Ranks",
    "Task",
    "TrainOptions",
    "Trainer",
    "find_ranks",
    "shared_tensors",
    "snapshots",
]
