"""One packing job: what a worker process must know to write a shard, and what is kept of it on the disk."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ldis_lightning import __version__
from ldis_lightning.datamodules import index
from ldis_lightning.datamodules.index import Shard
from ldis_lightning.datamodules.packing.packer import Item, LeaveOut, Packer
from ldis_lightning.datamodules.shards import ShardFile, shard_name
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import UNREADABLE, inspect_files, shrink_pair

MOST_PROBLEMS = 5  # as many are listed in one message, and then packing stops
DAMAGED = "samples that are damaged or do not fit"


class Record(NamedTuple):
    """What is kept of a finished shard beside its index rows."""

    shard: Shard
    left_out: Counter[str]  # reason -> samples
    damaged: list[str]  # at most one message of many


@dataclass
class Job:
    """Everything a worker must know. `folder` holds finished shards in `new` and their records in `rows`."""

    packer: Packer
    items: list[Item]
    plan: list[range]
    folder: Path
    name: str
    classes: dict[int, str]
    resize: int | None
    skip_damaged: bool

    def begin(self) -> None:
        """Keep what an interrupted run of the same job has left in the folder, and nothing else."""
        record, identity = self.folder / "job.json", self._identity()
        if not record.is_file() or record.read_text() != identity:
            for entry in self.folder.iterdir():
                if entry.name != "lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            record.write_text(identity)
        for name in ("new", "rows", "partial"):
            (self.folder / name).mkdir(exist_ok=True)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not finished, or whose sources have changed since."""
        return [number for number in range(len(self.plan)) if not self._is_finished(number)]

    def frames(self, number: int) -> int:
        """Frames of a shard, as planned."""
        return sum(len(self.items[position].parts) for position in self.plan[number])

    def write_shard(self, number: int, tick: Callable[[int], object]) -> list[str]:
        """Write a shard, calling `tick` with the frames of each sample as it is done.

        Returns:
            What is wrong with samples; the shard is finished where that is nothing.
        """
        partial = self.folder / "partial" / shard_name(number)
        file, left_out, problems = ShardFile(partial, self.name, self.classes), Counter[str](), list[str]()
        try:
            for position in self.plan[number]:
                item = self.items[position]
                try:
                    self._add(file, item)
                except LeaveOut as reason:
                    left_out[str(reason)] += 1
                except UserError as error:
                    problems += self._problems(item) or [str(error)]
                    left_out[DAMAGED] += 1
                    if len(problems) >= MOST_PROBLEMS and not self.skip_damaged:
                        break
                tick(len(item.parts))
            shard = file.close()
        finally:
            file.abandon()
        if problems and not self.skip_damaged:
            return problems
        partial.replace(self.folder / "new" / shard.name)
        file.rows.save(self.rows_path(number))
        self._write_record(number, Record(shard, left_out, problems[:1]))
        return []

    def rows_path(self, number: int) -> Path:
        """File of a shard's index rows, see `IndexBuilder.save`."""
        return self.folder / "rows" / f"{number:05d}.rows"

    def record(self, number: int) -> Record:
        """What was written last, and says that the shard is finished."""
        shard, left_out, damaged = json.loads(self._record_path(number).read_text(encoding="utf-8"))
        return Record(Shard(*shard), Counter(left_out), damaged)

    def _add(self, file: ShardFile, item: Item) -> None:
        pairs = (self._read(part, item.key) for part in item.parts)
        if item.is_clip:
            file.add_clip(item.key, pairs, len(item.parts), item.source)
        else:
            file.add_image(item.key, *next(pairs), item.source)

    def _read(self, part: Any, key: str) -> tuple[bytes, bytes]:
        for path in _paths(part):
            if path.exists() and not path.is_file():  # a pipe or a device would never end
                raise UserError(f"{path} cannot be read: it is a folder, a pipe or a device.")
        try:
            jpg, png = self.packer.read(part)
        except UNREADABLE as error:
            where = getattr(error, "filename", None) or _names(part, key)[0]
            raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
        return (jpg, png) if self.resize is None else shrink_pair(jpg, png, self.resize, *_names(part, key))

    def _problems(self, item: Item) -> list[str]:
        """What is wrong with each frame of a sample that was refused, under the names of their files."""
        problems = []
        for part in item.parts:
            try:
                inspect_files(*self._read(part, item.key), *_names(part, item.key))
            except UserError as error:
                problems.append(str(error))
            except LeaveOut:
                pass
        return problems

    def _record_path(self, number: int) -> Path:
        return self.folder / "rows" / f"{number:05d}.json"

    def _write_record(self, number: int, record: Record) -> None:
        partial = self.folder / "partial" / f"{number:05d}.json"
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.replace(self._record_path(number))

    def _is_finished(self, number: int) -> bool:
        shard, record = self.folder / "new" / shard_name(number), self._record_path(number)
        if not record.is_file() or not shard.is_file():
            return False
        parts = (part for position in self.plan[number] for part in self.items[position].parts)
        written = record.stat().st_mtime
        return all(path.is_file() and path.stat().st_ctime <= written for part in parts for path in _paths(part))

    def _identity(self) -> str:
        settings = {key: value for key, value in vars(self.packer).items() if not key.startswith("_")}
        options = [self.name, sorted(self.classes.items()), self.resize, self.skip_damaged, list(map(str, self.plan))]
        packer = [type(self.packer).__qualname__, settings]
        versions = [__version__, index.VERSION]
        text = json.dumps([versions, packer, options, self.items], default=str, sort_keys=True)
        return json.dumps({"job": hashlib.sha256(text.encode()).hexdigest()}) + "\n"


def _paths(part: Any) -> list[Path]:
    return [value for value in (part if isinstance(part, tuple) else (part,)) if isinstance(value, Path)]


def _names(part: Any, key: str) -> tuple[str, str]:
    """What messages call the picture and the label map of a part."""
    image, mask, *_ = [*map(str, _paths(part)), None, None]
    return image or f"the image of {key}", mask or f"the mask of {key}"
