"""Assimilation in cycles: an ensemble of pieces of trajectory, forecast by the diffusion prior of such pieces.

A member is a piece X = (x_{k−T+1} … x_k), of as many states as the prior p(x_1 … x_T) has. A cycle moves it on by a step:

**Forecast.** x_{k+1} is drawn from p(x_T | x_1 … x_{T−1}) by split Gibbs sampling (`perrin.core.guides.split`) with a
likelihood that knows all states but the last. In turns

    z = (x_{k−T+2} … x_k, x + ρ ξ)   and   x, the last state of what the denoiser makes of z at the noise level ρ,

with ρ falling, from an extrapolation of the last three states. Near the data a denoiser brings a piece back to the
trajectories that it has learned, with an error that falls with ρ: where the next state follows from the last ones, three
evaluations find it. No equation of the model is used, and no network but the prior's.

**Analysis.** Observations y = h(x_{k+1}) + ε n change all states of the pieces, as in an ensemble Kalman smoother, so that
the pieces stay trajectories, by a local transform (Hunt et al. 2007). With X̄ the mean of M members, X′ the departures from
it, S = (h(X) − mean h) / (ε √(M − 1)), `[M, m]`, and d = (y − mean h) / ε, for each site

    X̄ ← X̄ + X′ᵀ S (I + SᵀS)⁻¹ d / √(M − 1),      X′ ← (I + S Sᵀ)^{−½} X′,

the columns of S and the elements of d times the root of the taper between the site and what is seen. For a normal p and a
linear h, without a taper, this is the Kalman filter as M grows. Each observation enters once.

**Start.** The first pieces are draws of `windows.WindowSmoother`, whose members compete, from the first observations alone.
The misfit of forecasts,

    q = mean of (y − mean h)² / (ε² + var h)   over the sites and the last few times with observations,

is 1 as long as the ensemble is as far from the truth as its spread says. Where it is not, as where h folds and all members
sit in a wrong branch, no ensemble of departures leads back: the pieces are then found anew, from the last observations
alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perrin.core import Composite, CounterNoise, Denoiser, Dense, Noise, sample_seeds
from perrin.core.guides.split import Likelihood, split_gibbs
from perrin.modalities.weather.windows import FIELD, Sight, WindowSmoother


@dataclass(frozen=True, eq=False)
class Continued(Likelihood):
    """All states of a piece but the last are known.

    Arguments:
        past: they, `[B, T − 1, n]`.
    """

    past: Tensor

    def draw(self, x: Tensor, rho: float, noise: Noise, *, field: str, step: int) -> Tensor:
        xi = noise.normal(Dense(len(x), x.device), (1, x.shape[2]), field=field, step=step)
        return torch.cat([self.past, x[:, -1:] + rho * xi], 1)

    def log_evidence(self, x: Tensor, rho: float) -> Tensor:
        return -0.5 * ((x[:, :-1] - self.past) / rho).square().flatten(1).double().sum(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Restart:
    """When and from what pieces are found anew.

    Arguments:
        smoother: its pieces are of L ≥ T states; its members are kept at its last level alone (`keep=1`).
        times: with observations, over which the misfit is averaged.
        misfit: q above which an ensemble is lost; with n sites q has a standard deviation of √(2 / (n · times)).
    """

    smoother: WindowSmoother
    times: int = 8
    misfit: float = 1.5

    @property
    def length(self) -> int:
        """L."""
        return int(self.smoother.process.fields[FIELD].features[0])  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True, eq=False)
class Analyses:
    """What `PieceFilter.run` returns, of G ensembles side by side, in the states' units.

    Arguments:
        mean, std: of the ensembles at each time, from observations up to it, `[times, G, n]`; NaN before the first pieces.
        pieces: at the last time, `[G, M, T, n]`.
        restarts: how often each ensemble was found anew, `[G]`.
    """

    mean: Tensor
    std: Tensor
    pieces: Tensor
    restarts: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PieceFilter:
    """Cycles of forecasts and analyses; see the module's text.

    Arguments:
        denoiser, process: the prior of pieces `[T, n]`, T ≥ 4, of `(x − shift) / scale`.
        taper: between sites and observations, `[n, m]`; ones let every observation act on every site.
        shift, scale: of the states.
        rhos: the blur of the new state, falling, in units of `scale`: from the error of the extrapolation to well below
            the error of the analyses.
        evaluations: of the denoiser at each blur: 1 gives the mean of what is left open, more draw it.
        inflation: of the departures after an analysis.
        restart: how pieces are found from observations alone; without it `run` must be given the first ones.
    """

    denoiser: Denoiser
    process: Composite
    taper: Tensor
    shift: float = 0.0
    scale: float = 1.0
    rhos: Sequence[float] = (0.1, 0.05, 0.02)
    evaluations: int = 1
    inflation: float = 1.0
    restart: Restart | None = None

    def __post_init__(self) -> None:
        if self.length < 4:
            raise ValueError(f"expected pieces of 4 states at least, given {self.length}")
        if self.restart and self.restart.length < self.length:
            raise ValueError(
                f"expected a smoother of pieces of {self.length} states at least, given {self.restart.length}"
            )

    @property
    def length(self) -> int:
        """T."""
        return int(self.process.fields[FIELD].features[0])  # type: ignore[attr-defined]

    @torch.no_grad()
    def run(
        self,
        observations: Sequence[Tensor | None],
        sight: Sight,
        *,
        pieces: Tensor | None = None,
        seed: int = 0,
    ) -> Analyses:
        """Analyses at every time; where nothing is seen they are forecasts.

        Arguments:
            observations: of G truths, `[G, m]` for each time, or `None`.
            sight: what they are of; for a restart h acts site by site, and m = n.
            pieces: that end a step before the first observations, `[G, M, T, n]`, in the states' units. Without them those
                of the first L times are found by `restart`.
            seed: of the members.

        Raises:
            ValueError: neither pieces nor a restart, or fewer times than the first pieces need.
        """
        restart, x = self.restart, None if pieces is None else (pieces - self.shift) / self.scale
        if x is None and (restart is None or len(observations) < restart.length):
            raise ValueError(
                f"expected pieces, or a restart and observations at {restart.length if restart else 'all its'} times, "
                f"given observations at {len(observations)} times and no pieces"
            )
        means: list[Tensor | None] = []
        stds: list[Tensor | None] = []
        misfits: deque[Tensor] = deque(maxlen=restart.times if restart else 1)
        count = 0 if x is None else len(x)
        restarts, ages = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        for now, y in enumerate(observations):
            if x is None:
                assert restart is not None
                if now + 1 < restart.length:
                    means.append(None)
                    stds.append(None)
                    continue
                x = self._found(observations, now, None, sight, seed=seed)
                restarts, ages = (torch.zeros(len(x), dtype=torch.long) for _ in range(2))
            else:
                x = self.forecast(x, seed=seed * 1_000_003 + now)
                if y is not None:
                    misfits.append(self.misfit(x, y, sight))
                    ages += 1
                    x = self.analyse(x, y, sight)
                if y is not None and restart and len(misfits) == restart.times and now + 1 >= restart.length:
                    q = torch.stack(list(misfits)).mean(0)
                    lost = ((q > restart.misfit) & (ages >= restart.times)).nonzero().flatten()
                    if len(lost):
                        x[lost] = self._found(observations, now, lost, sight, seed=seed + 7919 * (now + 1))
                        restarts[lost] += 1
                        ages[lost] = 0
            last = x[:, :, -1] * self.scale + self.shift
            means.append(last.mean(1))
            stds.append(last.std(1))
        assert x is not None
        nothing = torch.full_like(x[:, 0, -1], torch.nan)
        return Analyses(
            mean=torch.stack([nothing if v is None else v for v in means]),
            std=torch.stack([nothing if v is None else v for v in stds]),
            pieces=x * self.scale + self.shift,
            restarts=restarts,
        )

    def forecast(self, pieces: Tensor, *, seed: int) -> Tensor:
        """The pieces a step later, `[G, M, T, n]`, of `(x − shift) / scale`."""
        x = pieces.flatten(0, 1)
        extrapolated = 3 * x[:, -1:] - 3 * x[:, -2:-1] + x[:, -3:-2]
        *_, found = split_gibbs(
            self.denoiser,
            self.process,
            Continued(x[:, 1:]),
            CounterNoise(sample_seeds(seed, range(len(x))), dtype=x.dtype),
            len(x),
            rhos=self.rhos,
            evaluations=self.evaluations,
            start=torch.cat([x[:, 1:], extrapolated], 1),
        )
        return torch.cat([x[:, 1:], found.x[:, -1:]], 1).reshape(pieces.shape)

    def _seen(self, pieces: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
        """h of the last states in units of its error, float64: the mean, `[G, 1, m]`, and departures from it."""
        seen = sight.h(pieces[:, :, -1].double() * self.scale + self.shift) / sight.error
        mean = seen.mean(1, keepdim=True)
        return mean, seen - mean

    def misfit(self, pieces: Tensor, y: Tensor, sight: Sight) -> Tensor:
        """q of the forecasts at one time, `[G]`."""
        mean, away = self._seen(pieces, sight)
        variance = away.square().sum(1) / (pieces.shape[1] - 1)
        return ((y / sight.error - mean[:, 0]).square() / (1 + variance)).mean(1)

    def analyse(self, pieces: Tensor, y: Tensor, sight: Sight) -> Tensor:
        """Pieces that have seen the observations of their last states, of `(x − shift) / scale`.

        Arguments:
            pieces: `[G, M, T, n]`.
            y: `[G, m]`.
            sight: what they are of.
        """
        mean, S = self._seen(pieces, sight)
        S = S / (pieces.shape[1] - 1) ** 0.5
        root = self.taper.double().sqrt()  # [n, m]
        local = root[:, :, None] * (S.transpose(1, 2) @ S)[:, None] * root[:, None]
        values, V = torch.linalg.eigh(local)  # of SᵀS at each site, [G, n, m], [G, n, m, m]
        values = values.clamp(min=0)[..., None]
        middle = pieces.mean(1, keepdim=True)
        away = (pieces - middle).double()
        d = root * (y / sight.error - mean[:, 0])[:, None]
        across = V.transpose(2, 3) @ (root[:, :, None] * torch.einsum("bam,batn->bnmt", S, away))  # SᵀX′
        gain = V.transpose(2, 3) @ d[..., None] / ((1 + values) * (pieces.shape[1] - 1) ** 0.5)
        rise = (across * gain).sum(2)  # [G, n, T]
        # (I + S Sᵀ)^−½ = I + S V f(Λ) Vᵀ Sᵀ with f(λ) = ((1 + λ)^−½ − 1) / λ
        f = -1 / (torch.sqrt(1 + values) * (1 + torch.sqrt(1 + values)))
        away = away + torch.einsum("bam,bnmt->batn", S, root[:, :, None] * (V @ (f * across)))
        return (middle + rise.transpose(1, 2)[:, None] + self.inflation * away).to(pieces)

    def _found(
        self,
        observations: Sequence[Tensor | None],
        now: int,
        which: Tensor | None,
        sight: Sight,
        *,
        seed: int,
    ) -> Tensor:
        """Pieces that end at `now` from the last L times' observations alone, of `(x − shift) / scale`."""
        assert self.restart is not None
        first = now + 1 - self.restart.length
        values = [observations[k] for k in range(first, now + 1)]
        at = tuple(k for k, v in enumerate(values) if v is not None)
        y = torch.stack([v for v in values if v is not None], 1)
        x = self.restart.smoother.run(y if which is None else y[which], at, sight, seed=seed)
        return (x[:, :, -self.length :] - self.shift) / self.scale
