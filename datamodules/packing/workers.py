"""The processes that write the shards of a packing job."""

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from ldis_lightning.datamodules.packing.job import MOST_PROBLEMS, Job
from ldis_lightning.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_POLL = 0.1  # seconds between two looks at the workers' progress, and at whether their parent is alive


def run(job: Job, numbers: list[int], workers: int, progress: bool) -> list[str]:
    """Write shards of a job in so many processes; in this one if that is one.

    Returns:
        What is wrong with samples, in their order. Once there is enough to say, no further shard is begun.

    Raises:
        UserError: a worker was killed.
    """
    total = sum(job.frames(number) for number in range(len(job.plan)))
    kept = total - sum(job.frames(number) for number in numbers)
    settings = {"total": total, "initial": kept, "desc": "pack", "unit": " frames", "disable": not progress}
    workers = min(workers, len(numbers))
    if workers <= 1:
        with tqdm(**settings) as bar:
            return _problems((number, job.write_shard(number, bar.update)) for number in numbers)
    with _processes(job, workers) as (executor, done):
        futures = {executor.submit(_write, number): number for number in numbers}
        with tqdm(**settings) as bar:  # not earlier: its thread should not be there when the processes are forked
            return _problems(_results(futures, lambda: bar.update(kept + done.value - bar.n)))


def _problems(results: Iterable[tuple[int, list[str]]]) -> list[str]:
    found: dict[int, list[str]] = {}
    for number, problems in results:
        found[number] = problems
        if sum(map(len, found.values())) >= MOST_PROBLEMS:
            break
    return [problem for number in sorted(found) for problem in found[number]]


def _results(futures: dict[Future, int], show: Callable[[], object]) -> Iterator[tuple[int, list[str]]]:
    pending = set(futures)
    try:
        while pending:
            finished, pending = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
            show()
            yield from ((futures[future], future.result()) for future in finished)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory. The same command continues with what is missing; "
            "--workers takes fewer processes."
        ) from error


@contextmanager
def _processes(job: Job, workers: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Worker processes that know a job, and their common count of frames done. On exit they end, whatever they do."""
    context = get_context("fork" if sys.platform == "linux" else "spawn")  # a forked worker starts at once
    done, stop = context.Value("q", 0), context.Value("b", 0)
    executor = ProcessPoolExecutor(workers, context, _begin, (job, done, stop, os.getpid()))
    try:
        yield executor, done
    finally:
        stop.value = 1
        executor.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}  # what `_begin` was given, in a worker process


def _begin(job: Job, done: Any, stop: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal, and the parent decides
    _worker.update(job=job, done=done)
    gc.freeze()  # what was there before is not to be looked through again and again
    _keep_memory()
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()


def _keep_memory() -> None:
    """Let this process use freed memory again, which getting it from the system for each picture would triple the time.

    An option of glibc; other systems have none and go on as they are.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**25)
        mallopt(_M_TRIM_THRESHOLD, 2**30)


def _end_with(parent: int, stop: Any) -> None:
    """End this process when its parent wants no more, or was killed: it would wait for work for ever."""
    while os.getppid() == parent and not stop.value:
        time.sleep(_POLL)
    os._exit(1)


def _write(number: int) -> list[str]:
    return _worker["job"].write_shard(number, _count)


def _count(frames: int) -> None:
    with _worker["done"].get_lock():
        _worker["done"].value += frames
