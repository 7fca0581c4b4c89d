"""Editing: sample what is around a kept part, which is given (`perrin.core.guides.Shown`) and so arrives exactly.

Rows of a sample are the kept atoms, the new heavy atoms, the new hydrogens. The denoiser is told

- of the positions: the shape of the kept part. The centroid of the kept part in the frame of zero centre of mass is the
  sampler's to find; the result is moved so that it lies on the input's;
- of the types: those of the kept atoms, and that new rows are heavy or hydrogen;
- of the charges: those of the kept atoms, and none on new hydrogens;
- of the bonds: all between kept atoms, those that are none, and none of kept atoms beyond their free valence (`kept`).

At the end the kept atoms' coordinates are replaced by the input's own digits. A network that was trained with parts given
(`parts`) is handed the kept part as what it knows; of new hydrogens it knows that they are. For any other one, being told
is not being trained for it: what is drawn around the kept part often does not fit, and each interval is taken several
times (RePaint's resampling, `Travel`), unless told otherwise.

With wishes, several candidates of each draw are started, all told the same kept part, and one is left (`candidates`).

A draw that is invalid, disconnected or of wrong valence is rejected, and drawn again: the first time from its own state at
time `repair`, by which small faults mend, then from noise, with another size, and so on in turns. Draw `r` at sample `i` is
a function of the run's seed, `i` and `r`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from perrin.core import CounterNoise, Dense, Padded, Plan, TimeTravel, sample_seeds
from perrin.core.guides import Given, Shown, classifier_free
from perrin.core.solvers import SOLVERS
from perrin.errors import PerrinError
from perrin.modalities.molecule.candidates import choose_state
from perrin.modalities.molecule.fields import (
    BOND_ORDERS,
    BONDS,
    CHARGES,
    POSITIONS,
    TYPES,
    Vocabulary,
    decode,
    encode,
    unsupported,
)
from perrin.modalities.molecule.kept import Kept, addition_table
from perrin.modalities.molecule.metrics.bonds import bonds as judge
from perrin.modalities.molecule.model import MoleculeModel, SamplingOptions, Unit, filled, make_units
from perrin.modalities.molecule.structure import Molecule

EVALUATIONS = 100
"""Of a draw from noise, unless told otherwise, by a model that was not trained with parts; others have their own default."""

ATTEMPT = 1 << 32
"""Attempt r at sample i has the number `i + r · ATTEMPT` within the run."""


def edit_options(model: MoleculeModel, options: SamplingOptions, steps: int | None) -> SamplingOptions:
    """`options` with the number of evaluations of an edit or a conformer, where none was asked for."""
    return options if steps or model.config.network.parts else replace(options, steps=EVALUATIONS)


@dataclass(frozen=True, kw_only=True)
class Travel:
    """How an edit is drawn.

    Arguments:
        repeats: how often each interval is taken in a draw from noise.
        length: intervals to go back at a time.
        repair: the time from which a rejected draw is drawn again; 0 for never.
        repair_repeats: as `repeats`, in a repair.
    """

    repeats: int = 4
    length: int = 1
    repair: float = 0.5
    repair_repeats: int = 2

    @classmethod
    def of(cls, model: MoleculeModel) -> Travel:
        """The default for a model: once through for one that was trained with parts."""
        return cls(repeats=1, repair_repeats=1) if model.config.network.parts else cls()

    def plan(self, model: MoleculeModel, options: SamplingOptions, *, repair: bool = False) -> Plan:
        """The rows of a draw from noise, or of a repair; `options.steps` evaluations in a draw from noise."""
        repeats = self.repair_repeats if repair else self.repeats
        intervals = -(-options.steps // self.repeats)
        if repair:  # as dense as the whole way
            options = replace(options, start=self.repair)
            intervals = math.ceil(intervals * options.share(self.repair))
        if repeats == 1:
            return replace(options, steps=intervals).plan(model.denoiser)
        solver = TimeTravel(solver=SOLVERS[options.solver], length=self.length, repeats=repeats)
        steps = intervals * repeats if repair else options.steps
        return replace(options, steps=steps).plan(model.denoiser, solver)


class Editor:
    """Draws molecules around one kept part.

    Arguments:
        model: any molecule model; it need not have been trained for this.
        kept: what is kept.
        added: smallest and largest number of new heavy atoms; by default as `kept.addition_table` says.
        travel: resampling.
        want: wishes, as in `SamplingOptions`; sizes at which training molecules meet them are then drawn more often:
            `p(addition | wishes) ∝ p(addition) p(wishes | atoms)`.

    Raises:
        PerrinError: the model cannot express the kept part, or nothing of that size.
    """

    def __init__(
        self,
        model: MoleculeModel,
        kept: Kept,
        *,
        added: tuple[int, int] | None = None,
        travel: Travel | None = None,
        want: Sequence[tuple[str, float | None, float | None]] = (),
    ) -> None:
        self.model, self.kept, self.travel = model, kept, travel or Travel.of(model)
        vocabulary = model.config.vocabulary
        if reason := unsupported(kept.molecule, vocabulary):
            raise PerrinError(reason)
        if 1 not in vocabulary.elements:
            raise PerrinError(
                "expected a model with hydrogens, given one without: train with explicit hydrogens"
            )
        self.table = addition_table(kept, vocabulary, added)
        chances = model.chances(want)
        weighed = {
            (a, h): p * chances.get(len(kept.molecule) + a + h, 0.0) for (a, h), p in self.table.items()
        }
        if (total := sum(weighed.values())) > 0:  # else no training molecule of such a size helps to choose
            self.table = {pair: p / total for pair, p in weighed.items() if p > 0}

    def additions(self, numbers: Sequence[int], seed: int) -> list[tuple[int, int]]:
        """New heavy atoms and new hydrogens of each draw, each by its own seed."""
        pairs = list(self.table)
        edges = torch.cumsum(torch.tensor([self.table[p] for p in pairs], dtype=torch.float64), 0)
        own = [i - ATTEMPT if self.is_repair(i) else i for i in numbers]  # a repair keeps the size
        noise = CounterNoise(sample_seeds(seed, torch.tensor(own)), dtype=torch.float64)
        u = noise.uniform(Dense(len(numbers)), (1,), field="addition", step=0)[:, 0]
        row = torch.bucketize(u, edges, right=True).clamp(max=len(pairs) - 1)
        return [pairs[k] for k in row.tolist()]

    def units(self, numbers: Sequence[int], seed: int, *, batch: int) -> list[Unit]:
        """Draws of one width together, large ones first."""
        if not numbers:
            return []
        base = len(self.kept.molecule)
        added = zip(numbers, self.additions(numbers, seed), strict=True)
        return make_units([(number, base + a + h) for number, (a, h) in added], batch=batch)

    def plan(self, options: SamplingOptions, *, repair: bool = False) -> Plan:
        """The rows of a draw from noise, or of a repair."""
        return self.travel.plan(self.model, options, repair=repair)

    def is_repair(self, number: int) -> bool:
        """Whether a draw starts from the one before it: every second at each sample."""
        return bool(self.travel.repair) and number // ATTEMPT % 2 == 1

    def run_unit(
        self, unit: Unit, seed: int, options: SamplingOptions, before: Sequence[Molecule] | None = None
    ) -> list[Molecule]:
        """Draw one unit: the kept atoms come first, with the input's coordinates; nothing is checked yet.

        Arguments:
            before: the rejected draws that a unit of repairs starts from.
        """
        jobs = [Job(self.kept, *pair) for pair in self.additions(unit.indices, seed)]
        plan = self.plan(options, repair=before is not None)
        return draw(self.model, jobs, unit, seed, plan, before, options)

    def fault(self, molecule: Molecule) -> str:
        """Why a draw is rejected, or an empty string."""
        return fault(self.kept, molecule)


@dataclass(frozen=True)
class Job:
    """One draw: what is kept, and how many heavy atoms and hydrogens are added."""

    kept: Kept
    heavy: int
    light: int

    def __len__(self) -> int:
        return len(self.kept.molecule) + self.heavy + self.light


def draw(
    model: MoleculeModel,
    jobs: Sequence[Job],
    unit: Unit,
    seed: int,
    plan: Plan,
    before: Sequence[Molecule] | None = None,
    options: SamplingOptions | None = None,
) -> list[Molecule]:
    """Draws of one width, of any kept parts: the kept atoms come first, with the input's coordinates; nothing is checked."""
    count, device = len(jobs), model.device
    rows = filled(count)
    options = options or model.sampling
    some = [jobs[i] for i in rows]
    mask = Padded.from_sizes(torch.tensor([len(job) for job in some]), unit.width).mask.to(device)
    x_0 = None
    if before is not None:
        x_0, _ = encode([before[i] for i in rows], model.config.vocabulary, width=unit.width)
        x_0 = {name: x.to(device) for name, x in x_0.items()}
    state = choose_state(
        model,
        options,
        plan,
        sample_seeds(seed, torch.tensor(unit.indices)[rows]).to(device),
        mask,
        lambda size: given(model, some, unit.width, options, size)[:2],
        wishes=model.wished(options.want, len(rows)),
        x_0=x_0,
        self_condition=model.config.network.self_condition,
    )
    state = {name: x[:count] for name, x in state.items()}
    found = decode(state, mask[:count], model.config.vocabulary)
    return [_placed(job.kept, m) for job, m in zip(jobs, found, strict=True)]


