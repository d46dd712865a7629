"""How a data set of a million samples behaves: `ldis bench index` makes one and measures opening, planning and memory.

The data set is real, with pictures that can be decoded, but its shards are a few files under many names (hard links),
so that it takes little disk. Everything is measured in fresh processes.
"""

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.datamodules.index import Shard, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.shards import ShardFile, shard_name
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import write_label_map

SHARD = 1000  # samples of a shard
SIDE = 16  # pixels of a picture
FEWEST_FILES = 4  # different shards
MARKS = 5  # times that memory is looked at


class Memory(NamedTuple):
    """Memory of this process, in MB: resident, and of that its own share (None where the system does not tell)."""

    resident: float
    share: float | None


class Mark(NamedTuple):
    """A look at a worker that plans."""

    worker: int
    batches: int  # that it has planned
    seconds: float  # of its processor
    memory: Memory


def main(args: Sequence[str]) -> int:
    """Run the benchmark and print its figures.

    Raises:
        UserError: an argument is wrong, or the data set cannot be written.
    """
    parser = Parser(
        "ldis bench index",
        "Make an index of many samples (shards of tiny pictures, hard links to a few files) and measure, in fresh "
        "processes, how long it takes to open and to the first batch, what planning costs and how memory grows.",
    )
    number = at_least(1)
    parser.add_argument("--samples", type=number, default=1_000_000, metavar="N", help="(default: 1000000)")
    parser.add_argument("--classes", type=number, default=10_000, metavar="N", help="at most 65000 (default: 10000)")
    parser.add_argument("--batches", type=number, default=100_000, metavar="N", help="to plan (default: 100000)")
    parser.add_argument("--batch", type=number, default=16, metavar="N", help="episodes of a batch (default: 16)")
    parser.add_argument("--workers", type=number, default=2, metavar="N", help="loading processes (default: 2)")
    parser.add_argument("--out", metavar="DIR", help="keep the data set there, or use the one that is there")
    parsed = parser.parse(list(args))
    with tempfile.TemporaryDirectory(prefix="ldis-bench-") as temporary:
        folder = Path(parsed.out or temporary) / f"index-{parsed.samples}-{parsed.classes}"
        if not (folder / "index.json").is_file():
            took = timed(partial(make, folder, parsed.samples, parsed.classes))
            _print("making the data set", f"{took:.1f} s")
        report(folder, parsed.batch, parsed.workers, parsed.batches)
    return 0


def report(folder: Path, batch: int, workers: int, batches: int, methods: Sequence[str] = ("fork", "spawn")) -> None:
    """Measure a data set, with workers started by these methods, and print a line for each figure."""
    size = sum(path.stat().st_size for path in folder.rglob("*.npy"))
    header = (folder / "index.json").stat().st_size
    _print("columns, header", f"{size / 1e6:.0f} MB, {header / 1e6:.2f} MB")
    rows, seconds, before, after = _alone(opening, folder)
    _print("opening, with all checks", f"{seconds:.2f} s for {rows:,} rows; {before:.0f} -> {after.resident:.0f} MB")
    _print("opening again in a worker", f"{_alone(reopening, folder):.2f} s")
    seconds, memory = _alone(planning_set_up, folder, batch)
    _print("plan", f"{seconds:.2f} s; {_megabytes(memory)}")
    _print("first batch, 0 workers", f"{_alone(first_batch, folder, batch, 0, None):.2f} s")
    for method in methods:
        _print(
            f"first batch, {workers} workers ({method})", f"{_alone(first_batch, folder, batch, workers, method):.2f} s"
        )
    for mark in _alone(planning, folder, batch, workers, batches, True):
        figure = f"{mark.seconds / mark.batches * 1e3:.3f} ms a batch; {_megabytes(mark.memory)}"
        _print(f"worker {mark.worker} after {mark.batches:,} batches", figure)


# ---- The data set


