import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldis_lightning.errors import UserError
from ldis_lightning.optim import OneCycle, WarmupConstant


def test_warmup_constant_rises_evenly_and_stays() -> None:
    schedule = WarmupConstant(4)
    assert [schedule.factor(step, -1) for step in range(7)] == [0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_the_paper_warms_up_for_10000_steps() -> None:
    schedule = WarmupConstant()
    assert schedule.factor(4999, 160_000) == 0.5
    assert schedule.factor(9998, 160_000) < 1 == schedule.factor(9999, 160_000)


def test_no_warmup_is_constant() -> None:
    assert [WarmupConstant(0).factor(step, -1) for step in range(3)] == [1, 1, 1]


def test_one_cycle_rises_and_falls_as_half_a_cosine() -> None:
    schedule = OneCycle(0.1)
    assert [schedule.factor(step, 100) for step in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert schedule.factor(10, 100) == 1
    assert schedule.factor(55, 100) == pytest.approx(0.5)
    assert schedule.factor(32, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 22 / 90)))
    assert schedule.factor(100, 100) == pytest.approx(0, abs=1e-12)


@given(warmup=st.floats(0, 0.99), total=st.integers(1, 300))
def test_one_cycle_is_one_cycle(warmup: float, total: int) -> None:
    factors = [OneCycle(warmup).factor(step, total) for step in range(total + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert all(factor > 0 for factor in factors[:total])  # no step of the run is without effect


def test_one_cycle_needs_an_end() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        OneCycle().factor(0, -1)


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_one_cycle_warms_up_for_a_share(warmup: float) -> None:
    with pytest.raises(UserError, match="warmup"):
        OneCycle(warmup)
