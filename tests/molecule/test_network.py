"""The denoiser commutes with rotations, reflections and permutations, and sees neither shifts nor padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import perrin
from perrin.core import GeneratorNoise, NetworkDenoiser, Padded, State
from perrin.errors import PerrinError
from perrin.modalities.molecule.fields import BONDS, CHARGES, POSITIONS, TYPES, Vocabulary, layouts_for
from perrin.modalities.molecule.network import MoleculeConfig, NetworkConfig, build_denoiser

pytest.importorskip("rdkit")

SMALL = NetworkConfig(
    self_condition=True,
    depth=3,
    width=32,
    vectors=8,
    pair_width=16,
    heads=4,
    sets=4,
    pair_hidden=16,
    gathered=4,
    radial=8,
    time_width=16,
)
VOCABULARY = Vocabulary(
    elements=(1, 6, 7, 8),
    charges=(-1, 0, 1),
    position_scale=1.4,
    type_counts=(50.0, 35.0, 5.0, 10.0),
    charge_counts=(1.0, 98.0, 1.0),
    bond_counts=(80.0, 15.0, 4.0, 1.0),
    size_counts=((7, 1), (11, 1)),
)
SIZES, WIDTH = (7, 11, 1, 10), 11
TOLERANCE = 1e-10


def random_weights(config: NetworkConfig) -> NetworkDenoiser:
    """Every parameter random, biases and modulations too: no symmetry comes from a zero of the initialisation."""
    torch.manual_seed(5)
    denoiser = build_denoiser(MoleculeConfig(vocabulary=VOCABULARY, network=config)).double()
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2))
    return denoiser.requires_grad_(False)


def small() -> NetworkDenoiser:
    return random_weights(SMALL)


def default() -> NetworkDenoiser:
    return random_weights(NetworkConfig(self_condition=True))


def shipped() -> NetworkDenoiser:
    return perrin.load("molecule/qm9").denoiser.double()


def backbone(name: str, neighbours: int = 32) -> NetworkDenoiser:
    return random_weights(replace(SMALL, backbone=name, neighbours=neighbours))


def e3nn() -> NetworkDenoiser:
    return backbone("e3nn")


def e3nn_near() -> NetworkDenoiser:
    return backbone("e3nn", 4)


def sparse() -> NetworkDenoiser:
    return backbone("sparse")


def sparse_near() -> NetworkDenoiser:
    """With fewer edges than pairs."""
    return backbone("sparse", 4)


def handed() -> NetworkDenoiser:
    """With pseudoscalars."""
    return random_weights(replace(SMALL, pseudoscalars=5))


ALL = (small, default, shipped, e3nn, e3nn_near, sparse, sparse_near)


@dataclass
class Case:
    """A denoiser and a batch for it: molecules of several sizes at several times."""

    denoiser: NetworkDenoiser
    x: State
    t: Tensor
    mask: Tensor

    def run(
        self, x: State, mask: Tensor | None = None, previous: State | None = None, condition: Any = None
    ) -> State:
        layouts = layouts_for(self.mask if mask is None else mask)
        return self.denoiser(x, self.t, condition=condition, layouts=layouts, previous=previous)


@pytest.fixture(scope="module", params=ALL, ids=lambda f: f.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param())


def case_of(denoiser: NetworkDenoiser) -> Case:
    generator = torch.Generator().manual_seed(11)
    mask = Padded.from_sizes(torch.tensor(SIZES), WIDTH).mask
    t = torch.tensor([0.9, 0.05, 0.5, 0.4], dtype=torch.float64)
    layouts = layouts_for(mask)
    x_0 = denoiser.process.prior_state(GeneratorNoise(generator, dtype=torch.float64), layouts)
    x = denoiser.process.corrupt_state(x_0, t, GeneratorNoise(generator, dtype=torch.float64), layouts)
    assert x[POSITIONS].dtype == torch.float64
    return Case(denoiser, x, t, mask)


@pytest.fixture(params=[False, True], ids=["first", "previous"])
def previous(request: pytest.FixtureRequest, case: Case) -> State | None:
    """Another estimate than the one at hand, as self-conditioning gives it."""
    if not request.param:
        return None
    found = case.run({**case.x, TYPES: (case.x[TYPES] + 1) % 4 * case.mask})
    return {**found, POSITIONS: found[POSITIONS] * 1.5}


def orthogonal(sign: int) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return q * torch.sign(torch.linalg.det(q)) * sign


def turned(state: State, matrix: Tensor) -> State:
    return {**state, POSITIONS: state[POSITIONS] @ matrix.T}


def largest(a: State, b: State) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize("sign", [1, -1], ids=["rotation", "reflection"])
def test_rotations_and_reflections(case: Case, previous: State | None, sign: int) -> None:
    matrix = orthogonal(sign)
    assert float(torch.linalg.det(matrix)) == pytest.approx(sign)
    expected = turned(case.run(case.x, previous=previous), matrix)
    found = case.run(turned(case.x, matrix), previous=previous and turned(previous, matrix))
    assert largest(found, expected) < TOLERANCE


def test_inversion_and_mirrors_of_single_axes(case: Case) -> None:
    for diagonal in ((-1, -1, -1), (1, 1, -1), (-1, 1, 1)):
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        assert largest(case.run(turned(case.x, matrix)), turned(case.run(case.x), matrix)) < TOLERANCE


def test_translations(case: Case, previous: State | None) -> None:
    """Processes live in the space of zero centre of mass: a molecule put anywhere gives the same state."""
    rows = Padded(case.mask)
    shift = 10 * torch.randn(len(SIZES), 1, 3, dtype=torch.float64)
    moved = rows.restrict(case.x[POSITIONS] + shift)
    again = {**case.x, POSITIONS: rows.center(moved)}
    assert largest(case.run(again, previous=previous), case.run(case.x, previous=previous)) < TOLERANCE


def test_estimates_stay_centred(case: Case, previous: State | None) -> None:
    assert rows_mean(case.run(case.x, previous=previous)[POSITIONS], case.mask) < TOLERANCE


def rows_mean(x: Tensor, mask: Tensor) -> float:
    return float(Padded(mask).mean(x).abs().max())


def permuted(state: State, order: Tensor) -> State:
    """`order` `[B, N]`: the old row that comes to each place."""
    batch = torch.arange(len(order))[:, None]
    out = {k: v[batch, order] for k, v in state.items()}
    out[BONDS] = state[BONDS][batch[:, :, None], order[:, :, None], order[:, None, :]]
    return out


def test_permutations(case: Case, previous: State | None) -> None:
    generator = torch.Generator().manual_seed(2)
    order = torch.stack(
        [torch.cat((torch.randperm(n, generator=generator), torch.arange(n, WIDTH))) for n in SIZES]
    )
    expected = permuted(case.run(case.x, previous=previous), order)
    found = case.run(permuted(case.x, order), previous=previous and permuted(previous, order))
    assert largest(found, expected) < TOLERANCE


def widened(state: State, extra: int, fill: Callable[[Tensor], Tensor]) -> State:
    """`extra` rows of padding, filled by a function of what is there."""
    out = {}
    for key, x in state.items():
        axes = (1, 2) if key == BONDS else (1,)
        shape = [n + extra * (axis in axes) for axis, n in enumerate(x.shape)]
        wide = fill(torch.zeros(shape, dtype=x.dtype))
        wide[tuple(slice(0, n) for n in x.shape)] = x
        out[key] = wide
    return out


@pytest.mark.parametrize("rubbish", [False, True])
def test_padding_is_not_seen(case: Case, previous: State | None, rubbish: bool) -> None:
    mask = Padded.from_sizes(torch.tensor(SIZES), WIDTH + 5).mask
    fill = torch.ones_like if rubbish else torch.zeros_like
    wide = widened(case.x, 5, fill)
    found = case.run(wide, mask, previous and widened(previous, 5, fill))
    expected = case.run(case.x, previous=previous)
    for key, value in expected.items():
        for k, n in enumerate(SIZES):
            inside = (k, slice(n), slice(n)) if key == BONDS else (k, slice(n))
            assert float((found[key][inside] - value[inside]).abs().max()) < TOLERANCE
    if not rubbish:
        assert not found[POSITIONS][~mask].any()


def test_samples_do_not_see_each_other(case: Case) -> None:
    expected = case.run(case.x)
    for k in range(len(SIZES)):
        alone = Case(
            case.denoiser,
            {key: v[k : k + 1] for key, v in case.x.items()},
            case.t[k : k + 1],
            case.mask[k : k + 1],
        )
        found = alone.run(alone.x)
        assert largest(found, {key: v[k : k + 1] for key, v in expected.items()}) < TOLERANCE


@pytest.mark.parametrize("make", [small, e3nn_near, sparse, sparse_near], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bonds_are_symmetric_to_the_last_bit(dtype: torch.dtype, make: Callable[[], NetworkDenoiser]) -> None:
    denoiser = make().to(torch.float64 if dtype == torch.float64 else torch.float32)
    generator = torch.Generator().manual_seed(3)
    mask = Padded.from_sizes(torch.tensor(SIZES), WIDTH).mask
    kind = next(denoiser.parameters()).dtype
    x = denoiser.process.prior_state(GeneratorNoise(generator, dtype=kind), layouts_for(mask))
    t = torch.full((len(SIZES),), 0.5, dtype=kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        bonds = denoiser(x, t, layouts=layouts_for(mask))[BONDS]
    assert torch.equal(bonds, bonds.transpose(1, 2))
    assert bonds.std() > 0.01


def test_the_estimate_depends_on_everything(case: Case, previous: State | None) -> None:
    """What is invariant must not be so because it is constant."""
    expected = case.run(case.x, previous=previous)
    inside = case.mask[..., None] & case.mask[:, None, :]
    flipped = torch.triu(torch.ones(WIDTH, WIDTH, dtype=torch.bool), 1)
    flipped = (flipped | flipped.T) & inside
    changes = {
        POSITIONS: case.x[POSITIONS] * torch.tensor([1.0, 1.1, 0.9]),
        TYPES: (case.x[TYPES] + 1) % 4,
        CHARGES: (case.x[CHARGES] + 1) % 3,
        BONDS: torch.where(flipped, (case.x[BONDS] + 1) % 4, case.x[BONDS]),
    }
    for key, value in changes.items():
        found = case.run({**case.x, key: value}, previous=previous)
        for output in expected:
            difference = (found[output] - expected[output])[[0, 1, 3]].abs().amax()
            assert float(difference) > 1e-4, (key, output)
    later = Case(case.denoiser, case.x, case.t * 0.5 + 0.2, case.mask).run(case.x, previous=previous)
    assert largest(later, expected) > 1e-3
    if previous is not None:
        assert largest(case.run(case.x), expected) > 1e-3


def test_configurations_go_through_json() -> None:
    config = MoleculeConfig(vocabulary=VOCABULARY, network=SMALL, bond_exponent=1.5)
    assert MoleculeConfig.from_json(config.to_json()) == config
    import json

    assert MoleculeConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_handedness(sign: float) -> None:
    """A mirror turns pseudoscalars: it is undone by turning the label, and unseen where the label is zero."""
    case = case_of(handed())
    label = torch.full((len(SIZES),), sign, dtype=torch.float64)
    told, turned_label = {"handedness": label}, {"handedness": -label}
    rotation, mirror = orthogonal(1), orthogonal(-1)
    first = case.run(case.x, condition=told)
    for previous in (None, first):
        expected = case.run(case.x, previous=previous, condition=told)

        def found(matrix: Tensor, condition: Any, previous: State | None = previous) -> State:
            before = previous and turned(previous, matrix)
            return case.run(turned(case.x, matrix), previous=before, condition=condition)

        assert largest(found(rotation, told), turned(expected, rotation)) < TOLERANCE
        assert largest(found(mirror, turned_label), turned(expected, mirror)) < TOLERANCE
        difference = largest(found(mirror, told), turned(expected, mirror))
        assert difference > 1e-4 if sign else difference < TOLERANCE
    plain = case.run(case.x)
    assert (largest(plain, first) < TOLERANCE) == (sign == 1)


def test_handedness_of_single_atoms() -> None:
    """A label `[B, N]` acts where it is not zero, and equals the label of the molecule where it is everywhere one."""
    case = case_of(handed())
    ones = torch.ones(len(SIZES), WIDTH, dtype=torch.float64)
    whole = case.run(case.x, condition={"handedness": ones[:, 0]})
    assert largest(case.run(case.x, condition={"handedness": ones}), whole) < TOLERANCE
    one = torch.zeros_like(ones)
    one[1, 3] = 1.0
    blind = case.run(case.x, condition={"handedness": 0 * ones})
    changed = case.run(case.x, condition={"handedness": one})
    for key in blind:
        assert float((changed[key] - blind[key])[1].abs().max()) > 1e-6
        assert not (changed[key] - blind[key])[[0, 2, 3]].any()


def test_enantiomers_differ_only_with_pseudoscalars() -> None:
    """CHFClBr-like: five atoms, two mirror images, no rotation between them."""
    mask = torch.ones(1, 5, dtype=torch.bool)
    generator = torch.Generator().manual_seed(4)
    position = torch.randn(1, 5, 3, generator=generator, dtype=torch.float64)
    position = position - position.mean(1, keepdim=True)
    state = {
        POSITIONS: position,
        TYPES: torch.tensor([[1, 0, 2, 3, 3]]),
        CHARGES: torch.ones(1, 5, dtype=torch.int64),
        BONDS: torch.zeros(1, 5, 5, dtype=torch.int64),
    }
    mirrored = {**state, POSITIONS: position * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)}
    t = torch.tensor([0.3], dtype=torch.float64)
    for make, same in ((small, True), (e3nn, True), (sparse, True), (handed, False)):
        denoiser = make()
        left, right = (denoiser(x, t, layouts=layouts_for(mask)) for x in (state, mirrored))
        difference = max(float((left[k] - right[k]).abs().max()) for k in (TYPES, CHARGES, BONDS))
        assert difference < TOLERANCE if same else difference > 1e-4


def test_a_handedness_needs_pseudoscalars() -> None:
    case = case_of(small())
    with pytest.raises(ValueError, match="pseudoscalars"):
        case.run(case.x, condition={"handedness": torch.ones(len(SIZES))})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"backbone": "resnet"}, "transformer, e3nn, sparse"),
        ({"neighbours": 0}, "at least 1 neighbour"),
        ({"backbone": "sparse", "pseudoscalars": 2}, "expected the transformer"),
    ],
)
def test_configurations_check_themselves(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        NetworkConfig(**changes)


def test_older_configurations_are_read_and_written_as_they_were() -> None:
    old = {"depth": 2, "width": 16, "vectors": 4, "pair_width": 8, "heads": 2, "sets": 2, "pair_hidden": 8}
    old |= {"gathered": 2, "radial": 4, "time_width": 8}
    assert NetworkConfig(**old).backbone == "transformer"
    assert NetworkConfig(**old).to_json() == old
    new = NetworkConfig(**old, backbone="sparse", neighbours=7)
    assert new.to_json() == {**old, "backbone": "sparse", "neighbours": 7}


@pytest.mark.parametrize(("name", "package"), [("e3nn", "e3nn"), ("sparse", "torch_geometric")])
def test_a_missing_package_is_one_line(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("perrin.nets.irreps", "perrin.nets.sparse"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    config = MoleculeConfig(vocabulary=VOCABULARY, network=replace(SMALL, backbone=name))
    with pytest.raises(PerrinError, match=rf"expected the package {package} .*pip install") as caught:
        build_denoiser(config)
    assert "\n" not in str(caught.value)
