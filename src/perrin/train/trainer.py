"""The training loop.

Everything random at step k is a function of the seed and k (batch, times, noise), and the learning rate is a function of
k; so the state of a run is its weights, their moving average, the optimizer's moments and k. A run that is killed and
started again ends with the same bits as one that was not, on the same machine.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from perrin.core.ema import PowerAverage
from perrin.errors import PerrinError
from perrin.run.signals import Interrupted, stop_on_signal
from perrin.train import averages
from perrin.train.checkpoint import Checkpoint
from perrin.train.graphs import GraphedGradients, side_stream
from perrin.train.options import TrainOptions


class Task(Protocol):
    """What a modality supplies to the trainer."""

    config: dict[str, Any]

    @property
    def denoiser(self) -> nn.Module:
        """What is trained."""

    def to(self, device: torch.device) -> None:
        """Move the data to the device."""

    def compile(self) -> None:
        """Compile the network's repeated block."""

    def prepare(
        self, step: int, *, generator: torch.Generator, rank: int, world: int
    ) -> tuple[Hashable, dict[str, Tensor]]:
        """This rank's share of the batch of `step`, corrupted: a key that names its shapes, and its tensors."""

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a prepared batch; `"loss"` is what is minimised. `model` is the denoiser. Draws no random number."""


class Trainer:
    """Runs a task to the end, from wherever its folder says it is.

    Arguments:
        task: denoiser and data.
        options: how to train.
        folder: where `checkpoint.safetensors` and `metrics.jsonl` live.
        accelerator, devices: Fabric's; `auto` takes the GPUs that are there.
    """

    def __init__(
        self,
        task: Task,
        options: TrainOptions,
        folder: str | Path,
        *,
        accelerator: str = "auto",
        devices: int | str = "auto",
    ) -> None:
        from lightning_fabric import Fabric

        if accelerator == "auto":
            accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        devices = 1 if accelerator == "cpu" and devices == "auto" else devices
        if devices != "auto" and not (str(devices).isdecimal() and int(devices) > 0):
            raise PerrinError(f"expected a number of devices of at least 1, or auto, given {devices!r}")
        self.fabric = Fabric(accelerator=accelerator, devices=devices)
        self.task, self.options, self.folder = task, options, Path(folder)
        self.config = {"model": task.config, "options": options.to_json()}

    def run(self) -> dict[str, float]:
        """Train; returns the last logged metrics.

        Raises:
            Interrupted: SIGTERM or Ctrl-C came; the checkpoint holds the step reached.
            PerrinError: the loss is not finite, or the folder holds another run.
        """
        self.fabric.launch()
        with side_stream(self.fabric.device):
            return self._run()

    def _run(self) -> dict[str, float]:
        fabric, options = self.fabric, self.options
        self.folder.mkdir(parents=True, exist_ok=True)
        bare = self.task.denoiser.to(fabric.device)
        self.task.to(fabric.device)
        if options.compile:
            self.task.compile()
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameter_groups(bare, options.weight_decay),
            lr=options.lr,
            betas=(0.9, 0.99),
            fused=fabric.device.type == "cuda",
        )
        ema = {k: p.detach().clone() for k, p in bare.named_parameters()}
        power = averages.averages(bare, options.ema_std)
        start, before = self._resume(bare, ema, optimizer, power)
        begin = time.perf_counter()
        model, optimizer = fabric.setup(bare, optimizer)
        average: list[Tensor] = list(ema.values())
        live: list[Tensor] = list(bare.parameters())
        generator = torch.Generator(device=fabric.device)
        graphs = options.cuda_graphs and fabric.device.type == "cuda" and fabric.world_size == 1
        gradients: Callable[[Hashable, dict[str, Tensor]], dict[str, Tensor]]

        def forward_backward(key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.autocast(
                fabric.device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"
            ):
                losses = self.task.loss(model, key, batch)
            fabric.backward(losses["loss"])
            return {k: v.detach() for k, v in losses.items()}

        gradients = GraphedGradients(forward_backward, live) if graphs else forward_backward

        log = _Log(self.folder / "metrics.jsonl", start, options, active=fabric.global_rank == 0)
        with stop_on_signal() as stop:
            for step in range(start, options.steps if options.used(start, before) < 1 else start):
                seconds = before + time.perf_counter() - begin if options.minutes else 0.0
                for group in optimizer.param_groups:
                    group["lr"] = options.rate(step, seconds)
                generator.manual_seed(step_seed(options.seed, step, fabric.global_rank))
                key, batch = self.task.prepare(
                    step, generator=generator, rank=fabric.global_rank, world=fabric.world_size
                )
                losses = gradients(key, batch)
                norm = torch.nn.utils.clip_grad_norm_(live, options.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                torch._foreach_lerp_(average, live, 1 - options.ema_decay(step))
                if power is not None:
                    power.update(dict(bare.named_parameters()), step + 1)
                done = step + 1
                over = (
                    bool(fabric.broadcast(options.used(done, seconds) >= 1))
                    if options.minutes
                    else done == options.steps
                )
                log(step, losses, norm, group["lr"], last=over)
                if stop or over or done % options.save_every == 0:
                    check_finite(float(losses["loss"]), done)
                    self._save(done, bare, ema, optimizer, before + time.perf_counter() - begin, power)
                    if (
                        power is not None
                        and fabric.global_rank == 0
                        and (over or done % options.save_every == 0)
                    ):
                        averages.write_snapshot(self.folder, power, done)
                if over:
                    break
                if stop:
                    log.close()
                    raise Interrupted(
                        stop.number or 15,
                        f"stopped at step {done} of {options.steps}; the same command goes on from there",
                    )
        log.close()
        with torch.no_grad():
            for p, a in zip(live, average, strict=True):
                p.copy_(a)
        return log.last

    def check(self) -> Checkpoint | None:
        """The run's checkpoint, if there is one already.

        Raises:
            PerrinError: the folder holds another run, or a damaged checkpoint.
        """
        found = Checkpoint.load(self.folder)
        if found is not None and found.config.get("model") != _plain(self.config["model"]):
            raise PerrinError(
                f"expected the run in {self.folder} to have this model and data, found another: choose another --out"
            )
        return found

    def _resume(
        self,
        model: nn.Module,
        ema: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        power: PowerAverage | None,
    ) -> tuple[int, float]:
        found = self.check()
        if found is None:
            return 0, 0.0
        found.restore(model, ema, optimizer)
        if power is not None:
            averages.restore(power, found.tensors, self.folder)
        self.fabric.print(f"going on from step {found.step} in {self.folder}", file=sys.stderr)
        return min(found.step, self.options.steps), found.seconds

    def _save(
        self,
        step: int,
        model: nn.Module,
        ema: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        seconds: float,
        power: PowerAverage | None,
    ) -> None:
        if self.fabric.global_rank == 0:
            raw = getattr(optimizer, "optimizer", optimizer)
            more = averages.tensors(power) if power is not None else None
            Checkpoint.capture(step, model, ema, raw, self.config, seconds, more).save(self.folder)
        self.fabric.barrier()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices only."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generator's seed for one step of one rank."""
    return ((seed * 1_000_003 + rank) * 1_000_000_007 + step) % 2**63


