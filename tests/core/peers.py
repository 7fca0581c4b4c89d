"""Other libraries' samplers, for comparison: `make peers`. Nothing of Perrin's depends on them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from decimal import Decimal, localcontext
from math import factorial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def need(*modules: str) -> Any:
    """The last of the modules. Without them a test is skipped; with `PERRIN_PEERS` set (CI) it fails."""
    try:
        return [k_sampling() if m == "k_diffusion" else importlib.import_module(m) for m in modules][-1]
    except ImportError as error:
        if os.environ.get("PERRIN_PEERS"):
            raise
        pytest.skip(f"{error}: make peers")


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


def adams_bashforth(t: Tensor, /, i: int, n: int) -> Tensor:
    """Azula's coefficients by azula's formula, in 60 digits.

    Azula integrates `e^{−u} u^k` in unscaled `u`, by differences of its antiderivative, and solves a Vandermonde system
    in the same `u`. In float64 both lose digits, the more the further `u` is from 0 and the more estimates there are.
    """
    n = min(n, i + 1)
    with localcontext() as context:
        context.prec = 60
        u = [Decimal(v) for v in t.tolist()]

        def antiderivative(x: Decimal, k: int) -> Decimal:
            series = sum((x**j / factorial(j) for j in range(1, k + 1)), Decimal(1))
            return -factorial(k) * (-x).exp() * series

        nodes = u[i + 1 - n : i + 1]
        rows = [
            [
                *(node**k if k else Decimal(1) for node in nodes),
                antiderivative(u[i + 1], k) - antiderivative(u[i], k),
            ]
            for k in range(n)
        ]
        for c in range(n):  # Gauss and Jordan
            pivot = max(range(c, n), key=lambda r: abs(rows[r][c]))
            rows[c], rows[pivot] = rows[pivot], rows[c]
            rows[c] = [v / rows[c][c] for v in rows[c]]
            for r in range(n):
                if r != c:
                    rows[r] = [v - rows[r][c] * w for v, w in zip(rows[r], rows[c], strict=True)]
        return torch.tensor([float(row[-1]) for row in rows], dtype=torch.float64)
