"""CUDA graphs of forward and backward: one replay in place of thousands of kernel launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Gradients = Callable[[Hashable, dict[str, Tensor]], dict[str, Tensor]]


def side_stream(device: torch.device) -> AbstractContextManager[Any]:
    """A stream of its own for a run with CUDA graphs; nothing on other devices."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: list[Tensor | None]


class GraphedGradients:
    """Wraps a function that computes losses and leaves gradients in `parameters`; captures it once for each key.

    Everything, the model's set-up included, must run under one stream that is not the default one (`side_stream`).

    Each graph owns its gradient buffers; after a replay the parameters' `.grad` point to that graph's.

    Arguments:
        compute: `(key, batch) → losses`; must not synchronise with the host nor draw random numbers.
        parameters: those whose gradients are computed.
        warmup: calls before capture, which also compile.
    """

    def __init__(self, compute: Gradients, parameters: Sequence[Tensor], warmup: int = 3) -> None:
        self.compute, self.parameters, self.warmup = compute, list(parameters), warmup
        self.captured: dict[Hashable, _Captured] = {}
        self.pool: Any = None
        self.refused = False

    def __call__(self, key: Hashable, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of the batch; gradients are in `.grad`."""
        if self.refused:
            return self.compute(key, batch)
        if key not in self.captured:
            try:
                self.captured[key] = self._capture(key, batch)
            except RuntimeError as error:
                self.refused = True
                warnings.warn(f"CUDA graph capture failed, going on without: {error}", stacklevel=2)
                self._clear()
                return self.compute(key, batch)
        found = self.captured[key]
        for name, value in batch.items():
            found.inputs[name].copy_(value)
        found.graph.replay()
        for p, g in zip(self.parameters, found.gradients, strict=True):
            p.grad = g
        return {k: v.clone() for k, v in found.outputs.items()}

    def _clear(self) -> None:
        for p in self.parameters:
            p.grad = None

    def _capture(self, key: Hashable, batch: dict[str, Tensor]) -> _Captured:
        inputs = {k: v.clone() for k, v in batch.items()}
        for _ in range(self.warmup):
            self._clear()
            self.compute(key, inputs)
        self._clear()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=torch.cuda.current_stream()):
            outputs = self.compute(key, inputs)
        self.pool = self.pool or graph.pool()
        return _Captured(graph, inputs, outputs, [p.grad for p in self.parameters])
