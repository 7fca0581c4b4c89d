"""A trained molecule model: sizes, batches, sampling.

Molecules of one width, their number of atoms rounded up to even, are sampled together, and each batch is filled up to an
even number, at least four, by repeating its last molecule. So every matrix has an even number of rows, four or more, and
with that the CPU kernels that were tried (MKL, AVX-512) give a molecule the same bits whatever the batch. On GPUs results
agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perrin.bundle import Bundle, load_weights
from perrin.core import (
    SOLVERS,
    Categorical,
    Composite,
    CounterNoise,
    Dense,
    NetworkDenoiser,
    Padded,
    Plan,
    PlanError,
    Solver,
    State,
    plan_steps,
    sample_seeds,
)
from perrin.core.denoiser import Denoiser
from perrin.core.grids import logit_normal, logit_normal_share, power
from perrin.core.guides import classifier_free, evaluations
from perrin.core.replay import Mode
from perrin.errors import PerrinError, check_count
from perrin.modalities.molecule.balance import MOST as MOST_BALANCED
from perrin.modalities.molecule.balance import PREFIX, Balance
from perrin.modalities.molecule.candidates import check_guide, choose_state, load_guide
from perrin.modalities.molecule.fields import decode
from perrin.modalities.molecule.network import MoleculeConfig, build_denoiser
from perrin.modalities.molecule.properties import TABLE, Table
from perrin.modalities.molecule.structure import Molecule
from perrin.modalities.molecule.wants import Wish, intervals, parse_wishes, unconditional
from perrin.run.pool import one_thread

if TYPE_CHECKING:  # it can train, which sampling need not load
    from perrin.modalities.molecule.predictor import Predictor

_QUANTUM, _LEAST = 2, 4
CUTS = ((0.15, 1), (0.08, 2), (0.0, 4))
"""Until which time there are all candidates of a molecule, half of them, a quarter. Properties are decided late: their
network errs by 0.85 of what it does without a look at t = 0.3, by half at 0.2, by a sixth at 0.1; types and bonds are
settled at 0.15."""
MOST = 256
"""Candidates."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to sample; a bundle's `config.json` gives the defaults under `sampling`.

    Arguments:
        steps: network evaluations.
        solver: a name in `perrin.core.SOLVERS`.
        grid: `power`, times `t = u^exponent` for even u; or `logit-normal`, quantiles of a normal `logit t`.
        exponent: of the power grid; above 1 is finer near the data.
        mean, std: of the logit-normal grid.
        start: the first time; below 1 for solvers that need some signal there.
        decode: take the most probable category in the last step instead of drawing one.
        temperature: of types, charges and bonds; see `perrin.core.Categorical`.
        tempered_below: the time from which on it holds; 1 for all.
        self_condition: hand a network that can use it its estimate before.
        want: wishes for a network with conditions: property, lowest and highest value in its own unit (`None` for an open
            end).
        guidance_scale: of classifier-free guidance by the wishes; 1 is off, above 1 exaggerates them.
        candidates: of each molecule with wishes; 1 is off. A property network says on the way which are to go on
            (`perrin.core.guides.winnow`).
        guide: the bundle of that network.
        balance: molecules drawn for each one without wishes, of which one is kept so that all together hold what the data
            hold (`perrin.modalities.molecule.balance`); 1 is off.
    """

    steps: int = 50
    solver: str = "sde-dpmpp-2m"
    grid: str = "power"
    exponent: float = 2.0
    mean: float = -1.4
    std: float = 1.6
    start: float = 1.0
    decode: bool = True
    temperature: float = 1.0
    tempered_below: float = 1.0
    self_condition: bool = True
    want: tuple[tuple[str, float | None, float | None], ...] = ()
    guidance_scale: float = 1.0
    candidates: int = 1
    guide: str = ""
    balance: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "want", tuple((n, a, b) for n, a, b in self.want))  # JSON has lists
        if not 0 <= self.guidance_scale < math.inf:
            raise PerrinError(f"expected a guidance scale of at least 0, given {self.guidance_scale}")
        if not 1 <= self.candidates <= MOST:
            raise PerrinError(f"expected 1 to {MOST} candidates, given {self.candidates}")
        if not 1 <= self.balance <= MOST_BALANCED:
            raise PerrinError(
                f"expected 1 to {MOST_BALANCED} molecules to draw for one, given a balance of {self.balance}"
            )
        if self.steps < 1:
            raise PerrinError(f"expected at least 1 step, given {self.steps}")
        if self.solver not in SOLVERS:
            raise PerrinError(f"expected a solver ({', '.join(SOLVERS)}), given {self.solver!r}")
        if not self.temperature > 0:
            raise PerrinError(f"expected a temperature above 0, given {self.temperature}")
        if self.grid not in ("power", "logit-normal"):
            raise PerrinError(f"expected the grid power or logit-normal, given {self.grid!r}")

    def plan(self, denoiser: NetworkDenoiser, solver: Solver | None = None) -> Plan:
        """The rows, by another solver than the named one if given.

        Raises `PerrinError` where solver, schedule and grid do not go together.
        """
        method = solver or SOLVERS[self.solver]
        times = partial(power, exponent=self.exponent, start=self.start)
        if self.grid == "logit-normal":
            times = partial(logit_normal, mean=self.mean, std=self.std, start=self.start)
        try:
            process = tempered(denoiser.process, self.temperature, self.tempered_below)
            return plan_steps(process, method, self.steps, grid=times, decode=self.decode)
        except PlanError as error:
            raise PerrinError(str(error)) from error

    @property
    def cuts(self) -> list[tuple[float, int]]:
        """Until which time there are how many candidates."""
        return [(t, max(2, self.candidates // part)) for t, part in CUTS]

    def evaluations(self, plan: Plan) -> int:
        """Network evaluations for each molecule."""
        if self.want:
            return evaluations(plan, self.cuts) if self.candidates > 1 else plan.nfe
        return self.balance * plan.nfe

    def share(self, t: float) -> float:
        """The share of the steps from `t = 1` that lie below `t`."""
        if self.grid == "logit-normal":
            return logit_normal_share(t, mean=self.mean, std=self.std)
        return t ** (1 / self.exponent)

    def to_json(self) -> dict[str, Any]:
        """Plain values. What came later is left out while it says nothing, so that older readers know all names."""
        off = {"want": (), "guidance_scale": 1.0, "candidates": 1, "guide": "", "balance": 1}
        idle = [k for k, value in off.items() if getattr(self, k) == value]
        idle += ["balance"] if self.want else ["candidates", "guide"]
        return {k: v for k, v in asdict(self).items() if k not in idle}


@dataclass(frozen=True)
class Unit:
    """Samples of one width that are run together: their numbers in the run, and their numbers of atoms."""

    indices: tuple[int, ...]
    atoms: tuple[int, ...]

    @property
    def width(self) -> int:
        """Padded number of atoms; a function of each sample's own size."""
        return _width(self.atoms[0])


