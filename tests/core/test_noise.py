"""Counter-based noise: known answers, distribution, independence, and the same bits in every batch."""

from __future__ import annotations

import math

import pytest
import torch

from perrin.core import CounterNoise, Dense, GeneratorNoise, Noise, Padded, Pairs, Ragged, sample_seeds
from perrin.core.noise import address, field_id, philox4x32, splitmix64, splitmix64_tensor

N = 200_000


def big(step: int = 0, field: str = "x", seed: int = 0, purpose: str = "normal") -> torch.Tensor:
    noise = CounterNoise(sample_seeds(seed, range(4)), torch.float64)
    return getattr(noise, purpose)(Dense(4), (N // 4,), field=field, step=step).flatten()


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    words = [torch.tensor([int(w, 16)]) for w in (counter + " " + key).split()]
    out = philox4x32(*words)
    assert " ".join(f"{int(w):08x}" for w in out) == answer


WORD = 2**64 - 1


def test_known_answers_of_splitmix64() -> None:
    """The sequence from 1234567, as in the literature (Rosetta Code's task, Vigna's C)."""
    answer = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix64(1234567, n) for n in range(1, 5)] == answer
    out = splitmix64_tensor(torch.tensor(1234567), torch.arange(1, 5))
    assert [int(v) & WORD for v in out] == answer
    assert int(splitmix64_tensor(torch.tensor(-1), 3)) & WORD == splitmix64(WORD, 3)


def reference(seed: int, field: str, step: int, purpose: int, i: int) -> int:
    """The definition in the module's docstring, in whole numbers."""

    def fold(z: int) -> int:
        return z ^ (z & WORD) >> 32

    name = splitmix64(field_id(field) | purpose << 32, 1)
    place = splitmix64(name ^ step, 1)
    k, k_ = (splitmix64(seed & WORD, j) ^ splitmix64(place, j) for j in (1, 2))
    z = k ^ splitmix64(0, i + 1)
    z = fold((0xBF58476D1CE4E5B9 * z + k_) & WORD)
    z = fold((0x94D049BB133111EB * z + k) & WORD)
    return fold(0xD6E8FEB86659FD93 * z & WORD)


def words(
    seeds: torch.Tensor, count: int, *, field: str = "x", step: int = 0, purpose: int = 0
) -> torch.Tensor:
    """The 64-bit words, `[B, count]`."""
    halves = CounterNoise(seeds).words(2 * count, field=field, step=step, purpose=purpose)
    return halves.contiguous().view(torch.int64).squeeze(-1)


def test_words_are_those_of_the_definition() -> None:
    seeds = torch.tensor([0, 1, 2**62 + 17, -5])
    for field, step, purpose in (("x", 0, 0), ("positions", 3, 1), ("bonds", 2**31 + 5, 0)):
        out = words(seeds, 5, field=field, step=step, purpose=purpose)
        for b, seed in enumerate(seeds.tolist()):
            for i in range(5):
                assert int(out[b, i]) & WORD == reference(seed, field, step, purpose, i)
    # pinned: a sampler's results are reproducible from one version to the next
    assert [f"{reference(0, 'x', 0, 0, i):016x}" for i in range(3)] == [
        "904877ab7f12b386",
        "7552aaf8f72dd255",
        "eef40fc3ff536cd5",
    ]


def streams() -> dict[str, torch.Tensor]:
    """Half a million words in which neighbours differ in one thing alone."""
    n, seeds = 1 << 19, sample_seeds(0, range(1))
    out = {
        "element": words(seeds, n),
        "sample": words(sample_seeds(0, range(n)), 1),
        "raw seed": words(torch.arange(n), 1),
        "step": torch.cat([words(seeds, 64, step=k) for k in range(n // 64)], dim=1),
        "field": torch.cat([words(seeds, 64, field=f"f{k}") for k in range(n // 64)], dim=1),
    }
    return {k: v.flatten() for k, v in out.items()}


def test_words_are_uniform_and_independent_of_their_neighbours() -> None:
    """χ² of the bytes and of pairs of bytes of neighbours, the number of equal 32-bit words, correlation of all 64 bits."""
    for name, z in streams().items():
        bytes_ = z.view(torch.uint8).reshape(-1, 8).long()
        for j in range(8):
            count = torch.bincount(bytes_[:, j], minlength=256).double()
            assert abs(_chi2(count)) < 4.5, (name, j)
            pair = bytes_[:-1, j] * 256 + bytes_[1:, j]
            assert abs(_chi2(torch.bincount(pair, minlength=65536).double())) < 4.5, (name, j)
        assert len(z.unique()) == len(z), name
        for half in (z & 0xFFFFFFFF, z >> 32):
            equal = len(half) - len(half.unique())  # Poisson, with mean n² / 2³³
            mean = len(half) ** 2 / 2**33
            assert abs(equal - mean) < 4.5 * math.sqrt(mean), name
        bits = ((z[:, None] >> torch.arange(64)) & 1).float() * 2 - 1
        for lag in (0, 1, 2, 64):
            c = bits[: len(bits) - lag].T @ bits[lag:] / math.sqrt(len(bits) - lag)
            if lag == 0:
                c = c - c.diagonal().diag()
            assert float(c.abs().max()) < 5.2, (name, lag)  # the largest of 4096


def _chi2(count: torch.Tensor) -> float:
    """χ² of equal expectations, in standard deviations from its mean."""
    mean, degrees = count.mean(), len(count) - 1
    return (float(((count - mean) ** 2 / mean).sum()) - degrees) / math.sqrt(2 * degrees)


def test_every_bit_of_an_address_changes_every_bit_of_a_word_half_of_the_time() -> None:
    n = 1 << 13
    seeds = sample_seeds(3, range(n))
    base = words(seeds, 1)
    changed = {f"seed {b}": words(seeds ^ (1 << b), 1) for b in range(63)}
    changed |= {f"step {b}": words(seeds, 1, step=1 << b) for b in range(32)}
    changed |= {f"element {b}": words(seeds, (1 << b) + 1)[:, -1:] for b in range(8)}
    changed |= {"field": words(seeds, 1, field="y"), "purpose": words(seeds, 1, purpose=1)}
    for name, other in changed.items():
        flips = (((base ^ other) >> torch.arange(64)) & 1).double().mean(dim=0)
        assert float((flips - 0.5).abs().max()) * 2 * math.sqrt(n) < 5, name


def test_addresses_differ() -> None:
    made = {address(f, k, p) for f in ("x", "y", "bonds") for k in range(500) for p in (0, 1)}
    assert len(made) == len({a for a, _ in made}) == len({b for _, b in made}) == 3000


@pytest.mark.parametrize("purpose", ["normal", "uniform"])
def test_kolmogorov_smirnov(purpose: str) -> None:
    x = big(purpose=purpose)
    u = (0.5 * torch.erfc(-x / math.sqrt(2)) if purpose == "normal" else x).sort().values
    rank = torch.arange(N, dtype=torch.float64)
    distance = torch.maximum((u - rank / N).abs().max(), (u - (rank + 1) / N).abs().max())
    assert float(distance) * math.sqrt(N) < 1.95  # exceeded by chance once in a thousand


def test_moments() -> None:
    z, u = big(), big(purpose="uniform")
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - mean) < 4 * math.sqrt(variance / N)
    assert abs(float(u.mean()) - 1 / 2) < 4 * math.sqrt(1 / 12 / N)
    assert abs(float(u.square().mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / N)
    assert 0 < float(u.min()) < float(u.max()) < 1
    assert abs(float((z[::2] * z[1::2]).mean())) * math.sqrt(N / 2) < 4  # the two of a Box–Muller pair
    assert abs(float((z[::2].square() * z[1::2].square()).mean()) - 1) * math.sqrt(N / 2 / 8) < 4


def test_independence_over_steps_fields_seeds_and_samples() -> None:
    draws = [big(), big(step=1), big(step=2), big(field="y"), big(seed=1), big(seed=2**40)]
    noise = CounterNoise(sample_seeds(5, range(6)), torch.float64).normal(Dense(6), (N,), field="x", step=3)
    draws += list(noise)
    z = torch.stack(draws)
    correlation = z @ z.T / N
    assert (
        float((correlation - torch.eye(len(z), dtype=z.dtype) * correlation.diagonal()).abs().max())
        * math.sqrt(N)
        < 4.5
    )
    squares = z.square() - 1
    correlation = squares @ squares.T / (2 * N)
    assert (
        float((correlation - torch.eye(len(z), dtype=z.dtype) * correlation.diagonal()).abs().max())
        * math.sqrt(N)
        < 4.5
    )


def test_normal_and_uniform_of_one_address_are_independent() -> None:
    z, u = big(), big(purpose="uniform")
    assert abs(float((z * (u - 0.5)).mean())) * math.sqrt(12 * N) < 4


def test_seeds() -> None:
    seeds = sample_seeds(0, range(100_000))
    assert len(seeds.unique()) == len(seeds)
    assert int(seeds.min()) >= 0
    assert torch.equal(sample_seeds(0, torch.tensor([17, 3])), seeds[[17, 3]])
    assert not bool(torch.isin(sample_seeds(1, range(1000)), seeds).any())
    assert field_id("positions") != field_id("types")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_other_dtypes_are_float64_rounded(dtype: torch.dtype) -> None:
    """Uniform numbers bit for bit; normal ones but for the rounding of float32's logarithm, sine and cosine."""
    seeds, layout = sample_seeds(0, range(3)), Dense(3)
    for purpose, within in (("normal", 3e-6), ("uniform", 0.0)):
        low, high = (
            getattr(CounterNoise(seeds, d), purpose)(layout, (100_001,), field="x", step=0)
            for d in (dtype, torch.float64)
        )
        assert low.dtype == dtype
        if purpose == "uniform":
            high = high.clamp(max=1 - torch.finfo(dtype).eps / 2)
        gap = (low.double() - high.to(dtype).double()).abs()
        assert bool((gap <= within + (torch.finfo(dtype).eps * high.abs() if within else 0)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_the_rarest_words_make_finite_numbers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words at the ends of their range, which no test of a few million draws meets."""
    ends = [-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 65, 2**31 - 64, 2**31 - 1]
    pairs = torch.cartesian_prod(torch.tensor(ends), torch.tensor(ends)).to(torch.int32)[None]
    monkeypatch.setattr(CounterNoise, "words", lambda self, count, **_: pairs.clone())
    noise, count = CounterNoise(torch.tensor([0]), dtype), pairs.numel()
    z = noise.normal(Dense(1), (count,), field="x", step=0)
    u = noise.uniform(Dense(1), (count,), field="x", step=0).double()
    assert bool(torch.isfinite(z).all())
    assert float(z.abs().max()) == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-3)  # u = 2^-32
    assert bool(((u >= 0) & (u < 1)).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_uniform_never_reaches_one(dtype: torch.dtype) -> None:
    u = CounterNoise(sample_seeds(0, range(4)), dtype).uniform(Dense(4), (5000,), field="x", step=0)
    assert float(u.max()) < 1


SIZES = torch.randint(1, 12, (32,), generator=torch.Generator().manual_seed(0))


def draw(indices: torch.Tensor, kind: str, purpose: str, extra: int = 0, seed: int = 0) -> list[torch.Tensor]:
    """The real rows of each sample."""
    noise, sizes = CounterNoise(sample_seeds(seed, indices)), SIZES[indices]
    padded = Padded.from_sizes(sizes, int(sizes.max()) + extra)
    call = getattr(noise, purpose)
    if kind == "dense":
        return list(call(Dense(len(indices)), (3, 5), field="f", step=4))
    if kind == "padded":
        x = call(padded, (3,), field="f", step=4)
        return [v[:n] for v, n in zip(x, sizes.tolist(), strict=True)]
    if kind == "pairs":
        layout = Pairs(padded.mask)
        x = layout.restrict(call(layout, (3,), field="f", step=4))
        return [v[:n, :n] for v, n in zip(x, sizes.tolist(), strict=True)]
    x = call(
        Ragged(torch.repeat_interleave(torch.arange(len(sizes)), sizes), len(sizes)), (3,), field="f", step=4
    )
    return list(x.split(sizes.tolist()))


@pytest.mark.parametrize("purpose", ["normal", "uniform"])
@pytest.mark.parametrize("kind", ["dense", "padded", "pairs", "ragged"])
def test_batch_invariance_bitwise(kind: str, purpose: str) -> None:
    whole = draw(torch.arange(32), kind, purpose)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    for batch, extra in ((1, 0), (1, 3), (5, 0), (7, 9), (32, 1)):
        for part in order.split(batch):
            for i, x in zip(part.tolist(), draw(part, kind, purpose, extra), strict=True):
                assert torch.equal(x, whole[i])
    assert not torch.equal(draw(torch.arange(32), kind, purpose, seed=1)[2], whole[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_vector_width_and_threads_change_no_bit(dtype: torch.dtype, threads: int) -> None:
    """Kernels treat the ends of memory, and of each thread's share, apart: an element must not notice where it lies."""
    seeds, before = sample_seeds(0, range(5)), torch.get_num_threads()
    longest = CounterNoise(seeds[2:3], dtype).normal(Dense(1), (70_001,), field="x", step=0)[0]
    try:
        torch.set_num_threads(threads)
        for n in (*range(1, 40), 3072, 70_001):
            x = CounterNoise(seeds, dtype).normal(Dense(5), (n,), field="x", step=0)
            assert torch.equal(x[2], longest[:n]), n
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("purpose", ["normal", "uniform"])
def test_ragged_equals_padded_bitwise(purpose: str) -> None:
    for a, b in zip(
        draw(torch.arange(32), "ragged", purpose), draw(torch.arange(32), "padded", purpose), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "noise",
    [CounterNoise(sample_seeds(0, range(300))), GeneratorNoise(torch.Generator().manual_seed(0))],
    ids=["counter", "generator"],
)
def test_pairs_are_symmetric_and_standard(noise: Noise) -> None:
    layout = Pairs(torch.ones(300, 9, dtype=torch.bool))
    for x, mean, variance in (
        (noise.normal(layout, (2,), field="b", step=0), 0.0, 1.0),
        (noise.uniform(layout, (2,), field="b", step=0), 0.5, 1 / 12),
    ):
        assert torch.equal(x, x.transpose(1, 2))
        i, j = torch.tril_indices(9, 9, -1)
        rows = x[:, i, j].flatten()
        assert abs(float(rows.mean()) - mean) < 4 * math.sqrt(variance / len(rows))
        assert float(rows.var()) == pytest.approx(variance, rel=0.05)
        flat = x[:, i, j, 0]
        correlation = torch.corrcoef(flat.T) - torch.eye(len(i))
        assert float(correlation.abs().max()) * math.sqrt(300) < 5


def test_nothing_to_draw() -> None:
    noise = CounterNoise(sample_seeds(0, range(2)))
    assert noise.normal(Dense(2), (0,), field="x", step=0).shape == (2, 0)
    empty = Ragged(torch.zeros(0, dtype=torch.int64), 2)
    assert noise.uniform(empty, (3,), field="x", step=0).shape == (0, 3)
    assert noise.normal(Pairs(torch.ones(2, 1, dtype=torch.bool)), (), field="b", step=0).shape == (2, 1, 1)


def test_every_sample_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="a seed for each of 3 samples, given 5"):
        CounterNoise(sample_seeds(0, range(5))).normal(Dense(3), (2,), field="x", step=0)
