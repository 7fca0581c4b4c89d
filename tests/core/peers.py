"""Other libraries' samplers, for comparison: `pip install perrin[peers]`. Nothing of Perrin's depends on them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def k_sampling() -> ModuleType:
    """`k_diffusion.sampling` alone: the package's `__init__` wants image models and metrics that sampling does not need."""
    if "k_diffusion.sampling" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.origin is None:
            raise ImportError("k_diffusion")
        package = ModuleType("k_diffusion")
        package.__path__ = [str(Path(spec.origin).parent)]
        utils = ModuleType("k_diffusion.utils")
        utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
        sys.modules["k_diffusion"], sys.modules["k_diffusion.utils"] = package, utils
        package.utils = utils  # type: ignore[attr-defined]
    return importlib.import_module("k_diffusion.sampling")


def diffusers_run(scheduler: Any, denoise: Any, x: Tensor, noises: list[Tensor] | None = None) -> Tensor:
    """A diffusers scheduler's loop with a model that predicts the clean data, `denoise(x, timestep)`."""
    draws = iter(noises or [])
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        more = {"variance_noise": next(draws)} if noises is not None else {}
        x = scheduler.step(denoise(given, t), t, x, return_dict=False, **more)[0]
    return x


class AzulaDenoiser(torch.nn.Module):
    """Azula's interface around `denoise(x, t)` and one of our schedules."""

    def __init__(self, denoise: Any, schedule: Any) -> None:
        super().__init__()
        self.denoise, self.ours = denoise, schedule

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.ours.alpha(t), self.ours.sigma(t)

    def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
        from azula.denoise import DiracPosterior

        return DiracPosterior(mean=self.denoise(x, t))