def check_finite(loss: float, done: int) -> None:
    """Raise a `PerrinError` unless the loss of step `done` is finite."""
    if not math.isfinite(loss):
        raise PerrinError(
            f"expected a finite loss at step {done}, given {loss}: lower --lr; the last checkpoint is intact"
        )


def _plain(data: Any) -> Any:
    return json.loads(json.dumps(data, sort_keys=True))


def _step_of(line: str) -> int:
    """The step of a line of `metrics.jsonl`; 0 for one that was cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0


class _Log:
    """Progress on the terminal and `metrics.jsonl`; lines past the step gone on from are dropped."""

    def __init__(self, path: Path, start: int, options: TrainOptions, *, active: bool) -> None:
        self.options, self.active = options, active
        self.last: dict[str, float] = {}
        self.begin, self.start = time.perf_counter(), start
        if not active:
            return
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if 0 < _step_of(line) <= start]
        self.last = json.loads(kept[-1]) if kept else {}
        self.file = path.open("w")
        self.file.writelines(line + "\n" for line in kept)
        self.terminal = sys.stderr.isatty()

    def __call__(self, step: int, losses: dict[str, Tensor], norm: Tensor, lr: float, *, last: bool) -> None:
        done = step + 1
        if not self.active or (done % self.options.log_every and not last):
            return
        values = {k: float(v) for k, v in losses.items()}
        check_finite(values["loss"], done)
        speed = (done - self.start) * self.options.batch / (time.perf_counter() - self.begin)
        self.last = {
            "step": done,
            **values,
            "gradient_norm": float(norm),
            "lr": lr,
            "samples_per_second": round(speed, 1),
        }
        self.file.write(json.dumps(self.last) + "\n")
        self.file.flush()
        left = (self.options.steps - done) * self.options.batch / speed
        if self.options.minutes:
            left = min(left, 60 * self.options.minutes - (time.perf_counter() - self.begin))
        total = "" if self.options.minutes else f"/{self.options.steps}"
        text = f"step {done}{total}  loss {values['loss']:.4f}  {speed:.0f} samples/s  {left:.0f} s left"
        print(
            f"\r{text}\x1b[K" if self.terminal else text,
            end="" if self.terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Close the file."""
        if self.active:
            if self.terminal:
                print(file=sys.stderr)
            self.file.close()
