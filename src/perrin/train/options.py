"""Options of the trainer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from perrin.core.ema import exponent
from perrin.errors import PerrinError

PRECISIONS = ("32-true", "bf16-mixed")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; what to train comes from the task.

    Arguments:
        steps: optimizer steps in all.
        minutes: a budget of wall-clock time, restarts counted together; the run ends, and `lr` is zero, when either steps or
            minutes are used up. With it a run is not a function of its seed alone.
        batch: samples per step, over all processes.
        accumulate: parts that each process cuts its share of the batch into, one after another, to need less memory.
        optimizer: `adamw`; or `muon`, which is Muon for the matrices of repeated blocks and AdamW for the rest.
        lr: peak learning rate.
        warmup: steps from zero to `lr`.
        cooldown: fraction of the steps, at the end, over which `lr` falls linearly to zero.
        weight_decay: decoupled, on matrices only.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights, reached after a warm-up.
        ema_std: relative widths of power-function averages to keep beside it, for `perrin.core.ema.reconstruct`.
        seed: of weights, batches, times and noise.
        precision: `32-true` or `bf16-mixed`.
        log_every, save_every: steps between lines of `metrics.jsonl` and between checkpoints.
        compile: compile the network's repeated block.
        cuda_graphs: on GPUs, replay forward and backward as a CUDA graph for each batch shape; the host is too slow to
            launch the kernels of a small network.
    """

    steps: int
    minutes: float | None = None
    batch: int = 256
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    warmup: int = 500
    cooldown: float = 0.4
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.9995
    ema_std: tuple[float, ...] = ()
    seed: int = 0
    precision: str = "32-true"
    log_every: int = 50
    save_every: int = 1000
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise PerrinError(f"expected {name} of at least 1, given {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise PerrinError(f"expected minutes above 0, given {self.minutes}")
        if not 0 <= self.cooldown <= 1:
            raise PerrinError(f"expected cooldown between 0 and 1, given {self.cooldown}")
        if not 0 < self.lr < math.inf:
            raise PerrinError(f"expected a learning rate above 0, given {self.lr}")
        if not self.clip > 0:
            raise PerrinError(f"expected clip above 0, given {self.clip}")
        if not 0 <= self.ema < 1:
            raise PerrinError(f"expected ema of at least 0 and below 1, given {self.ema}")
        if self.optimizer not in OPTIMIZERS:
            raise PerrinError(f"expected optimizer {' or '.join(OPTIMIZERS)}, given {self.optimizer!r}")
        object.__setattr__(self, "ema_std", tuple(self.ema_std))  # JSON has lists
        for width in self.ema_std:
            try:
                exponent(width)
            except ValueError as error:
                raise PerrinError(f"{error}: choose other widths for --ema-std") from error
        if self.precision not in PRECISIONS:
            raise PerrinError(f"expected precision {' or '.join(PRECISIONS)}, given {self.precision!r}")

    def used(self, step: int, seconds: float = 0.0) -> float:
        """The fraction of the budget, steps or minutes, that is used after `step` steps and `seconds`."""
        return max(step / self.steps, seconds / (60 * self.minutes) if self.minutes else 0.0)

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """The learning rate at `step` (0-based) after `seconds` of training: warm-up, plateau, linear fall to zero."""
        up = min(1.0, (step + 1) / max(self.warmup, 1))
        left = max(0.0, 1 - self.used(step, seconds))
        down = min(1.0, left / self.cooldown) if self.cooldown else 1.0
        return self.lr * min(up, down)

    def ema_decay(self, step: int) -> float:
        """The decay at `step`: short averages first, so that the start is forgotten."""
        return min(self.ema, (1 + step) / (10 + step))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)
