"""Checkpoints: one safetensors file with weights, moving average and optimizer state; nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perrin.errors import PerrinError
from perrin.run.atomic import sweep, write_tensors

FILE = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")


@dataclass
class Checkpoint:
    """The state of a run after `step` steps.

    Arguments:
        step: optimizer steps done.
        tensors: `model.*`, `ema.*` and the optimizers' moments (`exp_avg.*`, `exp_avg_sq.*`, `momentum.*`) by parameter
            name, and `power.<width>.*` if asked for.
        config: what must be the same for the run to go on (the model's configuration and the options).
        seconds: time trained so far.
    """

    step: int
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def capture(
        cls,
        step: int,
        model: nn.Module,
        ema: dict[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        config: dict[str, Any],
        seconds: float = 0.0,
        more: Mapping[str, Tensor] | None = None,
    ) -> Checkpoint:
        """Copy the state to the CPU, and `more` as it is named."""
        tensors: dict[str, Tensor] = {f"model.{k}": p for k, p in model.named_parameters()}
        tensors |= {f"ema.{k}": p for k, p in ema.items()} | dict(more or {})
        for name, p in model.named_parameters():
            for state in (o.state.get(p, {}) for o in optimizers):
                tensors |= {f"{m}.{name}": state[m] for m in _MOMENTS if m in state}
        copied = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
        return cls(step, copied, config, seconds)

    def save(self, folder: str | Path) -> Path:
        """Write `checkpoint.safetensors` into `folder`, atomically."""
        path = Path(folder) / FILE
        sweep(path)
        metadata = {
            "step": str(self.step),
            "seconds": f"{self.seconds:.1f}",
            "config": json.dumps(self.config, sort_keys=True),
        }
        write_tensors(path, self.tensors, metadata)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Checkpoint | None:
        """The checkpoint in `folder`, or `None` when there is none.

        Raises:
            PerrinError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            config = json.loads(metadata["config"])
            return cls(int(metadata["step"]), tensors, config, float(metadata.get("seconds", 0)))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise PerrinError(
                f"expected a checkpoint in {path}, given a damaged file ({error}): delete it to start over"
            ) from error

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, by parameter name."""
        return {
            k.removeprefix(prefix + "."): v for k, v in self.tensors.items() if k.startswith(prefix + ".")
        }

    def restore(
        self, model: nn.Module, ema: dict[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        """Copy the state back; moments that the file lacks start from zero."""
        weights, average = self.part("model"), self.part("ema")
        moments = {m: self.part(m) for m in _MOMENTS}
        owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights[name])
                ema[name].copy_(average[name])
                found = {m: moments[m][name].to(p) for m in _MOMENTS if name in moments[m]}
                if "exp_avg" in found:  # AdamW counts its steps
                    found["step"] = torch.tensor(float(self.step), device=_step_device(owner[p], p))
                if found:
                    owner[p].state[p] = found


def _step_device(optimizer: torch.optim.Optimizer, p: Tensor) -> torch.device:
    """Fused optimizers keep their step count on the parameter's device."""
    return p.device if optimizer.defaults.get("fused") else torch.device("cpu")