def given(
    model: MoleculeModel, jobs: Sequence[Job], width: int, options: SamplingOptions, candidates: int = 1
) -> tuple[Given, Any, Tensor]:
    """The guided denoiser for some draws, its condition, and the mask of their atoms `[B, N]`, on the model's device.

    Arguments:
        candidates: of each draw, one after the other.
    """
    vocabulary, device = model.config.vocabulary, model.device
    made: dict[tuple[int, int, int], dict[str, Tensor]] = {}
    for job in jobs:
        if (key := (id(job.kept), job.heavy, job.light)) not in made:
            made[key] = allowed(job.kept, job.heavy, job.light, vocabulary, width=width)
    jobs = [job for job in jobs for _ in range(candidates)]
    mask = Padded.from_sizes(torch.tensor([len(job) for job in jobs]), width).mask
    known, held = torch.zeros(len(jobs), width, 3), torch.zeros_like(mask)
    for b, job in enumerate(jobs):
        k, own = len(job.kept.molecule), job.kept.molecule.positions
        known[b, :k] = torch.from_numpy((own - own.mean(axis=0)) / vocabulary.position_scale)
        held[b, :k] = True
    each = [made[id(job.kept), job.heavy, job.light] for job in jobs]
    allowed_ = {name: torch.stack([x[name] for x in each]).to(device) for name in (TYPES, CHARGES, BONDS)}
    known, held = known.to(device), held.to(device)
    parts: dict[str, Any] = {}
    if model.config.network.parts:
        sure = {name: (x.sum(-1) == 1).to(device) for name, x in allowed_.items()}
        parts = {
            "known": {POSITIONS: known} | {name: x.int().argmax(-1) for name, x in allowed_.items()},
            "typed": sure[TYPES] & sure[CHARGES] & mask.to(device),
            "bonded": held,
            "placed": held,
        }
    wishes = model.condition(options.want, len(jobs)) or {}
    guide = (Given if parts else Shown)(
        denoiser=classifier_free(model.denoiser, options.guidance_scale if wishes else 1.0, null=parts),
        process=model.denoiser.process,
        known={POSITIONS: known},
        keep={POSITIONS: held},
        allowed=allowed_,
    )
    return guide, {**parts, **wishes}, mask.to(device)


