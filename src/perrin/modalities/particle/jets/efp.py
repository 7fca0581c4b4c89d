"""Energy flow polynomials: for a multigraph G with vertices V and edges E,

    EFP_G = Σ_{i_1} … Σ_{i_V} z_{i_1} ⋯ z_{i_V} Π_{(k, l) ∈ E} θ_{i_k i_l},      z = pT_rel,  θ² = Δη² + Δφ²

A graph in pieces gives the product of its pieces' polynomials. FPD and KPD of jets take all 36 graphs of at most four
edges without isolated vertices, the single point included, not normalised (Kansal et al., arXiv:2211.10295).

Sums are done by eliminating one vertex after another. A graph of at most four edges has always a vertex left with two
neighbours or fewer, so that nothing larger than a matrix [30, 30] arises.

Reference: Komiske, Metodiev, Thaler, "Energy flow polynomials", arXiv:1712.07124.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import combinations_with_replacement, permutations
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Graph = tuple[tuple[int, int], ...]
"""Edges, sorted; an edge may be there several times."""
Array = NDArray[Any]


@lru_cache
def connected_graphs(edges: int) -> tuple[Graph, ...]:
    """All connected multigraphs of that many edges, without loops, one of each shape."""
    if edges == 1:
        return (((0, 1),),)
    found: dict[Graph, None] = {}
    for graph in connected_graphs(edges - 1):
        size = 1 + max(max(e) for e in graph)
        old = [(a, b) for a in range(size) for b in range(a + 1, size)]
        for edge in [*old, *((a, size) for a in range(size))]:
            found[_canonical((*graph, edge))] = None
    return tuple(found)


def _canonical(graph: Graph) -> Graph:
    size = 1 + max(max(e) for e in graph)
    return min(
        tuple(sorted((min(p[a], p[b]), max(p[a], p[b])) for a, b in graph)) for p in permutations(range(size))
    )


@lru_cache
def graph_sets(most: int = 4) -> tuple[tuple[Graph, ...], ...]:
    """All graphs of at most `most` edges without isolated vertices, each as its connected pieces; first the point, `()`."""
    pieces = [g for d in range(1, most + 1) for g in connected_graphs(d)]
    out: list[tuple[Graph, ...]] = [()]
    for count in range(1, most + 1):
        out += [c for c in combinations_with_replacement(pieces, count) if sum(map(len, c)) <= most]
    return tuple(out)


def efps(particles: Array, most: int = 4, chunk: int = 1000) -> Array:
    """The polynomials of all graphs of at most `most` edges.

    Arguments:
        particles: `[N, 30, ≥ 3]`: η_rel, φ_rel (radians), pT_rel; rows with pT_rel = 0 do not count.

    Returns:
        `[N, graphs]`, 36 for four edges.
    """
    pieces = sorted({g for c in graph_sets(most) for g in c}, key=lambda g: (len(g), g))
    rows = []
    for begin in range(0, len(particles), chunk):
        part = np.asarray(particles[begin : begin + chunk], dtype=np.float64)
        z = part[..., 2]
        squared = sum((part[:, :, None, k] - part[:, None, :, k]) ** 2 for k in (0, 1))
        theta = np.sqrt(squared)
        powers = {1: theta}
        for k in range(2, most + 1):
            powers[k] = powers[k - 1] * theta
        value = {g: _sum(g, z, powers) for g in pieces}
        ones = np.ones(len(part))
        rows.append(
            np.stack(
                [z.sum(1) if not c else prod((value[g] for g in c), start=ones) for c in graph_sets(most)], 1
            )
        )
    return np.concatenate(rows)


def _sum(graph: Graph, z: Array, powers: dict[int, Array]) -> Array:
    """The polynomial of a connected graph, `[N]`."""
    weight = {v: z for e in graph for v in e}
    link = {frozenset(e): powers[k] for e, k in Counter(graph).items()}
    while len(weight) > 1:
        degree = {v: sum(v in e for e in link) for v in weight}
        v = min(degree, key=lambda k: (degree[k], k))
        joined = [(e, link.pop(e)) for e in list(link) if v in e]
        w = weight.pop(v)
        ends = [next(iter(e - {v})) for e, _ in joined]
        if len(joined) == 1:
            weight[ends[0]] = weight[ends[0]] * np.einsum("nij,nj->ni", joined[0][1], w)
        else:  # two: never more, see above
            made = (joined[0][1] * w[:, None, :]) @ joined[1][1]
            both = frozenset(ends)
            link[both] = link[both] * made if both in link else made
    return np.asarray(next(iter(weight.values())).sum(1))
