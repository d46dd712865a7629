"""Data workers that are killed, signalled or left alone: an error within seconds or the same batches, never a hang."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorder import datamodule, digests
from tiny_sets import mixed_contents, write_images

from ldis_lightning.datamodules import stream
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.errors import UserError

pytestmark = [pytest.mark.filterwarnings("ignore:This DataLoader will create"), pytest.mark.timeout(120)]

SECONDS = 30
"""Within which a dead worker must be noticed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "set", mixed_contents(30)).folder


def ready(folder: Path, **settings: Any) -> EpisodeDataModule:
    data = datamodule(folder, **{"batches_per_epoch": 1000, "num_workers": 2, "start_method": "fork", **settings})
    data.setup("fit")
    return data


def workers_now() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def is_running(pid: int) -> bool:
    """Whether a process is there, and not just waits for its parent to hear of its end."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.1)
    return condition()


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message.startswith("a data worker (pid") and "\n" not in message
    assert "data.num_workers" in message and "data.batch_size" in message and "--ckpt_path" in message
    return message


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_killed_worker_is_an_error_within_seconds(folder: Path, start_method: str) -> None:
    data = ready(folder, start_method=start_method)
    before = set(workers_now())
    batches = iter(data.train_dataloader())
    next(batches)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        os.kill(max(set(workers_now()) - before), signal.SIGKILL)
        for _ in batches:
            pass
    assert time.monotonic() - started < SECONDS
    one_line(caught.value)
    del caught, batches
    data.teardown("fit")


def test_a_killed_worker_is_noticed_while_the_model_trains(folder: Path) -> None:
    """Torch raises its error wherever the training process is."""
    data = ready(folder)
    before = set(workers_now())
    batches = iter(data.train_dataloader())
    next(batches)
    with pytest.raises(UserError) as caught:
        os.kill(max(set(workers_now()) - before), signal.SIGKILL)
        time.sleep(SECONDS)  # a step of the model
    assert "is killed by signal: Killed" in one_line(caught.value)
    del caught, batches
    data.teardown("fit")


def test_a_killed_worker_of_evaluation(folder: Path) -> None:
    data = ready(folder, eval_batch_size=1)
    data.setup("test")
    before = set(workers_now())
    batches = iter(data.test_dataloader()[0])
    next(batches)
    with pytest.raises(UserError) as caught:
        os.kill(max(set(workers_now()) - before), signal.SIGKILL)
        for _ in batches:
            time.sleep(0.1)
    one_line(caught.value)


class BrokenConnection:
    """A stream whose worker was killed in the middle of handing over a tensor."""

    def __init__(self, seconds: float) -> None:
        self._workers = [multiprocessing.Process(target=time.sleep, args=(seconds,), daemon=True)]
        self._workers[0].start()

    def __next__(self) -> Any:
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_connection_that_breaks_is_a_death() -> None:
    with pytest.raises(UserError, match=r"^a data worker \(pid \d+\) is gone\. If memory ran out"):
        stream._next(BrokenConnection(0.2))  # pyright: ignore[reportArgumentType]


def test_a_connection_that_breaks_between_the_living_stays_as_it_is() -> None:
    broken = BrokenConnection(60)
    with pytest.raises(ConnectionResetError):
        stream._next(broken)  # pyright: ignore[reportArgumentType]
    broken._workers[0].kill()


def test_a_death_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the others end, torch may find the dead one again: that must not come down wherever we are by then."""

    def finds(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, finds)
    monkeypatch.setattr(stream, "_TOLD_OF", set())
    try:
        stream._explain_deaths.__wrapped__()
        handler: Any = signal.getsignal(signal.SIGCHLD)
        with pytest.raises(UserError, match="4711"):
            handler(signal.SIGCHLD, None)
        handler(signal.SIGCHLD, None)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_other_runtime_errors_stay_as_they_are() -> None:
    stream._explain(RuntimeError("the model's own"))
    with pytest.raises(UserError, match=r"^a data worker \(pid 3\) is killed by signal: Bus error\. If memory"):
        stream._explain(RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that"))


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_signals_to_all_processes_leave_the_workers_at_work(folder: Path, start_method: str) -> None:
    whole = ready(folder, num_workers=0, batches_per_epoch=12)
    expected = [digests(batch) for batch in whole.train_dataloader()]
    data = ready(folder, start_method=start_method, batches_per_epoch=12)
    before = set(workers_now())
    batches = iter(data.train_dataloader())
    found = [digests(next(batches)) for _ in range(2)]  # by now both workers are set up
    for worker in set(workers_now()) - before:
        for name in ("INT", "USR1", "USR2", *(["TERM"] if sys.platform == "linux" else [])):
            subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    assert found + [digests(batch) for batch in batches] == expected
    started = time.monotonic()
    data.teardown("fit")
    del batches
    assert wait_for(lambda: set(workers_now()) <= before)
    assert time.monotonic() - started < SECONDS


def _work_until_ended(ready: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # what a training process may have handed down
    stream.leave_signals_to_training(0)
    ready.set()
    while True:
        time.sleep(0.05)


def test_the_training_process_can_end_a_worker_that_does_not_listen() -> None:
    context = multiprocessing.get_context("fork")
    is_set_up = context.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stream._SIGNALS)
    worker = context.Process(target=_work_until_ended, args=(is_set_up,), daemon=True)
    worker.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert is_set_up.wait(SECONDS)
    if sys.platform == "linux":
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # somebody else
        worker.join(1)
        assert worker.is_alive()
    worker.terminate()
    worker.join(SECONDS)
    assert worker.exitcode == (0 if sys.platform == "linux" else -signal.SIGTERM)


SCRIPT = """
import signal
import sys
from multiprocessing import active_children
from ldis_lightning.datamodules import ShardIndex, TrainingPlan, TrainingSource
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.fetch import Collate, Fetch
from ldis_lightning.datamodules.stream import TrainingSteps, Workers, _next, _opened
from ldis_lightning.datamodules.treatment import Intact

if __name__ == "__main__":
    index = ShardIndex.open(sys.argv[1])
    steps = TrainingSteps(TrainingPlan(index, TrainingSource(sys.argv[1]), 0, 4), 0)
    stages = (steps, Fetch([FrameReader(index)], [Intact()], 16), Collate(evaluation=False))
    batches, interrupted = _opened(Workers(2, sys.argv[2]).load(*stages)), []
    signal.signal(signal.SIGINT, lambda *_: interrupted.append(1))  # as preemption is handled: between two batches
    _next(batches)
    print(*(process.pid for process in active_children()), flush=True)
    while not interrupted:
        _next(batches)
    for _ in range(10):  # more than are ready
        _next(batches)
    print("went on", flush=True)
"""


def in_background(folder: Path, start_method: str, tmp_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that draws batches until it is interrupted, in a process group of its own; its workers."""
    script = tmp_path / "draw.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), start_method],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("start_method", [pytest.param("fork", marks=pytest.mark.slow), "spawn"])
def test_ctrl_c_is_for_the_training_process_alone(folder: Path, start_method: str, tmp_path: Path) -> None:
    process, workers = in_background(folder, start_method, tmp_path)
    try:
        assert len(workers) == 2
        os.killpg(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (out, error, process.returncode) == ("went on\n", "", 0)
    assert wait_for(lambda: not any(map(is_running, workers)))


def test_workers_do_not_outlive_a_killed_training_process(folder: Path, tmp_path: Path) -> None:
    process, workers = in_background(folder, "fork", tmp_path)
    assert len(workers) == 2 and all(map(is_running, workers))
    process.kill()
    process.wait()
    assert wait_for(lambda: not any(map(is_running, workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_data_without_an_episode_do_not_hang(tmp_path: Path, workers: int) -> None:
    alone = write_images(tmp_path / "set", [[1], [2], [3]]).folder  # no class has a second picture
    started = time.monotonic()
    with pytest.raises(UserError, match="no image can be a query"):
        list(ready(alone, num_workers=workers).train_dataloader())
    assert time.monotonic() - started < SECONDS
