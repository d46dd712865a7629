"""From a plan to a loader: which worker fetches which step, and where a stream begins.

The worker side is a `webdataset.DataPipeline`: plan -> steps -> read, decode, cut -> batches. All stages pickle, so
that workers may be forked or spawned. This module does not import Lightning, because spawned workers import it.
"""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, get_worker_info
from webdataset.pipeline import DataPipeline

from ldis_lightning.datamodules.damage import DamagedSample
from ldis_lightning.datamodules.fetch import Step
from ldis_lightning.datamodules.mixture import MixturePlan
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.source import REFERENCES, Episode, uniforms
from ldis_lightning.episode import ClipBatch, EpisodeBatch
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from ldis_lightning.datamodules.remote import Prefetch

_SIGNALS = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}  # by which a training process is told to stop


@dataclass
class TrainingSteps:
    """Source stage of training: global batches `start`, `start + 1`, ... without end; worker w of W takes every W-th.

    Args:
        plan: the training plan.
        start: number of the first global batch.
        fewest_references: every global batch has a number of references of its own, uniform from here to the plan's.
        rank: takes episodes `rank::world` of each global batch. Given explicitly, because spawned workers do not know
            it.
        world: number of ranks.
    """

    plan: TrainingPlan | MixturePlan
    start: int
    fewest_references: int | None = None
    rank: int = 0
    world: int = 1

    def __call__(self) -> Iterator[Step]:
        """Steps of this worker."""
        worker, workers = this_worker()
        for number in count(self.start + worker, workers):
            episodes = self.plan.batch(number, self.rank, self.world)
            kept = self.references(number, len(episodes[0].references))
            episodes = [episode._replace(references=episode.references[:kept]) for episode in episodes]
            first = number * self.plan.batch_size
            positions = range(first, first + self.plan.batch_size)[self.rank :: self.world]
            yield Step(episodes, [True] * len(episodes), list(positions))

    def references(self, number: int, most: int) -> int:
        """K of a global batch, equal on all ranks."""
        if self.fewest_references is None:
            return most
        draw = uniforms((REFERENCES, self.plan.seed, number), 1)[0]
        return min(most, self.fewest_references + int(draw * (most - self.fewest_references + 1)))


