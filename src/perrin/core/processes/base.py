"""What every process offers: corrupt a field, draw its prior, write rows for a plan, run one row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from perrin.core.layout import Layout
from perrin.core.noise import Noise
from perrin.core.plan import Row, Stage
from perrin.core.schedules import Schedule
from perrin.core.solvers import Solver

State = dict[str, Tensor]
"""Fields by name."""

PRIOR_STEP = 0
"""The noise step of the prior; row k of a plan uses step k + 1."""


class Process(ABC):
    """The corruption of one field and its reverse moves."""

    schedule: Schedule

    @abstractmethod
    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise, layout: Layout, *, name: str) -> Tensor:
        """`x_t` for clean data; `t` is `[B]`."""

    def diffuse(
        self, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, layout: Layout, *, name: str, step: int
    ) -> Tensor:
        """`x_s` given `x_t`, a draw of `q(x_s | x_t)`, for times `t ≤ s`, each `[B]`; `step` numbers the noise.

        Raises:
            NotImplementedError: the process has no such move.
        """
        raise NotImplementedError(f"expected a process with a forward move, given {type(self).__name__}")

    @abstractmethod
    def prior(self, noise: Noise, layout: Layout, *, name: str, time: float = 1.0) -> Tensor:
        """A draw at `time`, the first of a plan, as if no signal were left there."""

    @abstractmethod
    def rows(self, solver: Solver, stages: Sequence[Stage], *, decode: bool) -> list[Row]:
        """This field's row for each stage of a plan."""

    @abstractmethod
    def step(
        self,
        x: Tensor,
        estimates: Sequence[Tensor],
        row: Row,
        noise: Noise,
        layout: Layout,
        *,
        name: str,
        step: int,
    ) -> Tensor:
        """Run one row, which is not `None`. `estimates` are the denoiser's, newest first."""

    def takes_order(self, order: int) -> bool:
        """Whether rows of this order mean anything for the process."""
        return order == 1

    def project(self, x: Tensor, layout: Layout) -> Tensor:
        """The nearest field of the process's space: zero padding, and what else the space asks."""
        return layout.restrict(x)

    def target(self, x_0: Tensor, x_t: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """The estimate of a denoiser that knows `x_0`, at `x_t` and time `t` `[B]`.

        Its mean given `x_t` is what a denoiser must learn: the clean data themselves, unless a process says otherwise.
        """
        return x_0
