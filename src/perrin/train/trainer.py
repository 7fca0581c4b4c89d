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
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from perrin.core.ema import PowerAverage
from perrin.errors import PerrinError
from perrin.run.atomic import sweep, write_text
from perrin.run.signals import Interrupted, stop_on_signal
from perrin.train import averages
from perrin.train.checkpoint import Checkpoint
from perrin.train.gradients import accumulated, average_gradients
from perrin.train.graphs import GraphedGradients, side_stream
from perrin.train.muon import Muon
from perrin.train.options import TrainOptions
from perrin.train.ranks import find_ranks

_AGREE = 16
"""Steps between two times that the ranks agree on the clock and on signals."""


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
        """This rank's share of the batch of `step`, corrupted: a key that names its shapes, and its tensors.

        The generator is seeded alike on every rank: draw for the whole batch, then take every `world`-th sample from `rank`
        on, so that the batch does not depend on the number of ranks.
        """

    def loss(self, model: Callable[..., Any], key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a prepared batch; `"loss"` is what is minimised. `model` is the denoiser. Draws no random number."""


@runtime_checkable
class SelfTaught(Protocol):
    """A task that learns from what its own network makes, too."""

    def refresh(self, step: int, average: Mapping[str, Tensor]) -> None:
        """Called before every step with the moving average of the weights, by parameter name."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for `restore`."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Called once, when a run goes on, with what `tensors` gave (nothing, if it gave nothing)."""


class Trainer:
    """Runs a task to the end, from wherever its folder says it is.

    Arguments:
        task: denoiser and data.
        options: how to train.
        folder: where `checkpoint.safetensors` and `metrics.jsonl` live.
        accelerator, devices: Fabric's; `auto` takes the GPUs that are there. Where torchrun or srun has started the
            processes, their numbers count.
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
        nodes, ranks = 1, find_ranks(devices)
        if ranks.given:
            devices, nodes = ranks.local, ranks.nodes
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*srun.*")  # a login node has it, too
            self.fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes)
        self.task, self.options, self.folder = task, options, Path(folder)
        self.self_taught = task if isinstance(task, SelfTaught) else None
        self.config = {"model": task.config, "options": options.to_json()}

    def run(self) -> dict[str, float]:
        """Train; returns the last logged metrics.

        Raises:
            Interrupted: SIGTERM or Ctrl-C came; the checkpoint holds the step reached.
            PerrinError: the loss is not finite, or the folder holds another run.
        """
        self.fabric.launch()
        try:
            with side_stream(self.fabric.device):
                return self._run()
        finally:  # a process that ends with its group open may abort
            if self.fabric.world_size > 1:
                torch.distributed.destroy_process_group()

    def _run(self) -> dict[str, float]:
        fabric, options = self.fabric, self.options
        self.folder.mkdir(parents=True, exist_ok=True)
        bare = self.task.denoiser.to(fabric.device)
        self.task.to(fabric.device)
        if options.compile:
            self.task.compile()
        optimizers = make_optimizers(bare, options, fused=fabric.device.type == "cuda")
        ema = {k: p.detach().clone() for k, p in bare.named_parameters()}
        power = averages.averages(bare, options.ema_std)
        start, before = self._resume(bare, ema, optimizers, power)
        begin = time.perf_counter()
        graphs = options.cuda_graphs and fabric.device.type == "cuda"
        many = fabric.world_size > 1
        if options.batch % (fabric.world_size * options.accumulate):
            raise PerrinError(
                f"expected a batch that {fabric.world_size} ranks × {options.accumulate} parts divide, given "
                f"{options.batch}: change --batch or --accumulate"
            )
        average: list[Tensor] = list(ema.values())
        live: list[Tensor] = list(bare.parameters())
        if many:
            for p in [*live, *average]:
                torch.distributed.broadcast(p.detach(), 0)
        generator = torch.Generator(device=fabric.device)

        def forward_backward(key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.autocast(
                fabric.device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"
            ):
                losses = self.task.loss(bare, key, batch)
            fabric.backward(losses["loss"])
            return {k: v.detach() for k, v in losses.items()}

        each = GraphedGradients(forward_backward, live) if graphs else forward_backward
        gradients = accumulated(each, live, options.accumulate)

        log = _Log(self.folder / "metrics.jsonl", start, before, options, active=fabric.global_rank == 0)
        with stop_on_signal() as stop:
            for step in range(start, options.steps if options.used(start, before) < 1 else start):
                # all ranks must see the same clock and signal
                if not many or step == start or step % _AGREE == 0:
                    elapsed = before + time.perf_counter() - begin
                    seconds, signal = self._agree(elapsed if options.minutes else 0.0, stop.number)
                lr = options.rate(step, seconds)
                for group in (g for o in optimizers for g in o.param_groups):
                    group["lr"] = lr
                if self.self_taught is not None:
                    self.self_taught.refresh(step, ema)
                generator.manual_seed(step_seed(options.seed, step))
                key, batch = self.task.prepare(
                    step, generator=generator, rank=fabric.global_rank, world=fabric.world_size
                )
                losses = gradients(key, batch)
                if many:  # not by DistributedDataParallel: a graph holds one rank's work, and small models need no overlap
                    average_gradients(live)
                norm = torch.nn.utils.clip_grad_norm_(live, options.clip)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                torch._foreach_lerp_(average, live, 1 - options.ema_decay(step))
                if power is not None:
                    power.update(dict(bare.named_parameters()), step + 1)
                done = step + 1
                over = options.used(done, seconds) >= 1
                if many and (over or done % options.log_every == 0):
                    losses = {k: fabric.all_reduce(v.clone(), reduce_op="mean") for k, v in losses.items()}
                log(step, losses, norm, lr, last=over)
                stopped = signal if many else stop.number or 0
                if stopped or over or done % options.save_every == 0:
                    check_finite(float(losses["loss"]), done)
                    self._save(done, bare, ema, optimizers, before + time.perf_counter() - begin, power)
                    if (
                        power is not None
                        and fabric.global_rank == 0
                        and (over or done % options.save_every == 0)
                    ):
                        averages.write_snapshot(self.folder, power, done)
                if over:
                    break
                if stopped:
                    log.close()
                    raise Interrupted(
                        stopped,
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

    def _agree(self, seconds: float, number: int | None) -> tuple[float, int]:
        """The latest clock of any rank, and a signal that any rank has had (0: none)."""
        if self.fabric.world_size == 1:
            return seconds, number or 0
        told = torch.tensor([seconds, number or 0], dtype=torch.float64, device=self.fabric.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        elapsed, heard = told.tolist()
        return elapsed, int(heard)

    def _resume(
        self,
        model: nn.Module,
        ema: dict[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        power: PowerAverage | None,
    ) -> tuple[int, float]:
        found = self.check()
        if found is None:
            return 0, 0.0
        found.restore(model, ema, optimizers)
        if power is not None:
            averages.restore(power, found.tensors, self.folder)
        if self.self_taught is not None:
            self.self_taught.restore(found.part("task"))
        self.fabric.print(f"going on from step {found.step} in {self.folder}", file=sys.stderr)
        return min(found.step, self.options.steps), found.seconds

    def _save(
        self,
        step: int,
        model: nn.Module,
        ema: dict[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        seconds: float,
        power: PowerAverage | None,
    ) -> None:
        if self.fabric.global_rank == 0:
            more = averages.tensors(power) if power is not None else {}
            if self.self_taught is not None:
                more |= {f"task.{k}": v for k, v in self.self_taught.tensors().items()}
            Checkpoint.capture(step, model, ema, optimizers, self.config, seconds, more).save(self.folder)
        self.fabric.barrier()


def make_optimizers(
    model: nn.Module, options: TrainOptions, *, fused: bool = False
) -> list[torch.optim.Optimizer]:
    """AdamW, with decay on matrices only; and Muon, if asked for, on the weights of linear layers in a `ModuleList`."""
    blocks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    linear = [m.weight for b in blocks for m in b.modules() if isinstance(m, nn.Linear)]
    muon = linear if options.optimizer == "muon" else []
    taken = set(map(id, muon))
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    out: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99), fused=fused)
    ]
    if muon:
        out.append(Muon(muon, lr=options.lr, weight_decay=options.weight_decay))
    return out


def step_seed(seed: int, step: int) -> int:
    """The generator's seed for one step, on every rank."""
    return (seed * 1_000_003 * 1_000_000_007 + step) % 2**63


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
    """Progress on the terminal and `metrics.jsonl`; lines past the step gone on from are dropped.

    Arguments:
        path: of the metrics.
        start, before: the step gone on from, and the seconds that it has taken.
        options: of the training.
        active: whether this process writes.
    """

    def __init__(self, path: Path, start: int, before: float, options: TrainOptions, *, active: bool) -> None:
        self.options, self.active = options, active
        self.last: dict[str, float] = {}
        self.begin, self.start, self.before = time.perf_counter(), start, before
        if not active:
            return
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if 0 < _step_of(line) <= start]
        self.last = json.loads(kept[-1]) if kept else {}
        if kept != lines or not path.is_file():
            sweep(path)
            write_text(path, "".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.terminal = sys.stderr.isatty()

    def __call__(self, step: int, losses: dict[str, Tensor], norm: Tensor, lr: float, *, last: bool) -> None:
        done = step + 1
        if not self.active or (done % self.options.log_every and not last):
            return
        values = {k: float(v) for k, v in losses.items()}
        check_finite(values["loss"], done)
        seconds = time.perf_counter() - self.begin
        speed = (done - self.start) * self.options.batch / seconds
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
            left = max(0.0, min(left, 60 * self.options.minutes - self.before - seconds))
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