@dataclass
class EvaluationSteps:
    """Source stage of evaluation: rank r takes episodes r::world, in batches.

    Every rank runs equally many steps of equal sizes: where the episodes do not come out even, the last one is repeated
    with `valid` False.
    """

    episodes: list[Episode]
    batch_size: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        """Number of steps."""
        return -(-self._episodes_per_rank() // self.batch_size)

    def __call__(self) -> Iterator[Step]:
        """Steps of this worker."""
        worker, workers = this_worker()
        last = len(self.episodes) - 1
        positions = range(self.rank, self.world * self._episodes_per_rank(), self.world)
        for number in range(worker, len(self), workers):
            part = positions[number * self.batch_size : (number + 1) * self.batch_size]
            valid = [p <= last for p in part]
            places = [p if p <= last else -1 for p in part]
            yield Step([self.episodes[min(p, last)] for p in part], valid, places)

    def _episodes_per_rank(self) -> int:
        return -(-len(self.episodes) // self.world)


@dataclass
class Workers:
    """How batches are made ready.

    Args:
        number: worker processes; 0 to load in the training process.
        start_method: `fork`, `spawn` or `forkserver`; None for the platform's own.
        pin_memory: copy batches into page-locked memory, for a GPU.
    """

    number: int = 0
    start_method: str | None = None
    pin_memory: bool = False

    def load(self, *stages: Callable[..., Any]) -> DataLoader:
        """A loader over the batches of a pipeline, in the order of its first stage whatever the number of workers."""
        pipeline: Any = DataPipeline(*stages)
        return DataLoader(
            pipeline,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.number,
            multiprocessing_context=self.start_method if self.number else None,
            pin_memory=self.pin_memory,
            worker_init_fn=leave_signals_to_training,
            generator=torch.Generator(),  # else every pass would draw a seed, which no stage uses, from the global one
        )


class EvaluationLoader:
    """What Lightning iterates over in evaluation: a loader with its true length that raises users' errors cleanly.

    Args:
        workers: how batches are made ready.
        steps: the number of batches of this rank.
        stages: of the pipeline.
    """

    def __init__(self, workers: Workers, steps: int, *stages: Callable[..., Any]) -> None:
        self._loader, self._length = workers.load(*stages), steps

    def __len__(self) -> int:
        """Number of batches."""
        return self._length

    def __iter__(self) -> Iterator[EpisodeBatch | ClipBatch]:
        """All batches of this rank."""
        stream = _opened(self._loader)
        while (batch := _next(stream)) is not None:
            yield batch


class TrainingLoader:
    """What Lightning iterates over in training: some batches of the endless stream at a time.

    Nothing is opened before the first batch is asked for, because only then is it known where to begin. Workers live on
    from one pass to the next as long as passes follow each other.

    Args:
        length: batches of a pass.
        begin: called at the beginning of every pass, gives the number of its first global batch.
        open_stream: gives the loader whose first batch is the one of that number.
        note: called with every damaged sample that a batch had to do without; may raise.
        fetch_ahead: gives what fetches the remote shards of a stream from a global batch on.
    """

    def __init__(
        self,
        length: int,
        begin: Callable[[], int],
        open_stream: Callable[[int], DataLoader],
        note: Callable[[DamagedSample], None],
        fetch_ahead: Callable[[int], "Prefetch"],
    ) -> None:
        self._length, self._begin, self._open_stream, self._note = length, begin, open_stream, note
        self._fetch_ahead = fetch_ahead
        self._prefetch: Prefetch | None = None
        self._stream: Iterator[Any] | None = None
        self.position = 0
        """Number of the global batch that the open stream gives next."""

    def __len__(self) -> int:
        """Batches of a pass."""
        return self._length

    def __iter__(self) -> Iterator[EpisodeBatch]:
        """A pass."""
        begin = self._begin()
        stream = self._stream
        if stream is None or self.position != begin:
            self.close()
            stream = self._stream = _opened(self._open_stream(begin))
            self._prefetch = self._fetch_ahead(begin)  # a thread, so after workers were forked
            self._prefetch.start()
            self.position = begin
        for _ in range(self._length):
            try:
                batch = _next(stream)
            except Exception:
                self.close()  # the stream is past the batch that failed
                raise
            if self._prefetch is not None:
                self._prefetch.reached(self.position)
            for damage in batch.pop("damaged", ()):
                self._note(damage)
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the datamodule keeps the position. Its being there tells Lightning that the loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Stop the workers. A later pass starts new ones."""
        if self._prefetch is not None:
            self._prefetch.close()
        self._stream = self._prefetch = None


def this_worker() -> tuple[int, int]:
    """Number of this loading process, and how many there are; (0, 1) in the training process."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _unchanged(batch: Any) -> Any:
    return batch


def leave_signals_to_training(worker: int) -> None:
    """Set up a worker so that the training process decides when it ends.

    Ctrl-C, Slurm and systemd signal all processes of a run at once. A worker that went by that would end the run in an
    error, before the training process has saved a checkpoint. `_opened` keeps signals off until this is done.
    """
    for number in _SIGNALS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a worker goes by its SIGTERM
        threading.Thread(target=_end_when_told, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - {signal.SIGTERM})
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what was inherited from the training process
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


_ORPHANED_WITHIN = 5.0
"""Seconds between two looks at whether the training process is still there."""


def _end_when_told() -> None:
    """End the worker at the SIGTERM of the training process, and at no other; and when that process is gone."""
    training = multiprocessing.parent_process()
    while training is not None and training.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, _ORPHANED_WITHIN)
        if told is not None and told.si_pid == training.pid:
            break
    os._exit(0)


def _opened(loader: DataLoader) -> Iterator[Any]:
    """Begin to load. Workers start with our signals blocked, and so do all threads that they will have."""
    if not loader.num_workers:
        return iter(loader)
    if (loader.multiprocessing_context or multiprocessing).get_start_method() != "fork":
        resource_tracker.ensure_running()  # to start it later would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        stream = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _explain_deaths()
    return stream


def _next(stream: Iterator[Any]) -> Any:
    """The next batch, or None at the end.

    Raises:
        UserError: it cannot be read, or a worker is gone.
    """
    try:
        batch = next(stream, None)
    except RuntimeError as error:
        _explain(error)
        raise
    except (OSError, EOFError):  # a connection that broke, as a worker died in the middle of handing over a tensor
        _look_for_deaths(stream)
        raise
    if isinstance(batch, UserError):
        raise UserError(str(batch))  # `batch` itself would be tied to this frame, and keep the workers alive with it
    return batch


@cache
def _explain_deaths() -> None:
    """When a worker dies, torch raises an error wherever the training process is by then: let that be ours too.

    Waiting for the next batch finds out as well, but only later, and not at all where a message is cut short.
    """
    raises = signal.getsignal(signal.SIGCHLD)
    if not callable(raises) or threading.current_thread() is not threading.main_thread():
        return

    def handler(number: int, frame: Any) -> None:
        try:
            raises(number, frame)
        except RuntimeError as error:
            if (dead := _dead(error)) and dead <= _TOLD_OF:  # the end of another worker, after it has been said
                return
            _explain(error)
            raise

    signal.signal(signal.SIGCHLD, handler)


def _look_for_deaths(stream: Iterator[Any], seconds: float = 2.0) -> None:
    """Raise a line that says what to do, where a worker turns out to be dead within some seconds."""
    workers = getattr(stream, "_workers", ())
    end = time.monotonic() + seconds
    while workers and time.monotonic() < end:
        if dead := [str(worker.pid) for worker in workers if not worker.is_alive()]:
            _explain(RuntimeError(f"DataLoader worker (pid {', '.join(dead)}) is gone. "))
        time.sleep(0.01)


_TOLD_OF: set[str] = set()
"""Numbers of the dead workers that an error has been raised about."""


def _dead(error: RuntimeError) -> set[str]:
    """The numbers of the workers whose death an error of torch is about."""
    about = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return set(about[1].split(", ")) if about else set()


def _explain(error: RuntimeError) -> None:
    """Raise a line that says what to do, where an error of torch is about the death of a worker."""
    if dead := _dead(error):
        _TOLD_OF.update(dead)
        what = str(error).removeprefix("DataLoader ").partition(". ")[0].rstrip(". ")
        raise UserError(
            f"a data {what}. If memory ran out (of the machine, the job or /dev/shm), lower data.num_workers or "
            "data.batch_size; --data.num_workers 0 shows any other error. Then continue with --ckpt_path."
        ) from error