def make_units(samples: Iterable[tuple[int, int]], *, batch: int) -> list[Unit]:
    """Pairs (number in the run, atoms) as units of at most `batch` samples of one width, large ones first."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for number, atoms in samples:
        groups.setdefault(_width(atoms), []).append((number, atoms))
    out = []
    for width in sorted(groups, reverse=True):
        for k in range(0, len(groups[width]), batch):
            members = groups[width][k : k + batch]
            out.append(Unit(tuple(i for i, _ in members), tuple(n for _, n in members)))
    return out


def filled(count: int) -> list[int]:
    """Rows `0 … count − 1`, and the last one repeated up to an even number of at least four; see the module's text."""
    return [*range(count), *[count - 1] * max(-count % _QUANTUM, _LEAST - count)]


class MoleculeModel:
    """A denoiser, what it can express, and how it is sampled.

    Arguments:
        denoiser: in evaluation mode, on its device.
        config: the model's configuration.
        sampling: defaults.
        name: shown in files.
        sha256: of the bundle's weights.
        precision: `32-true`, or `bf16-mixed` for matrix products in bfloat16 (coordinates stay in float32).
        mode: how the network is run: `eager`, `compile` or `graph`; see `perrin.core.replay`.
        table: molecules that sizes are drawn from, given wishes.
        guide: a property network that chooses among candidates, if `SamplingOptions` ask for some.
        balance: weights by which one of several is kept, if `SamplingOptions` ask for several.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        config: MoleculeConfig,
        sampling: SamplingOptions,
        *,
        name: str = "",
        sha256: str = "",
        precision: str = "32-true",
        mode: Mode = "eager",
        table: Table | None = None,
        guide: Predictor | None = None,
        balance: Balance | None = None,
    ) -> None:
        self.denoiser, self.config, self.sampling = denoiser, config, sampling
        self.name, self.sha256 = name, sha256
        self.precision, self.mode, self.table, self.guide = precision, mode, table, guide
        self.balance = balance
        self._conditions: dict[Any, Any] = {}  # kept, because a CUDA graph knows them by identity
        self._guides: dict[float, Denoiser] = {}

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> MoleculeModel:
        """Build the network of a bundle and load its weights.

        Raises:
            PerrinError: the configuration is not a molecule model's, or the weights do not fit it.
        """
        try:
            config = MoleculeConfig.from_json(bundle.config["model"])
            sampling = SamplingOptions(**bundle.config.get("sampling", {}))
            denoiser = build_denoiser(config)
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise PerrinError(
                f"expected a molecule model's configuration in {bundle.path}, given another: {error}"
            ) from error
        weights, apart = split_weights(bundle.weights())
        table = Table.unpack(apart[TABLE]) if TABLE in apart else None
        balance = Balance.unpack(apart) if f"{PREFIX}theta" in apart else None
        load_weights(denoiser, weights, source=str(bundle.path))
        denoiser.eval().requires_grad_(False)
        name, sha256 = bundle.path.name, bundle.sha256
        return cls(
            denoiser.to(device), config, sampling, name=name, sha256=sha256, table=table, balance=balance
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def options(self, **changes: Any) -> SamplingOptions:
        """The defaults with some values changed; `None` leaves a value as it is."""
        return replace(self.sampling, **{k: v for k, v in changes.items() if v is not None})

    def wishes(self, want: Sequence[str]) -> tuple[Wish, ...]:
        """Wishes from texts such as `gap<0.2 Ha`; see `wants`.

        Raises:
            PerrinError: the model has no conditions, or a text is no wish for one of them.
        """
        if want and not self.config.ranges:
            raise unconditional(want, self.name)
        return parse_wishes(want, self.config.ranges)

    def _intervals(self, want: Sequence[tuple[str, float | None, float | None]]) -> Tensor:
        """Wishes of `SamplingOptions` in standard units, `[P, 2]`."""
        return intervals(self.wishes_of(want), self.config.ranges)

    def wishes_of(self, want: Sequence[tuple[str, float | None, float | None]]) -> list[Wish]:
        """Wishes of `SamplingOptions`.

        Raises:
            PerrinError: one is for a property that the model does not know.
        """
        ends = {name: (low, high) for name, low, high in want}
        unknown = sorted(set(ends) - {r.name for r in self.config.ranges})
        if unknown:
            raise PerrinError(f"expected properties that the model knows, given {', '.join(unknown)}")
        return [
            Wish(
                name=r.name,
                unit=r.unit,
                low=-math.inf if low is None else low,
                high=math.inf if high is None else high,
            )
            for r in self.config.ranges
            if r.name in ends
            for low, high in [ends[r.name]]
        ]

    def condition(self, want: Sequence[tuple[str, float | None, float | None]], batch: int) -> Any:
        """What the denoiser is told of wishes, for a batch; the same object for the same wishes."""
        if not want:
            return None
        key = (tuple(want), batch)
        if key not in self._conditions:
            if len(self._conditions) >= 64:
                self._conditions.clear()
            rows = self._intervals(want).repeat(batch, 1, 1).to(self.device)
            self._conditions[key] = {"intervals": rows}
        return self._conditions[key]

    def wished(self, want: Sequence[tuple[str, float | None, float | None]], batch: int) -> Tensor | None:
        """Wishes of `SamplingOptions` in standard units for a batch, `[B, P, 2]`; `None` where there are none."""
        condition = self.condition(want, batch)
        return None if condition is None else condition["intervals"]

    def guided(self, scale: float) -> Denoiser:
        """The denoiser with classifier-free guidance; the same object for the same scale."""
        if scale not in self._guides:
            self._guides[scale] = classifier_free(self.denoiser, scale)
        return self._guides[scale]

    def sizes(
        self,
        seed: int,
        count: int,
        atoms: tuple[int, int] | None = None,
        want: Sequence[tuple[str, float | None, float | None]] = (),
        *,
        first: int = 0,
    ) -> Tensor:
        """Atoms of samples `first … first + count − 1`, `[count]`: drawn from the training data, each by its own seed.

        Arguments:
            atoms: the smallest and largest number allowed.
            want: as in `SamplingOptions`; sizes are then those of molecules of the training data that meet it.
            first: the first sample.

        Raises:
            PerrinError: the training data have no molecule in the range.
        """
        low, high = atoms or (1, self.config.vocabulary.max_atoms)
        counts: Sequence[tuple[int, float]] = self.config.vocabulary.size_counts
        if want and self.table is not None:
            weights = self.table.weights(self._intervals(want))
            total = torch.zeros(int(self.table.sizes.max()) + 1, dtype=torch.float64)
            total.index_add_(0, self.table.sizes, weights)
            counts = [(n, c) for n, c in enumerate(total.tolist()) if c > 1e-12]
        table = [(n, c) for n, c in counts if low <= n <= high]
        if not table:
            known = [n for n, _ in counts]
            meets = " for such wishes" if want else ""
            raise PerrinError(f"expected {min(known)} to {max(known)} atoms{meets}, given {low} to {high}")
        shares = torch.tensor([float(c) for _, c in table], dtype=torch.float64)
        edges = torch.cumsum(shares / shares.sum(), 0)
        noise = CounterNoise(sample_seeds(seed, range(first, first + count)), dtype=torch.float64)
        u = noise.uniform(Dense(count), (1,), field="size", step=0)[:, 0]
        row = torch.bucketize(u, edges, right=True).clamp(max=len(table) - 1)
        return torch.tensor([n for n, _ in table])[row]

    def chances(self, want: Sequence[tuple[str, float | None, float | None]]) -> dict[int, float]:
        """How likely molecules of so many atoms are to meet wishes, by the training data: `p(wishes | n)` up to a factor;
        empty where there are no wishes or no data."""
        if not want or self.table is None:
            return {}
        sizes = self.table.sizes
        total = torch.zeros(int(sizes.max()) + 1, dtype=torch.float64)
        total.index_add_(0, sizes, self.table.weights(self._intervals(want)))
        counts = torch.bincount(sizes, minlength=len(total))
        return {n: float(total[n]) / int(counts[n]) for n in range(len(total)) if counts[n]}

    def units(self, sizes: Tensor, *, batch: int, done: Sequence[int] = (), first: int = 0) -> list[Unit]:
        """Samples not yet done, in batches of one size, large ones first so that workers finish together.

        Arguments:
            sizes: atoms of the samples `first`, `first + 1`, ….
            batch: samples in a batch, at most.
            done: numbers of those to leave out, counted from `first`.
        """
        skip = set(done)
        samples = [(first + i, atoms) for i, atoms in enumerate(sizes.tolist()) if i not in skip]
        return make_units(samples, batch=batch)

    def run_unit(self, unit: Unit, seed: int, options: SamplingOptions) -> list[Molecule]:
        """Sample one unit. Sample i depends on (seed, i) and its number of atoms, on nothing else."""
        state, mask = self.run_state(unit, seed, options)
        names = [f"{self.name}-{seed}-{i}" for i in unit.indices]
        return [m.heavy_first() for m in decode(state, mask, self.config.vocabulary, names)]

    def run_state(
        self, unit: Unit, seed: int, options: SamplingOptions, wishes: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """The same as tensors on the model's device: the state of the samples, and the mask of their atoms, `[b, n]`.

        Arguments:
            wishes: an own wish for each sample, in standard units, `[b, P, 2]`, in place of `options.want`.
        """
        count = len(unit.indices)
        rows = filled(count)
        told = bool(options.want) or wishes is not None
        if not told:
            self.check_balance(options, asked=False)
        own = None if wishes is None else wishes[rows].to(self.device)
        seeds = sample_seeds(seed, torch.tensor(unit.indices)[rows]).to(self.device)
        mask = Padded.from_sizes(torch.tensor(unit.atoms)[rows], unit.width).mask.to(self.device)
        denoiser = self.guided(options.guidance_scale if told else 1.0)

        def setting(size: int) -> tuple[Denoiser, Any]:
            if own is None:
                return denoiser, self.condition(options.want, size * len(mask))
            return denoiser, {"intervals": own.repeat_interleave(size, 0)}

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            state = choose_state(
                self,
                options,
                options.plan(self.denoiser),
                seeds,
                mask,
                setting,
                wishes=self.wished(options.want, len(mask)) if own is None else own,
                balance=self.balance,
                self_condition=options.self_condition and self.config.network.self_condition,
                mode=self.mode,
            )
        return {k: v[:count] for k, v in state.items()}, mask[:count]

    def check_balance(self, options: SamplingOptions, *, asked: bool) -> None:
        """Raise a `PerrinError` if there is to be a balance and the bundle has none, or if one was `asked` for where wishes
        choose."""
        if asked and options.want and options.balance > 1:
            raise PerrinError(
                "expected --balance without --want, given both: with wishes, --candidates chooses; leave one out"
            )
        if options.balance > 1 and not options.want and self.balance is None:
            raise PerrinError(
                f"expected a bundle with a balance to draw {options.balance} molecules for one, given "
                f"{self.name or 'one without'}, which has none: leave out --balance"
            )

    def take_guide(self, options: SamplingOptions) -> None:
        """Load the property network that options name, where there are wishes and none is loaded.

        Raises:
            PerrinError: there is no such network; or there are to be candidates, and none that can choose among them.
        """
        if not options.want:
            return
        if self.guide is None and options.guide:
            self.guide = load_guide(options.guide, device=str(self.device))
        if options.candidates > 1:
            check_guide(self.guide, self.config, [name for name, *_ in options.want])

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        batch: int = 64,
        atoms: tuple[int, int] | None = None,
        want: Sequence[str] = (),
        **options: Any,
    ) -> list[Molecule]:
        """Generate molecules in this process, on one thread of a CPU (`perrin sample` uses all cores).

        Arguments:
            n: how many.
            seed: of the run; molecule i is the same for every `n` and `batch`.
            batch: molecules run together.
            atoms: smallest and largest number of atoms.
            want: wishes such as `gap<0.2 Ha`, of a model with conditions.
            options: changes to `SamplingOptions`, such as `steps=20`.

        Raises:
            PerrinError: `n` below 1, an unknown solver, no such size, a wish that the model does not know.
        """
        out: list[Molecule | None] = [None] * check_count(n, "n")
        check_count(batch, "batch")
        chosen = self.options(**options, want=wanted(self.wishes(want)) or None)
        self.check_balance(chosen, asked=options.get("balance") is not None)
        if chosen.candidates > 1:
            self.take_guide(chosen)
        sizes = self.sizes(seed, n, atoms, chosen.want)
        for unit, molecules in self.iterate(self.units(sizes, batch=batch), seed, chosen):
            for i, molecule in zip(unit.indices, molecules, strict=True):
                out[i] = molecule
        return [m for m in out if m is not None]

    def iterate(
        self, units: Sequence[Unit], seed: int, options: SamplingOptions
    ) -> Iterator[tuple[Unit, list[Molecule]]]:
        """Units with their molecules, one after another."""
        for unit in units:
            with one_thread() if self.device.type == "cpu" else nullcontext():
                molecules = self.run_unit(unit, seed, options)
            yield unit, molecules


def wanted(wishes: Sequence[Wish]) -> tuple[tuple[str, float | None, float | None], ...]:
    """Wishes as `SamplingOptions` holds them."""
    return tuple(
        (w.name, None if math.isinf(w.low) else w.low, None if math.isinf(w.high) else w.high) for w in wishes
    )


def split_weights(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A bundle's tensors: the network's weights, and what else is among them (`Table`, `Balance`)."""
    apart = {k: v for k, v in tensors.items() if k == TABLE or k.startswith(PREFIX)}
    return {k: v for k, v in tensors.items() if k not in apart}, apart


def tempered(process: Composite, temperature: float, below: float) -> Composite:
    """The same process with its categories drawn at a temperature from time `below` on."""
    fields = {
        k: replace(p, temperature=temperature, tempered_below=below) if isinstance(p, Categorical) else p
        for k, p in process.fields.items()
    }
    return replace(process, fields=fields)


def _width(atoms: int) -> int:
    return atoms + atoms % 2


def load_model(reference: str, *, device: str) -> MoleculeModel:
    """A bundle of molecules by name or path.

    Raises:
        PerrinError: there is no such bundle, or it is another modality's.
    """
    from perrin.modalities import find_bundle, load

    model = load(str(find_bundle(reference)), device=device)
    if not isinstance(model, MoleculeModel):
        raise PerrinError(f"expected a bundle of molecules, such as molecule/qm9, given {reference}")
    return model
