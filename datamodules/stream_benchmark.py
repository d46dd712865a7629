"""How fast the training loader is: `ldis bench data` runs it, plain loaders of the same pictures and bare decoding by
turns.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from cProfile import Profile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.datamodules import photo_like, stream_baselines
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.fetch import Collate, Fetch
from ldis_lightning.datamodules.geometry import RandomCrop
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.source import EpisodeSource
from ldis_lightning.datamodules.stream import TrainingSteps, Workers
from ldis_lightning.datamodules.stream_baselines import Cut, Decoding, File
from ldis_lightning.datamodules.treatment import Intact
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.jpeg import Jpeg

BATCH_SIZE = 16
SHARDS = 8  # so that webdataset, which deals whole shards to workers, has some for each
PROFILED = 4  # batches
OURS, DECODING, WEBDATASET, FOLDER = "ldis", "decoding alone", "webdataset", "folder"


def main(args: Sequence[str]) -> int:
    """Run the benchmark and print its table.

    Raises:
        UserError: the arguments are wrong, or the data set cannot be read.
    """
    parser = Parser(
        "ldis bench data",
        "Load training episodes (read, check, decode, cut, collate), by turns: our loader, a plain webdataset\n"
        "pipeline and a plain folder Dataset, both with Pillow, and nothing but decoding the same JPEGs in full.",
    )
    parser.add_argument("--folder", metavar="DIR", help="a data set; pictures of it are copied (default: drawn ones)")
    parser.add_argument("--pictures", type=at_least(2), default=96, metavar="N", help="how many (default: 96)")
    parser.add_argument("--height", type=at_least(16), default=480, metavar="N", help="of drawn ones (default: 480)")
    parser.add_argument("--width", type=at_least(16), default=854, metavar="N", help="of drawn ones (default: 854)")
    parser.add_argument("--size", type=at_least(1), default=256, metavar="N", help="side of a square (default: 256)")
    parser.add_argument("--references", type=at_least(1), default=1, metavar="K", help="of an episode (default: 1)")
    parser.add_argument(
        "--workers", type=at_least(0), nargs="+", default=[0], metavar="N", help="0: in the main process (default: 0)"
    )
    parser.add_argument("--turns", type=at_least(1), default=3, metavar="N", help="turns of each (default: 3)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="length of a turn (default: 2)")
    parsed = parser.parse(list(args))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="ldis-bench-") as place:
            if parsed.folder:
                pairs = copied(ShardIndex.open(parsed.folder), parsed.pictures)
            else:
                generator = np.random.default_rng(0)
                pairs = (photo_like.encoded(generator, parsed.height, parsed.width) for _ in range(parsed.pictures))
            pictures = Pictures.write(Path(place), list(pairs))
            bench = Bench(pictures, parsed.size, parsed.references)
            print(bench.description())
            for workers in parsed.workers:
                report(bench.race(workers, parsed.turns, parsed.seconds), workers, parsed.references)
            print(bench.shares())
    finally:
        torch.set_num_threads(threads)
    return 0


def copied(index: ShardIndex, wanted: int) -> Iterator[tuple[bytes, bytes]]:
    """JPEG and PNG of some rows of a data set, evenly spaced among those that show a class.

    Raises:
        UserError: a shard cannot be read.
    """
    shown = np.flatnonzero(index.classes_per_row())
    for row in shown[:: max(1, len(shown) // wanted)][:wanted].tolist():
        with index.shard_file(int(index.shard[row])).open("rb") as stream:
            members = []
            for span in (index.image_span[row], index.mask_span[row]):
                stream.seek(int(span[0]))
                members.append(stream.read(int(span[1])))
            yield members[0], members[1]


@dataclass
class Pictures:
    """The same pictures in shards, in a folder and in memory."""

    index: ShardIndex
    files: list[File]
    jpegs: list[bytes]

    @classmethod
    def write(cls, place: Path, pairs: list[tuple[bytes, bytes]]) -> "Pictures":
        """Write pairs of JPEG and PNG as shards and as a folder.

        Raises:
            UserError: one is no sample, or there are not two of a class.
        """
        with ShardWriter(place / "shards", "benchmark", {}, -(-len(pairs) // SHARDS)) as writer:
            for number, (jpg, png) in enumerate(pairs):
                writer.add_image(f"{number:05d}", jpg, png)
        index, files = ShardIndex.open(place / "shards"), []
        (place / "folder").mkdir()
        for number, (jpg, png) in enumerate(pairs):
            path = place / "folder" / f"{number:05d}.jpg"
            file = File(path, path.with_suffix(".png"), [])
            file.image.write_bytes(jpg)
            file.mask.write_bytes(png)
            file.classes.extend(index.classes_of_row(number)[0].tolist())
            if file.classes:
                files.append(file)
        return cls(index, files, [jpg for jpg, _ in pairs])


@dataclass
class Bench:
    """The contenders.

    Args:
        pictures: what they load.
        size: side of the squares.
        references: K.
    """

    pictures: Pictures
    size: int
    references: int

    def race(self, workers: int, turns: int, seconds: float) -> dict[str, list[float]]:
        """Name of the contender -> pictures a second in each turn. Each works alone and is shut down after its turn."""
        rates: dict[str, list[float]] = {name: [] for name in self._contenders()}
        for turn in range(turns + 1):
            for name, load in self._contenders().items():
                found = _rate(load(workers), workers, seconds)
                if turn:  # the first is for warming up
                    rates[name].append(found)
        return rates

    def description(self) -> str:
        """What is loaded and by what."""
        index, jpegs = self.pictures.index, self.pictures.jpegs
        height, width = np.median(index.size, axis=0).astype(int).tolist()
        named = ", ".join(f"{name} {version(name)}" for name in ("simplejpeg", "Pillow", "webdataset", "torch"))
        return (
            f"{len(jpegs)} JPEGs of {height} x {width} pixels and {sum(map(len, jpegs)) / len(jpegs) / 1e3:.0f} kB; "
            f"squares of {self.size}, {self.references} reference(s), batches of {BATCH_SIZE}\n"
            f"{platform.machine()}, {named}"
        )

    def shares(self) -> str:
        """Where our loader's time goes, as its profile says, which favours what is a single call."""
        batches = iter(self.ours(0))
        next(batches)
        profile = Profile()
        profile.enable()
        for _ in range(PROFILED):
            next(batches)
        profile.disable()
        spent, total = _seconds(profile), sum(entry.inlinetime for entry in profile.getstats())
        of = {
            "crc": spent("crc32"),
            "read": spent(FrameReader._bytes) - spent("crc32"),
            "decode": spent(Jpeg.__init__) + spent(Jpeg.decode),
            "label map": spent(FrameReader._labels),
            "cut": spent(RandomCrop.__call__) - spent(Jpeg.decode),
            "collate": spent(Collate.batch),
            "plan": spent(TrainingPlan.batch),
        }
        of["rest"] = total - sum(of.values())
        return "shares of ldis: " + ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in of.items())

    def ours(self, workers: int) -> Iterable[Any]:
        """The loader of `EpisodeDataModule`."""
        index = self.pictures.index
        plan = TrainingPlan(index, EpisodeSource(str(index.folder)), 0, BATCH_SIZE, self.references)
        fetch = Fetch([FrameReader(index)], [Intact()], self.size, RandomCrop())
        return Workers(workers).load(TrainingSteps(plan, 0), fetch, Collate(evaluation=False))

    def _contenders(self) -> dict[str, Callable[[int], Iterable[int]]]:
        """Name -> given the number of workers, an endless loader that yields the pictures of each batch."""
        cut, urls = Cut(self.size, RandomCrop()), [str(path) for path in self.pictures.index.shard_paths]
        shape = self.references, BATCH_SIZE
        return {
            DECODING: lambda workers: torch.utils.data.DataLoader(
                Decoding(self.pictures.jpegs, simplejpeg.decode_jpeg, BATCH_SIZE), batch_size=None, num_workers=workers
            ),
            WEBDATASET: lambda workers: _Counted(stream_baselines.webdataset_loader(urls, cut, *shape, workers)),
            FOLDER: lambda workers: _Counted(stream_baselines.folder_loader(self.pictures.files, cut, *shape, workers)),
            OURS: lambda workers: _Counted(self.ours(workers)),
        }


