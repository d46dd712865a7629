"""How fast packing is: `ldis bench pack` packs a tree of clips, and copies and hashes the same files, by turns."""

import hashlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.datamodules.packing.datasets.clips import Clips
from ldis_lightning.datamodules.packing.engine import cores, pack


def main(args: Sequence[str]) -> int:
    """Run the benchmark and print its figures.

    Raises:
        UserError: the tree cannot be packed.
    """
    parser = Parser(
        "ldis bench pack",
        "Pack a tree JPEGImages/<clip>/<frame>.jpg + Annotations/<clip>/<frame>.png, and copy and hash the same "
        "files on as many cores, by turns. Prints seconds and their ratio.",
    )
    parser.add_argument("src", metavar="SRC", help="folder of the tree")
    parser.add_argument("--out", metavar="DIR", help="folder on the disk to write to (default: the temporary one)")
    parser.add_argument("--runs", type=at_least(1), default=5, metavar="N", help="turns of each (default: 5)")
    parsed = parser.parse(list(args))
    src = Path(parsed.src)
    packer = Clips(src)
    files = [path for item in packer.survey().items for frame in item.parts for path in frame]
    for path in files:
        path.read_bytes()  # both find the files in memory
    contenders = {
        "copy + sha256": lambda out: copy_and_hash(files, src, out),
        "ldis data pack": lambda out: pack(packer, out / "packed", name="benchmark"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(parsed.runs + 1):
        for name, run in contenders.items():
            took = timed(run, parsed.out)
            if turn:  # the first is for warming up
                seconds[name].append(took)
    report(seconds, len(files), sum(path.stat().st_size for path in files))
    return 0


def copy_and_hash(files: Sequence[Path], src: Path, out: Path) -> None:
    """The baseline: copy every file and read the copy for its SHA-256, on all cores."""
    targets = [out / path.relative_to(src) for path in files]
    for folder in {target.parent for target in targets}:
        folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        pool.starmap(_copy_and_hash, zip(files, targets, strict=True), chunksize=8)


def _copy_and_hash(source: Path, target: Path) -> str:
    shutil.copyfile(source, target)
    with target.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def timed(run: Callable[[Path], object], place: str | None) -> float:
    """Seconds that a run takes in a new folder, with the disk at rest before."""
    with tempfile.TemporaryDirectory(prefix="ldis-bench-", dir=place) as out:
        if hasattr(os, "sync"):
            os.sync()
        start = time.perf_counter()
        run(Path(out))
        return time.perf_counter() - start


def report(seconds: dict[str, list[float]], files: int, size: int) -> None:
    """Print the medians, the spread and the ratio to the first contender, the baseline."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    baseline = next(iter(medians.values()))
    runs = len(seconds["ldis data pack"])
    print(f"{files} files, {size / 1e6:.0f} MB, {cores()} cores, {runs} runs")
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(
            f"  {name:<14} {median:6.2f} s  ({low:.2f} to {high:.2f})  {baseline / median:5.2f} of the baseline's speed"
        )
