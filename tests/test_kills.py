"""Runs that are killed again and again, wherever they are, and end as one that nobody touched.

Every kill is a SIGKILL to all processes of a real `ldis fit`, data workers included; every resumption the same command
with `--ckpt_path last`. `pytest -m slow tests/test_kills.py` kills 20 times.
"""

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from survival_support import (
    arguments,
    assert_same,
    end_group,
    final,
    settings,
    start,
    steps_logged,
    wait_for,
)

RESUME = ("--ckpt_path", "last")
PATIENCE = 600
"""Seconds until something must have happened, on a machine that is busy with others."""


def config(out: Path, steps: int, *callbacks: dict[str, Any]) -> dict[str, Any]:
    """A run that saves two checkpoints every third step, with two data workers."""
    keep = {"save_last": True, "save_top_k": 1, "every_n_train_steps": 3}
    content = settings(out, *callbacks, keep=keep, max_steps=steps, val_check_interval=10)
    content["data"]["num_workers"] = 2
    return content


class Killer:
    """Starts the run, kills it at a moment drawn at random, and keeps count of what it has met.

    Args:
        world: where the data lie.
        out: where the run does.
        steps: of the whole run.
        seed: of the moments.
    """

    def __init__(self, world: Path, out: Path, steps: int, seed: int) -> None:
        self.world, self.out, self.random = world, out, random.Random(seed)
        slow = {"class_path": "survival_support.SlowDisk"}
        self.args = arguments(out, config(out, steps, slow), *RESUME)
        self.log = out / "log.txt"
        self.met: Counter[str] = Counter()
        self.begun = 0.0

    def kill_while_writing(self) -> None:
        """When a checkpoint is half written, some time after others."""
        with self._killed() as process:
            for _ in range(self.random.randint(0, 3)):  # writes that are not met
                wait_for(lambda: process.poll() is not None or self._writes(), PATIENCE)
                wait_for(lambda: process.poll() is not None or not self._writes(), PATIENCE)
            wait_for(lambda: process.poll() is not None or self._writes(), PATIENCE)
            time.sleep(self.random.random() * 0.4)

    def kill_anywhere(self) -> None:
        """At a random moment after some more checkpoints have been written."""
        with self._killed() as process:
            for _ in range(self.random.randint(1, 4)):
                before = self._times()
                wait_for(lambda before=before: process.poll() is not None or self._times() != before, PATIENCE)
            time.sleep(self.random.random() * 2)

    def kill_at_the_start(self) -> None:
        """While it is imported, built, or resumed."""
        with self._killed():
            time.sleep(self.random.random() * 10)

    def damage_the_newest(self) -> None:
        """As a file system may do that was not synchronised: cut it short, or change a byte."""
        newest = max(self._checkpoints(), key=lambda path: path.stat().st_mtime_ns, default=None)
        if newest is None or len(self._checkpoints()) < 2:
            return
        size = newest.stat().st_size
        kept = newest.stat()
        if self.random.random() < 0.5:
            os.truncate(newest, self.random.randrange(size))
        else:
            with newest.open("r+b") as file:
                file.seek(size // 2)
                byte = file.read(1)
                file.seek(size // 2)
                file.write(bytes([byte[0] ^ 255]))
        os.utime(newest, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        self.met["damaged"] += 1

    def finish(self) -> None:
        """Let it run to its end."""
        process = self._start()
        try:
            assert process.wait(3 * PATIENCE) == 0, self.log.read_text()[-3000:]
        finally:
            end_group(process)

    def _start(self) -> subprocess.Popen[bytes]:
        self.begun = time.time()
        return start(self.world, self.args, self.log)

    @contextmanager
    def _killed(self) -> Iterator[subprocess.Popen[bytes]]:
        """A run that is killed at the end of the block."""
        process = self._start()
        try:
            yield process
            ended = process.poll()
        finally:
            end_group(process)
        assert ended in (None, 0), self.log.read_text()[-3000:]  # it never ends in an error of its own
        self.met["killed" if ended is None else "too late"] += 1
        if ended is None and self._writes():
            self.met["while writing"] += 1

    def _checkpoints(self) -> list[Path]:
        return [path for path in self.out.rglob("*.ckpt") if not path.name.startswith(".")]

    def _writes(self) -> bool:
        """Whether a checkpoint is half written, and not by a run that was killed before."""
        for partial in self.out.rglob(".*.partial"):
            with suppress(FileNotFoundError):
                if partial.stat().st_mtime > self.begun:
                    return True
        return False

    def _times(self) -> set[tuple[str, int]]:
        found = set()
        for path in self._checkpoints():
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_mtime_ns))
        return found


@contextmanager
def beside(world: Path, out: Path, steps: int) -> Iterator[Callable[[], dict[str, Any]]]:
    """The run that nobody touches; what is given waits for its final state."""
    process = start(world, arguments(out, config(out, steps)), out / "log.txt")

    def result() -> dict[str, Any]:
        assert process.wait(3 * PATIENCE) == 0, (out / "log.txt").read_text()[-3000:]
        return final(out)

    try:
        yield result
    finally:
        end_group(process)


def check_end(killer: Killer, expected: dict[str, Any], steps: int) -> None:
    """The same weights and states bit for bit, every step done, nothing half written left, all in one folder."""
    assert_same(final(killer.out), expected)
    assert set(steps_logged(killer.out)) <= set(range(steps))
    (last,) = killer.out.rglob("last.ckpt")
    names = {path.name for path in last.parent.iterdir()}
    assert not [name for name in names if name.endswith((".partial", "-v1.ckpt"))], names


@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_twice(miniature_world: Path, tmp_path: Path) -> None:
    steps = 9
    with beside(miniature_world, tmp_path / "whole", steps) as whole:
        killer = Killer(miniature_world, tmp_path / "killed", steps, seed=1)
        killer.kill_anywhere()
        killer.kill_while_writing()
        killer.damage_the_newest()
        killer.finish()
        assert killer.met["killed"] + killer.met["too late"] == 2
        check_end(killer, whole(), steps)


@pytest.mark.slow
@pytest.mark.timeout(10800)
def test_a_run_that_is_killed_twenty_times(miniature_world: Path, tmp_path: Path) -> None:
    steps = 160  # more than 20 kills leave time for
    with beside(miniature_world, tmp_path / "whole", steps) as whole:
        expected = whole()
    killer = Killer(miniature_world, tmp_path / "killed", steps, seed=2)
    kinds = [killer.kill_while_writing] * 10 + [killer.kill_anywhere] * 6 + [killer.kill_at_the_start] * 4
    killer.random.shuffle(kinds)
    for number, kill in enumerate(kinds):
        kill()
        print(kill.__name__, dict(killer.met), sorted(path.name for path in killer.out.rglob("*.ckpt*")), flush=True)
        if number % 5 == 4:
            killer.damage_the_newest()
    killer.finish()
    assert killer.met["killed"] == 20
    assert killer.met["while writing"] >= 6
    check_end(killer, expected, steps)