def fault(kept: Kept, molecule: Molecule) -> str:
    """Why a draw is rejected, or an empty string."""
    if not kept.preserved_in(molecule):
        return "changed"
    row = judge([molecule])[0]
    if not row.valid:
        return "invalid"
    if not row.connected:
        return "disconnected"
    return "" if row.stable else "of wrong valence"


def _placed(kept: Kept, molecule: Molecule) -> Molecule:
    """In the input's frame, with the input's own digits for the kept atoms."""
    k, own = len(kept.molecule), kept.molecule.positions
    moved = molecule.positions + (own.mean(axis=0) - molecule.positions[:k].mean(axis=0))
    moved[:k] = own
    return replace(molecule, positions=moved)


def allowed(kept: Kept, heavy: int, light: int, vocabulary: Vocabulary, *, width: int) -> dict[str, Tensor]:
    """Which categories each row may have: types `[N, K]`, charges `[N, Q]`, bonds `[N, N, 4]`, bool; see the module."""
    k, own = len(kept.molecule), kept.molecule
    first = k + heavy
    n = first + light
    hydrogen = torch.tensor([z == 1 for z in vocabulary.elements])
    types = torch.ones(width, len(vocabulary.elements), dtype=torch.bool)
    charges = torch.ones(width, len(vocabulary.charges), dtype=torch.bool)
    for i in range(k):
        types[i] = torch.tensor([z == own.numbers[i] for z in vocabulary.elements])
        charges[i] = torch.tensor([q == own.charges[i] for q in vocabulary.charges])
    types[k:first], types[first:n] = ~hydrogen, hydrogen
    charges[first:n] = torch.tensor([q == 0 for q in vocabulary.charges])
    most = torch.full((width, width), BOND_ORDERS - 1)  # highest order of each pair
    for i in range(k):
        free, anchor = int(kept.free[i]), bool(kept.anchors[i])
        most[i, k:first] = min(free, BOND_ORDERS - 1) if anchor else 0
        most[i, first:n] = min(free, 1)
    most[k:first, first:n] = 1
    most[first:n, first:n] = 0
    most[:k, :k] = 0
    most = torch.minimum(most, most.T)
    bonds = torch.arange(BOND_ORDERS) <= most[..., None]
    assert own.bonds is not None
    for i, j, order in own.bonds.tolist():
        bonds[i, j] = bonds[j, i] = torch.arange(BOND_ORDERS) == order
    return {TYPES: types, CHARGES: charges, BONDS: bonds}
