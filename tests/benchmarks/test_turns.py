import os
import time
from typing import Any

import pytest

from ldis_lightning.benchmarks import turns
from ldis_lightning.benchmarks.settings import Settings
from ldis_lightning.benchmarks.turns import Contender, Record, Runner, Unfit, Work, race
from ldis_lightning.errors import UserError

HERE = Settings("mid", "cpu", "32-true", compile=False, calls=1)
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch):
    monkeypatch.setattr(turns, "PRELOADED", ["torch"])


def taking(megabytes, settings):
    """What is allocated in the rehearsal at the tiny scale must not be counted, and is freed."""
    held = bytearray(b"x") * ((300 if settings.scale == "tiny" else megabytes) * MEGABYTE)
    return Work(lambda number: time.sleep(0.05 if held else 0), flops=megabytes)


def mistaken(settings):
    raise UserError("needs something")


def broken(settings):
    return Work(lambda number: [][number])


def dying(settings):
    return Work(lambda number: os._exit(9) if settings.scale == "mid" else None)


def too_large(settings):
    import torch

    raise torch.OutOfMemoryError("in the device's words")


def small(settings):
    return taking(40, settings)


def large(settings):
    return taking(400, settings)


@pytest.mark.timeout(200)
def test_contenders_are_timed_by_turns_and_their_memory_is_their_own():
    one, other = race([Contender(HERE, small), Contender(HERE, large)], turns=2, warmup=1)
    assert len(one.seconds) == len(other.seconds) == 2  # the warm-up does not count
    assert min(one.seconds + other.seconds) >= 0.05
    assert (one.flops, other.flops) == (40, 400)
    assert 380 * MEGABYTE < other.memory < 460 * MEGABYTE


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("build", "message"),
    [(mistaken, "needs something"), (too_large, "out of memory"), (dying, "its process was ended")],
)
def test_what_cannot_run_says_why(build, message):
    with pytest.raises(Unfit, match=message):
        race([Contender(HERE, build)], turns=1, warmup=0)


@pytest.mark.timeout(200)
def test_a_bug_in_a_contender_keeps_its_traceback():
    with Runner(Contender(HERE, broken)) as runner, pytest.raises(RuntimeError, match="IndexError"):
        runner.ready()
    assert runner.record == Record()


@pytest.mark.parametrize(
    ("alone", "events"), [(False, "A+ B+ A B A B B- A-"), (True, "A+ A A A- B+ B B B-")], ids=["by turns", "alone"]
)
def test_who_is_alive_while_another_runs(alone, events, monkeypatch):
    seen = []

    class Recorder:
        def __init__(self, contender):
            self.name, self.record = contender.build, Record()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            seen.append(f"{self.name}-")

        def ready(self):
            seen.append(f"{self.name}+")

        def turn(self, number, counted):
            assert counted == (number >= 1)
            seen.append(self.name)

    monkeypatch.setattr(turns, "Runner", Recorder)
    names: Any = ("A", "B")
    race([Contender(HERE, name) for name in names], turns=1, warmup=1, alone=alone)
    assert " ".join(seen) == events


def test_resident_memory_is_read_in_bytes():
    now, highest = turns.resident("VmRSS"), turns.resident("VmHWM")
    assert 10 * MEGABYTE < now <= highest < 1 << 40
