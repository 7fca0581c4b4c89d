"""Faster denoisers behind one option: compiled, or replayed as a CUDA graph.

The rows of a plan are two or three kernels for each field; the network is hundreds. So it is the denoiser that is compiled
or captured, and the loop stays as it is.

A graph is captured once for each signature (names, shapes, dtypes of state and time; kinds and shapes of the layouts;
identity of the condition) and replayed with the inputs, masks included, copied into its own tensors. Outputs are copied out,
because multistep rows look at old estimates. A guide that differentiates through its denoiser is captured whole; where a
graph's own input needs a gradient, which a replay cannot give, the denoiser runs as it is.
Asked for on a CPU, where there are no graphs, the denoiser runs as it is: same bits, same calls.

`compile` compiles only the repeated block of a network that offers `compile_blocks()`, which takes seconds where the whole
takes minutes, and replays the network as a graph. The blocks stay compiled, also for who calls the network himself.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from perrin.core.denoiser import Denoiser, passes
from perrin.core.layout import Layout, Layouts, Padded, Pairs
from perrin.core.processes import State

Mode = Literal["eager", "compile", "graph"]

_WARM_UP = 3
_KEPT = 8
_made: dict[tuple[int, str], tuple[Denoiser, Denoiser]] = {}
"""The newest few accelerated denoisers, each with the one that it was made from, whose identity is thereby taken."""


def accelerated(denoiser: Denoiser, mode: Mode) -> Denoiser:
    """The denoiser for `mode`; what was compiled or captured for it before is used again."""
    if mode == "eager" or isinstance(denoiser, GraphedDenoiser):
        return denoiser
    if mode not in get_args(Mode):
        raise ValueError(f"expected mode {', '.join(map(repr, get_args(Mode)))}, given {mode!r}")
    key = (id(denoiser), mode)
    if key not in _made:
        if len(_made) >= _KEPT:
            _made.pop(next(iter(_made)))
        _made[key] = (denoiser, _compiled(denoiser) if mode == "compile" else GraphedDenoiser(denoiser))
    return _made[key][1]


def _compiled(denoiser: Denoiser) -> Denoiser:
    """Its networks' repeated blocks compiled, where they can be, and the whole replayed; else compiled as one."""
    inner: Any = denoiser
    while not isinstance(inner, nn.Module) and hasattr(inner, "denoiser"):  # out of its guides
        inner = inner.denoiser
    modules = inner.modules() if isinstance(inner, nn.Module) else ()
    if not (trunks := [m for m in modules if hasattr(m, "compile_blocks")]):
        return torch.compile(denoiser, dynamic=False)
    for trunk in trunks:
        trunk.compile_blocks()  # type: ignore[operator]
    return GraphedDenoiser(denoiser)


class _Capture:
    """One captured call: static inputs, the graph, its outputs."""

    def __init__(
        self,
        denoiser: Denoiser,
        x: State,
        t: Tensor,
        previous: State | None,
        condition: Any,
        layouts: Layouts,
    ) -> None:
        self.x = {k: v.clone() for k, v in x.items()}
        self.t = t.clone()
        self.previous = None if previous is None else {k: v.clone() for k, v in previous.items()}
        self.masks = {k: m.clone() for k, m in _masks(layouts).items()}
        self.held = condition, layouts  # so that the identities in the signature stay taken

        def call() -> State:
            # layouts made anew, because they remember what they compute from their mask
            fresh = {
                k: type(v)(self.masks[k]) if isinstance(v, Padded | Pairs) else v for k, v in layouts.items()
            }
            return denoiser(self.x, self.t, previous=self.previous, condition=condition, layouts=fresh)

        # autocast keeps cast weights only as long as its block lasts, and the graph would go on reading them
        kind, on = t.device.type, torch.is_autocast_enabled(t.device.type)
        cast = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=on, cache_enabled=False)
        with torch.no_grad(), torch.cuda.device(t.device), cast:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(
                stream
            ):  # warm-up off the main stream: workspaces and autotuning happen here
                for _ in range(_WARM_UP):
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = call()

    def replay(self, x: State, t: Tensor, previous: State | None, layouts: Layouts) -> State:
        for k, v in self.x.items():
            v.copy_(x[k])
        for k, m in _masks(layouts).items():
            self.masks[k].copy_(m)
        self.t.copy_(t)
        if self.previous is not None and previous is not None:
            for k, v in self.previous.items():
                v.copy_(previous[k])
        self.graph.replay()
        return {k: v.clone() for k, v in self.out.items()}


class GraphedDenoiser:
    """A denoiser that replays CUDA graphs of another one.

    The other denoiser must not make the host wait (`.item()`, `nonzero()`), must not draw random numbers and must not keep
    state between calls. A condition is read where it lies: change its tensors in place, or hand over another one, which
    is captured anew. The newest few captures are kept.

    Arguments:
        denoiser: what is captured.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self._captures: dict[Any, _Capture] = {}

    @property
    def passes(self) -> int:
        """Those of the denoiser."""
        return passes(self.denoiser)

    def __call__(
        self, x: State, t: Tensor, *, condition: Any = None, layouts: Layouts, previous: State | None = None
    ) -> State:
        if t.device.type != "cuda" or (torch.is_grad_enabled() and any(v.requires_grad for v in x.values())):
            return self.denoiser(x, t, condition=condition, layouts=layouts, previous=previous)
        signature = (
            _shapes(x),
            tuple(t.shape),
            t.dtype,
            None if previous is None else _shapes(previous),
            id(condition),
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
            tuple((k, _kind(v)) for k, v in layouts.items()),
        )
        capture = self._captures.get(signature)
        if capture is None:
            if len(self._captures) >= _KEPT:
                self._captures.pop(next(iter(self._captures)))
            capture = self._captures[signature] = _Capture(self.denoiser, x, t, previous, condition, layouts)
        return capture.replay(x, t, previous, layouts)


def _masks(layouts: Layouts) -> dict[str, Tensor]:
    return {k: v.mask for k, v in layouts.items() if isinstance(v, Padded | Pairs)}


def _kind(layout: Layout) -> Any:
    """Masked layouts by the shape of their mask, dense ones by value, others by identity."""
    return (type(layout), tuple(layout.mask.shape)) if isinstance(layout, Padded | Pairs) else layout


def _shapes(state: State) -> tuple[Any, ...]:
    return tuple((k, tuple(v.shape), v.dtype, v.device) for k, v in state.items())
