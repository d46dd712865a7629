import math
import zlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldis_lightning.randomness import integers, normal, uniform

MANY = torch.arange(2000) * 3 - 1000  # seeds as plain as can be: neighbours, zero, negative ones
WORD = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The published finaliser (Steele, Lea and Flood, 2014; Vigna's C code), in Python's integers."""
    z = state & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def test_the_reference_has_the_published_values() -> None:
    states = [1234567 + 0x9E3779B97F4A7C15 * i for i in (1, 2, 3)]
    assert [splitmix64(s) for s in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seed=st.integers(-(2**63), 2**63 - 1), stream=st.sampled_from(["noise", "sampling", "", "ünïcode"]))
@settings(max_examples=50, deadline=None)
def test_uniform_is_splitmix64(seed: int, stream: str) -> None:
    key = splitmix64(splitmix64(seed ^ (zlib.crc32(stream.encode()) << 24)))
    expected = [(splitmix64(key + i * 0x9E3779B97F4A7C15) >> 40) / 2**24 for i in (1, 2, 3)]
    assert uniform(torch.tensor([seed]), stream, (3,))[0].tolist() == expected


def test_a_draw_belongs_to_its_episode() -> None:
    seeds = torch.tensor([5, -3, 2**62])
    for draw in (uniform, normal):
        alone = torch.cat([draw(seed[None], "noise", (2, 3)) for seed in seeds])
        assert torch.equal(draw(seeds, "noise", (2, 3)), alone)
        assert torch.equal(draw(seeds.flip(0), "noise", (2, 3)), alone.flip(0))


def test_shapes() -> None:
    seeds = torch.arange(4)
    assert uniform(seeds, "a").shape == normal(seeds, "a").shape == integers(seeds, "a", 5).shape == (4,)
    assert uniform(seeds, "a", (2, 3)).shape == normal(seeds, "a", (2, 3)).shape == (4, 2, 3)


def test_uniform_is_uniform_across_seeds_and_positions() -> None:
    draws = uniform(MANY, "noise", (50,))
    assert draws.dtype == torch.float32
    assert 0 <= float(draws.min()) and float(draws.max()) < 1
    for axis in (0, 1):  # every position over all seeds, every seed over all positions
        n = draws.shape[axis]
        assert (draws.mean(axis) - 0.5).abs().max() < 5 / math.sqrt(12 * n)
    counts = torch.histc(draws, 20, 0, 1)
    expected = draws.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square with 19 degrees of freedom


def test_streams_seeds_and_positions_are_uncorrelated() -> None:
    draws = uniform(MANY, "noise", (2,))
    others = [uniform(MANY, "timestep"), uniform(MANY + 1, "noise"), draws[:, 1], draws[:, 0].roll(1)]
    for other in others:
        correlation = torch.corrcoef(torch.stack([draws[:, 0], other]))[0, 1]
        assert abs(float(correlation)) < 5 / math.sqrt(len(MANY))


def test_normal_has_the_normal_distribution() -> None:
    draws = normal(MANY, "noise", (50,)).flatten().double()
    assert bool(draws.isfinite().all())
    n = len(draws)
    assert abs(float(draws.mean())) < 5 / math.sqrt(n)
    assert abs(float(draws.var()) - 1) < 5 * math.sqrt(2 / n)
    for bound in (-2.0, -1.0, 0.0, 0.5, 1.5):
        share = float((draws < bound).double().mean())
        expected = 0.5 * (1 + math.erf(bound / math.sqrt(2)))
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


@given(high=st.integers(1, 2**24))
@settings(max_examples=30, deadline=None)
def test_integers_stay_below_their_bound(high: int) -> None:
    draws = integers(MANY, "timestep", high)
    assert draws.dtype == torch.int64
    assert 0 <= int(draws.min()) and int(draws.max()) < high


def test_integers_reach_every_value_alike() -> None:
    counts = torch.bincount(integers(MANY, "timestep", 10, (10,)).flatten(), minlength=10)
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 5 * math.sqrt(2000)
