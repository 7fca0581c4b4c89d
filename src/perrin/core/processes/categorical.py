"""`Categorical`: a category is kept with probability `α_t`, else drawn anew from the prior `π` (Austin et al. 2021, D3PM).

The symmetric variant (bonds) needs no option: a `Pairs` layout makes symmetric noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from perrin.core.layout import Layout
from perrin.core.noise import Noise
from perrin.core.plan import Jump, Row, Stage
from perrin.core.processes.base import PRIOR_STEP, Process
from perrin.core.schedules import Power, Schedule
from perrin.core.solvers import Solver


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small constant on the device; cached, because each new one would make the host wait for the device."""
    return torch.tensor(values, dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class Categorical(Process):
    """A chain on K categories: `q(x_t | x_0) = α_t [x_t = x_0] + (1 − α_t) π(x_t)`.

    The reverse move from t to s is exact for the denoiser's `p(x_0)`, which is what makes two coupled fields drift by
    no more than 1/T: with likelihood `L(x_0) = q(x_t | x_0)` and `w = p(x_0) / L(x_0)`,

        p(x_s | x_t) ∝ q(x_t | x_s) [α_s w(x_s) + (1 − α_s) π(x_s) Σ w].

    Arguments:
        prior_probabilities: `π`, K numbers. `Categorical.uniform(K)`, `.marginal(counts)` and `.absorbing(K)` make them.
        absorbing_state: the mask's category when the prior is a mask; the denoiser gives it no probability.
        schedule: only `α` is used.
        features: shape of a row, `()` for one category per row; e.g. `(H, W)` for a `Dense` grid.
        temperature: reverse moves use `p(x_0)^{1/T}`; below 1 favours the probable, at the price of variety. Rows are drawn
            independently, so that a few steps make combinations that the denoiser would not; fewer of them at T < 1.
        tempered_below: the temperature holds for moves that start at this time or later on the way to the data; 1 for all.
            What is rare is chosen early, what is wrong is chosen late: a cold end alone loses less variety.
    """

    prior_probabilities: tuple[float, ...]
    schedule: Schedule = field(default_factory=Power)
    absorbing_state: int | None = None
    features: tuple[int, ...] = ()
    temperature: float = 1.0
    tempered_below: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"expected a temperature above 0, given {self.temperature}")
        total = sum(self.prior_probabilities)
        if abs(total - 1) > 1e-6 or min(self.prior_probabilities) < 0:
            raise ValueError(f"expected prior probabilities that sum to 1, given {self.prior_probabilities}")

    @classmethod
    def uniform(
        cls, categories: int, schedule: Schedule | None = None, features: tuple[int, ...] = ()
    ) -> Categorical:
        """Every category equally likely."""
        return cls.marginal((1.0,) * categories, schedule, features)

    @classmethod
    def marginal(
        cls, counts: Sequence[float], schedule: Schedule | None = None, features: tuple[int, ...] = ()
    ) -> Categorical:
        """The prior is the data's frequency of each category (Vignac et al. 2023)."""
        total = float(sum(counts))
        return cls(
            prior_probabilities=tuple(c / total for c in counts),
            schedule=schedule or Power(),
            features=features,
        )

    @classmethod
    def absorbing(
        cls, categories: int, schedule: Schedule | None = None, features: tuple[int, ...] = ()
    ) -> Categorical:
        """A mask, category number `categories`, is the prior; the field then has `categories + 1` values."""
        return cls(
            prior_probabilities=(0.0,) * categories + (1.0,),
            schedule=schedule or Power(),
            absorbing_state=categories,
            features=features,
        )

    @property
    def categories(self) -> int:
        """Number of values the noised field can take, the mask included."""
        return len(self.prior_probabilities)

    def _prior_tensor(self, like: Tensor) -> Tensor:
        return _constant(self.prior_probabilities, like.dtype, like.device)

    def corrupt(self, x_0: Tensor, t: Tensor, noise: Noise, layout: Layout, *, name: str) -> Tensor:
        return self._forward(x_0, self.schedule.alpha(t), noise, layout, name, PRIOR_STEP)

    def diffuse(
        self, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, layout: Layout, *, name: str, step: int
    ) -> Tensor:
        return self._forward(x_t, self.schedule.alpha(s) / self.schedule.alpha(t), noise, layout, name, step)

    def _forward(
        self, x: Tensor, kept: Tensor | float, noise: Noise, layout: Layout, name: str, step: int
    ) -> Tensor:
        """Each category stays with probability `kept`, else it is drawn from the prior."""
        u = noise.uniform(layout, (*self.features, 2), field=name, step=step)
        bound = layout.expand(kept, x) if isinstance(kept, Tensor) else kept
        return layout.restrict(torch.where(u[..., 1] < bound, x, self._draw_prior(u[..., 0])))

    def prior(self, noise: Noise, layout: Layout, *, name: str, time: float = 1.0) -> Tensor:
        u = noise.uniform(layout, (*self.features, 2), field=name, step=PRIOR_STEP)
        return layout.restrict(self._draw_prior(u[..., 0]))

    def _draw_prior(self, u: Tensor) -> Tensor:
        edges = tuple(accumulate(self.prior_probabilities))
        return torch.bucketize(u * edges[-1], _constant(edges[:-1], u.dtype, u.device), right=True)

    def rows(self, solver: Solver, stages: Sequence[Stage], *, decode: bool) -> list[Row]:
        out: list[Row] = []
        alphas = [
            [
                float(self.schedule.alpha(torch.tensor(min(t, 1.0), dtype=torch.float64)))
                for t in (s.start, s.stop)
            ]
            for s in stages
        ]
        last = max((k for k, s in enumerate(stages) if s.stop < s.start), default=-1)
        for k, (start, stop) in enumerate(alphas):  # churn beyond t = 1 moves nothing: all is noise already
            cold = min(stages[k].start, 1.0) <= self.tempered_below
            row = Jump(start, stop, decode and k == last, self.temperature if cold else 1.0)
            out.append(row if stop != start else None)
        return out

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
        assert isinstance(row, Jump)
        if row.alpha_stop < row.alpha_start:  # churn: forward, keep with probability α_s / α_t
            return self._forward(x, row.alpha_stop / row.alpha_start, noise, layout, name, step)
        p = self.posterior(x, estimates[0], row)
        if row.decode:
            return layout.restrict(p.argmax(dim=-1))
        u = noise.uniform(layout, self.features, field=name, step=step)
        cumulative = torch.cumsum(p, dim=-1)
        drawn = (u[..., None] * cumulative[..., -1:] >= cumulative[..., :-1]).sum(dim=-1)
        return layout.restrict(drawn)

    def posterior(self, x_t: Tensor, logits: Tensor, row: Jump) -> Tensor:
        """Unnormalised `p(x_s | x_t)`, `[..., K]`, for the denoiser's logits over clean categories."""
        # at least float32: rounded to bfloat16, one uniform number in 512 would be 1
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        p0 = torch.softmax(wide if row.temperature == 1 else wide / row.temperature, dim=-1)
        prior = self._prior_tensor(p0)
        if p0.shape[-1] < self.categories:  # the mask, which is never clean
            p0 = torch.nn.functional.pad(p0, (0, 1))
        here = torch.nn.functional.one_hot(x_t, self.categories).to(p0.dtype)
        prior_here = prior[x_t].unsqueeze(-1)
        likelihood = row.alpha_start * here + (1 - row.alpha_start) * prior_here
        w = torch.where(likelihood > 0, p0 / likelihood.clamp(min=1e-30), 0.0)
        beta = row.alpha_start / row.alpha_stop
        move = beta * here + (1 - beta) * prior_here
        p = move * (row.alpha_stop * w + (1 - row.alpha_stop) * prior * w.sum(-1, keepdim=True))
        if self.absorbing_state is not None:  # what has left the mask stays
            p = torch.where((x_t != self.absorbing_state).unsqueeze(-1), here, p)
        return p

    def target(self, x_0: Tensor, x_t: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """Logits that are certain of `x_0`."""
        clean = self.categories - (self.absorbing_state is not None)
        return torch.log(torch.nn.functional.one_hot(x_0, clean).to(t.dtype))
