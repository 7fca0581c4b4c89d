"""Layouts: sums, means and centres against loops over samples; ragged equals padded."""

from __future__ import annotations

import pytest
import torch

from perrin.core import Dense, Layout, Padded, Pairs, Ragged
from perrin.core.testing import split

SIZES = torch.tensor([3, 1, 5, 4])
INDEX = torch.repeat_interleave(torch.arange(4), SIZES)
LAYOUTS: dict[str, tuple[Layout, tuple[int, ...]]] = {
    "dense": (Dense(4), (4, 2, 3)),
    "padded": (Padded.from_sizes(SIZES, 7), (4, 7, 3)),
    "pairs": (Pairs(Padded.from_sizes(SIZES, 7).mask), (4, 7, 7, 3)),
    "ragged": (Ragged(INDEX, 4), (13, 3)),
}
every = pytest.mark.parametrize("name", LAYOUTS)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def field(name: str, dtype: torch.dtype = torch.float64) -> tuple[Layout, torch.Tensor]:
    layout, shape = LAYOUTS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return layout, x + x.transpose(1, 2) if name == "pairs" else x


@every
@both
def test_sum_mean_rows_against_a_loop(name: str, dtype: torch.dtype) -> None:
    layout, x = field(name, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for i, rows in enumerate(split(layout, x)):
        if name == "dense":
            total, n = rows, 1
        elif name == "pairs":
            m = len(rows)
            pairs = [rows[a, b] for a in range(m) for b in range(a)]
            total, n = sum(pairs, torch.zeros(3, dtype=dtype)), len(pairs)
        else:
            total, n = rows.sum(dim=0), len(rows)
        torch.testing.assert_close(layout.sum(x)[i], total, rtol=tolerance, atol=tolerance)
        assert int(layout.rows()[i]) == n
        torch.testing.assert_close(layout.mean(x)[i], total / max(n, 1), rtol=tolerance, atol=tolerance)


@every
@both
def test_center(name: str, dtype: torch.dtype) -> None:
    layout, x = field(name, dtype)
    centred = layout.center(x)
    assert centred.shape == x.shape
    torch.testing.assert_close(layout.restrict(centred), centred)
    limit = 20 * torch.finfo(dtype).eps
    if name == "dense":  # over the positions of each channel
        assert float(centred.mean(dim=2).abs().max()) < limit
    else:
        assert float(layout.mean(centred).abs().max()) < limit
    torch.testing.assert_close(layout.center(centred), centred, rtol=0, atol=limit)


def test_dense_center_never_mixes_samples() -> None:
    assert torch.equal(Dense(3).center(torch.tensor([1.0, 2.0, 6.0])), torch.zeros(3))
    x = torch.tensor([[1.0, 3.0], [10.0, 20.0]])
    assert torch.equal(Dense(2).center(x), torch.tensor([[-1.0, 1.0], [-5.0, 5.0]]))


@both
def test_ragged_equals_padded(dtype: torch.dtype) -> None:
    (padded, x), (ragged, _) = field("padded", dtype), field("ragged", dtype)
    rows = torch.cat(split(padded, x))
    for got, want in (
        (ragged.sum(rows), padded.sum(x)),
        (ragged.mean(rows), padded.mean(x)),
        (ragged.rows(), padded.rows()),
        (ragged.center(rows), torch.cat(split(padded, padded.center(x)))),
    ):
        torch.testing.assert_close(got, want)
    flat = torch.randn(4, 7 * 3, dtype=dtype)
    placed = padded.place(flat, (3,))
    short = flat[:, : ragged.count(3)]
    assert torch.equal(ragged.place(short, (3,)), torch.cat(split(padded, placed)))


@every
def test_expand_is_one_value_for_each_sample(name: str) -> None:
    layout, x = field(name)
    values = torch.arange(4.0, dtype=torch.float64)
    full = layout.expand(values, x) * torch.ones_like(x)
    for i, rows in enumerate(split(layout, full)):
        assert bool((rows == i).all())


@pytest.mark.parametrize("name", ["padded", "pairs"])
def test_padding_may_hold_anything(name: str) -> None:
    layout, x = field(name)
    mask = layout.restrict(torch.ones_like(x)) > 0
    for junk in (torch.nan, torch.inf):
        dirty = torch.where(mask, x, junk)
        assert torch.equal(layout.sum(dirty), layout.sum(x))
        assert torch.equal(layout.center(dirty), layout.center(x))


@pytest.mark.parametrize("shape", [(3,), (2, 3), ()])
def test_padded_sum_is_bitwise_the_same_in_any_batch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 30, (64,), generator=generator)
    layout = Padded.from_sizes(sizes)
    x = torch.randn(64, layout.mask.shape[1], *shape, generator=generator)
    whole = layout.center(x)
    for batch in (1, 2, 5, 7):
        width = int(sizes[:batch].max())
        part = Padded.from_sizes(sizes[:batch])
        assert torch.equal(part.center(x[:batch, :width].clone()), whole[:batch, :width])


def test_pair_numbers_do_not_change_with_padding() -> None:
    for n in range(2, 7):
        count = n * (n - 1) // 2
        wide = torch.arange(8 * 7 // 2)[None]
        a = Pairs(torch.ones(1, n, dtype=torch.bool)).place(wide[:, :count], ())
        b = Pairs(torch.ones(1, 8, dtype=torch.bool)).place(wide, ())
        off = ~torch.eye(n, dtype=torch.bool)
        assert torch.equal(a[0][off], b[0, :n, :n][off])
        assert sorted(a[0][torch.ones(n, n).tril(-1) > 0].tolist()) == list(range(count))


def test_a_single_atom_has_no_pairs_but_a_field() -> None:
    layout = Pairs(torch.ones(2, 1, dtype=torch.bool))
    x = layout.place(torch.randn(2, layout.count(4)), (4,))
    assert x.shape == (2, 1, 1, 4)
    assert torch.equal(layout.mean(x), torch.zeros(2, 4))


def test_layouts_move_between_devices() -> None:
    for layout, _ in LAYOUTS.values():
        assert layout.to("meta").batch == 4
