"""Edges to neighbours against a k-d tree, and the same network on padded and on ragged rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perrin.core import Padded, Ragged
from perrin.nets.graph import ABSENT, Complete, Edges

SIZES, WIDTH = (9, 14, 1, 2), 14


@pytest.fixture
def mask() -> Tensor:
    return Padded.from_sizes(torch.tensor(SIZES), WIDTH).mask


@pytest.fixture
def x(mask: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return Padded(mask).center(torch.randn(*mask.shape, 3, dtype=torch.float64, generator=generator))


def pairs(edges: Edges) -> set[tuple[int, int]]:
    chosen = edges.valid.nonzero()[:, 0]
    return set(zip(edges.target[chosen].tolist(), edges.source[chosen].tolist(), strict=True))


@pytest.mark.parametrize("k", [1, 4, 13, 50])
def test_nearest_are_those_of_a_tree(x: Tensor, mask: Tensor, k: int) -> None:
    tree = pytest.importorskip("scipy.spatial").cKDTree
    expected = set()
    for b, n in enumerate(SIZES):
        points = x[b, :n].numpy()
        found = tree(points).query(points, k=min(k, n - 1) + 1)[1].reshape(n, -1)
        expected |= {(WIDTH * b + i, WIDTH * b + int(j)) for i in range(n) for j in found[i] if i != j}
    assert pairs(Edges.nearest(mask, [x], None, k)) == expected


def test_blocks_of_rows_change_nothing(x: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Edges.nearest(mask, [x], None, 3)
    monkeypatch.setattr("perrin.nets.graph._CHUNK", 5 * 3 * WIDTH * len(SIZES))
    blocks = Edges.nearest(mask, [x], None, 3)
    assert torch.equal(whole.source, blocks.source)
    assert torch.equal(whole.valid, blocks.valid)


def test_bonded_rows_come_first(x: Tensor, mask: Tensor) -> None:
    bonds = torch.zeros(len(SIZES), WIDTH, WIDTH, dtype=torch.int64)
    far = int((x[1] - x[1, 0]).norm(dim=-1).argmax())
    bonds[1, 0, far] = bonds[1, far, 0] = 2
    assert (WIDTH, WIDTH + far) not in pairs(Edges.nearest(mask, [x], None, 2))
    found = pairs(Edges.nearest(mask, [x], bonds, 2))
    assert {(WIDTH, WIDTH + far), (WIDTH + far, WIDTH)} <= found


def test_the_smallest_distance_of_several_positions_counts(x: Tensor, mask: Tensor) -> None:
    near = pairs(Edges.nearest(mask, [x], None, 4))
    assert pairs(Edges.nearest(mask, [100 * x, x], None, 4)) == near
    other = x.clone()
    other[1, 3], other[1, 5] = torch.full((3,), 50.0), torch.full((3,), 50.1)
    assert {(WIDTH + 3, WIDTH + 5), (WIDTH + 5, WIDTH + 3)} <= pairs(Edges.nearest(mask, [x, other], None, 4))


def test_reverses(x: Tensor, mask: Tensor) -> None:
    edges = Edges.nearest(mask, [x], None, 3)
    found = pairs(edges)
    for e in range(len(edges.target)):
        pair = (int(edges.target[e]), int(edges.source[e]))
        mutual = bool(edges.valid[e]) and pair[::-1] in found
        assert mutual == bool(edges.mutual[e])
        if mutual:
            back = int(edges.reverse[e])
            assert (int(edges.target[back]), int(edges.source[back])) == pair[::-1]


def test_logits_are_those_of_the_edges_and_none_elsewhere(x: Tensor, mask: Tensor) -> None:
    edges = Edges.nearest(mask, [x], None, 3)
    y = torch.randn(len(edges.target), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    field = edges.logits(y).flatten(0, 1)
    expected: dict[tuple[int, int], Tensor] = {}
    for e in edges.valid.nonzero()[:, 0].tolist():
        i, j = int(edges.target[e]), int(edges.source[e])
        for pair in ((i, j), (j, i)):
            expected[pair] = expected.get(pair, torch.zeros(4, dtype=torch.float64)) + y[e]
    found = pairs(edges)
    for i in range(len(field)):
        for j in range(WIDTH):
            pair = (i, i // WIDTH * WIDTH + j)
            if pair not in expected:
                assert field[i, j].tolist() == [ABSENT, 0, 0, 0]
            else:
                one_way = 1 if pair in found and pair[::-1] in found else 2
                assert torch.allclose(field[i, j], one_way * expected[pair], atol=1e-12)


def test_edges_to_all_hold_what_the_complete_graph_holds(x: Tensor, mask: Tensor) -> None:
    edges, dense = Edges.nearest(mask, [x], None, WIDTH), Complete(mask)
    y = torch.randn(*mask.shape, WIDTH, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inside = (mask[:, :, None] & mask[:, None]) & ~torch.eye(WIDTH, dtype=torch.bool)
    assert torch.allclose(edges.logits(edges.select(y))[inside], dense.logits(y)[inside], atol=1e-12)
    chosen = edges.valid
    assert torch.equal(edges.distance(x)[chosen], edges.select(dense.distance(x))[chosen])
    assert torch.equal(edges.symmetric(edges.select(y))[chosen], edges.select(dense.symmetric(y))[chosen])


@pytest.mark.parametrize("name", ["sparse", "e3nn"])
@pytest.mark.parametrize("k", [3, 20])
def test_ragged_rows_give_what_padded_rows_give(name: str, k: int, x: Tensor, mask: Tensor) -> None:
    sizes = {"neighbours": k, "depth": 2, "width": 16, "vectors": 4, "pair_width": 6, "pair_hidden": 8}
    torch.manual_seed(0)
    if name == "sparse":
        network = pytest.importorskip("perrin.nets.sparse").SparseNetwork(**sizes, heads=2, time_width=5)
    else:
        network = pytest.importorskip("perrin.nets.irreps").IrrepsNetwork(**sizes, time_width=5)
    network = network.double().requires_grad_(False)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    h = torch.randn(*mask.shape, 16, dtype=torch.float64)
    v = torch.randn(len(SIZES), 3, WIDTH, 4, dtype=torch.float64) + x.transpose(1, 2).unsqueeze(-1)
    time = torch.randn(len(SIZES), 5, dtype=torch.float64)
    e = torch.randn(*mask.shape, WIDTH, 6, dtype=torch.float64)
    padded = Edges.nearest(mask, [x], None, k)
    expected = network(h, v, padded.select(e), time, padded)

    layout = Ragged(torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES)), len(SIZES))
    edges = Edges.ragged(layout, x[mask], k)
    rows = mask.flatten().nonzero()[:, 0]
    assert torch.equal(rows[edges.target], padded.target[padded.valid])
    found = network.rows(h[mask], v.transpose(1, 2)[mask], padded.select(e)[padded.valid], time, edges)
    assert torch.allclose(found[0], expected[0][mask], atol=1e-12)
    assert torch.allclose(found[1], expected[1].transpose(1, 2)[mask], atol=1e-12)
    assert torch.allclose(found[2], expected[2][padded.valid], atol=1e-12)
    assert float((found[0] - h[mask]).abs().max()) > 1e-2


def test_wigner_symbols_are_exact_in_every_precision() -> None:
    """To float64 by way of float32: constants are not rounded on the way."""
    irreps = pytest.importorskip("perrin.nets.irreps")
    from e3nn import o3

    network = irreps.IrrepsNetwork(depth=1, width=8, vectors=2, tensors=2, pair_width=4, pair_hidden=4)
    buffers = {k: v for k, v in network.half().float().double().named_buffers() if "_w3j_" in k}
    assert {k[-5:] for k in buffers} == {"1_1_2", "1_2_1", "2_1_1", "2_2_2"}
    for name, value in buffers.items():
        orders = tuple(map(int, name[-5:].split("_")))
        assert torch.equal(value, o3.wigner_3j(*orders, dtype=torch.float64))
    assert torch.get_default_dtype() == torch.float32