def make(folder: Path, samples: int, classes: int, progress: bool = True) -> ShardIndex:
    """Write a data set of so many samples of two classes each, in shards that are a few files under many names.

    Args:
        folder: to make.
        samples: number of samples.
        classes: number of classes; every one occurs in about equally many samples.
        progress: show a progress bar.

    Raises:
        UserError: there are too many classes, or the folder cannot be written.
    """
    if not 2 <= classes <= 65_000:
        raise UserError(f"--classes is {classes}, and must be 2 to 65000: class ids have 16 bits.")
    ids = [number for number in range(1, classes + 2) if number != IGNORE_INDEX][:classes]
    names = {number: f"class {number}" for number in ids}
    whole, rest = divmod(samples, SHARD)
    files = min(whole, max(FEWEST_FILES, -(-classes // SHARD)))
    if folder.exists():
        raise UserError(f"{folder} is there already and not whole: delete it.")
    try:
        folder.mkdir(parents=True)
        builder, shards = IndexBuilder(), list[Shard]()
        made = [_Repeated(folder / shard_name(number), number, names, SHARD) for number in range(files)]
        for number in tqdm(range(whole), "shards", disable=not progress):
            shards.append(made[number % files].add(builder, number))
        if rest:
            shards.append(_Repeated(folder / shard_name(whole), whole, names, rest).add(builder, whole))
        builder.write(folder, "benchmark", names, shards)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error
    return ShardIndex.open(folder)


class _Repeated:
    """A shard of samples of two classes each, and its rows, to be used again under other names."""

    def __init__(self, path: Path, number: int, classes: dict[int, str], samples: int) -> None:
        rng = np.random.default_rng(number)
        ids = np.resize(np.roll(list(classes), -2 * SHARD * number), 2 * samples).reshape(-1, 2)
        pictures = [_jpeg(rng) for _ in range(16)]
        labels = np.zeros((SIDE, SIDE), np.uint16)
        file = ShardFile(path, "benchmark", classes)
        for sample, (left, right) in enumerate(rng.permutation(ids)):
            labels[:, : SIDE // 2], labels[:, SIDE // 2 :] = left, right
            file.add_image(f"{number:06d}_{sample:04d}", pictures[sample % 16], write_label_map(labels))
        self._path, self._shard = path, file.close()
        self._rows = file.rows.arrays()

    def add(self, builder: IndexBuilder, number: int) -> Shard:
        """Append the rows as those of a shard of this number, with keys of their own."""
        path = self._path.with_name(shard_name(number))
        if path != self._path:
            os.link(self._path, path)
        keys = self._rows["key_text"].reshape(len(self._rows["clip"]), -1).copy()
        keys[:, :6] = np.frombuffer(f"{number:06d}".encode(), np.uint8)
        builder.add_arrays(self._rows | {"key_text": keys.ravel()})
        return self._shard._replace(name=path.name)


def _jpeg(rng: np.random.Generator) -> bytes:
    stream = BytesIO()
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


# ---- What is measured, each in a process of its own


def opening(folder: Path) -> tuple[int, float, float, Memory]:
    """Rows of an index, seconds to open it, and memory (MB) before and after."""
    before = memory().resident
    start = time.perf_counter()
    index = ShardIndex.open(folder)
    return len(index), time.perf_counter() - start, before, memory()


def reopening(folder: Path) -> float:
    """Seconds that a spawned worker takes for an index that its parent has checked."""
    rebuild, arguments = ShardIndex.open(folder).__reduce__()
    return timed(partial(rebuild, *arguments))


def planning_set_up(folder: Path, batch: int) -> tuple[float, Memory]:
    """Seconds to draw up a plan and its first batch, and memory then."""
    from ldis_lightning.datamodules.plan import TrainingPlan
    from ldis_lightning.datamodules.source import EpisodeSource

    index = ShardIndex.open(folder)
    start = time.perf_counter()
    TrainingPlan(index, EpisodeSource(str(folder)), 0, batch).batch(0)
    return time.perf_counter() - start, memory()


def first_batch(folder: Path, batch: int, workers: int, start_method: str | None) -> float:
    """Seconds from a datamodule's settings to its first training batch."""
    from ldis_lightning.datamodules.episodes import EpisodeDataModule
    from ldis_lightning.datamodules.source import TrainingSource

    start = time.perf_counter()
    data = EpisodeDataModule(
        TrainingSource(str(folder)),
        {},
        image_size=SIDE,
        batch_size=batch,
        num_workers=workers,
        start_method=start_method,
    )
    data.setup("fit")
    next(iter(data.train_dataloader()))
    seconds = time.perf_counter() - start
    data.teardown("fit")
    return seconds


def planning(folder: Path, batch: int, workers: int, batches: int, progress: bool = False) -> list[Mark]:
    """Looks at forked loading workers that each plan so many batches without reading any, by worker."""
    from ldis_lightning.datamodules.plan import TrainingPlan
    from ldis_lightning.datamodules.source import EpisodeSource
    from ldis_lightning.datamodules.stream import TrainingSteps, Workers

    plan = TrainingPlan(ShardIndex.open(folder), EpisodeSource(str(folder)), 0, batch)
    loader = Workers(workers, "fork").load(TrainingSteps(plan, 0), Watch(batches))
    return sorted(tqdm(loader, "planning", total=workers * MARKS, leave=False, disable=not progress))


@dataclass
class Watch:
    """Stage that takes so many steps and says now and then, evenly, what they have cost since the first."""

    batches: int

    def __call__(self, steps: Iterable[Any]) -> Iterator[Mark]:
        """Marks, the first one after one batch."""
        from ldis_lightning.datamodules.stream import this_worker

        wanted = set(np.linspace(1, self.batches, MARKS).astype(int).tolist())
        start = time.process_time()
        for seen, _ in enumerate(islice(steps, self.batches), start=1):
            if seen in wanted:
                yield Mark(this_worker()[0], seen, time.process_time() - start, memory())


def memory() -> Memory:
    """Memory of this process."""
    try:
        lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
        kilobytes = {line[0]: int(line[1]) for line in lines}
        return Memory(kilobytes["Rss:"] / 1024, kilobytes["Pss:"] / 1024)
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Memory(most / (2**20 if sys.platform == "darwin" else 2**10), None)


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What some work gives, done in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        return executor.submit(work, *arguments).result()


def _megabytes(memory: Memory) -> str:
    share = "" if memory.share is None else f", its share of that {memory.share:.0f} MB"
    return f"{memory.resident:.0f} MB resident{share}"


def _print(what: str, figure: str) -> None:
    print(f"  {what:<38} {figure}", flush=True)