def report(rates: dict[str, list[float]], workers: int, references: int) -> None:
    """Print the rates of all contenders and their ratios to the baselines, by medians."""
    median = {name: statistics.median(values) for name, values in rates.items()}
    against = (DECODING, WEBDATASET, FOLDER)
    print(f"\n{workers} workers" if workers else "\nin the main process")
    heading = "".join(f"{f'of {name}':>19}" for name in against)
    print(f"  {'':<15}{'images/s':>9}{'lowest to highest':>19}{'a core':>8}{'episodes/s a core':>19}{heading}")
    for name, rate in median.items():
        core = rate / max(1, workers)
        episodes = "-" if name == DECODING else f"{core / (1 + references):.1f}"
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        ratios = "".join(f"{rate / median[other]:>19.2f}" for other in against)
        print(f"  {name:<15}{rate:>9.0f}{spread:>19}{core:>8.0f}{episodes:>19}{ratios}")


def _rate(loader: Iterable[int], workers: int, seconds: float) -> float:
    """Pictures a second, once all workers are at it and nothing is left that they loaded before."""
    batches = _endless(loader)
    for _ in range(1 + 3 * workers):
        next(batches)
    pictures, start = 0, time.perf_counter()
    while not pictures or time.perf_counter() < start + seconds:
        pictures += next(batches)
    return pictures / (time.perf_counter() - start)


def _endless(loader: Iterable[int]) -> Iterator[int]:
    while True:
        yield from loader


@dataclass
class _Counted:
    """A loader that yields the pictures of each batch."""

    loader: Iterable[Any]

    def __iter__(self) -> Iterator[int]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch["query_mask"].shape[0] * (1 + batch["reference_mask"].shape[1])


def _seconds(profile: Profile) -> Callable[[Any], float]:
    """From a function, or part of the name of a built-in one, to the seconds in it and in what it called."""
    entries = profile.getstats()

    def spent(function: Any) -> float:
        if isinstance(function, str):
            return sum(entry.totaltime for entry in entries if isinstance(entry.code, str) and function in entry.code)
        return sum(entry.totaltime for entry in entries if entry.code is function.__code__)

    return spent
