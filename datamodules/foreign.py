"""Indexing WebDataset shards that are there already, whoever wrote them, without packing them again.

Shards are untrusted: members are found with `tarfile` and never extracted, only JPEG headers, PNG label maps and small
JSON are read, and everything else is left alone.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from ldis_lightning.datamodules import index
from ldis_lightning.datamodules.index import Row, Shard, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.pictures import inspect_pair
from ldis_lightning.datamodules.shards import valid_class_ids
from ldis_lightning.errors import UserError

MAX_PICTURE_BYTES = 2**28
MAX_JSON_BYTES = 2**20
BLOCK = 512  # a tar is made of such blocks, and ends with one of zeros at least

_NAME = re.compile(r"(?P<key>(?:.*/|)[^./]+)\.(?P<ending>[^/]*)")  # as WebDataset cuts names: at the first dot
_ENDING = re.compile(r"(?:(?P<frame>\d{1,9})\.)?(?P<kind>jpg|jpeg|png)", re.IGNORECASE)


class _Member(NamedTuple):
    name: str
    offset: int
    size: int

    @property
    def span(self) -> tuple[int, int]:
        return self.offset, self.size


@dataclass
class _Sample:
    """The members of one key; `frames` maps the number of a frame (-1 for an image) to its picture and mask."""

    key: str
    frames: dict[int, dict[str, _Member]] = field(default_factory=dict)
    description: _Member | None = None


def index_folder(
    folder: str | Path, name: str | None = None, classes: dict[int, str] | None = None, progress: bool = False
) -> ShardIndex:
    """Index the local WebDataset shards (`*.tar`) of a folder and write the index into it.

    A sample is `KEY.jpg` (or `.jpeg`) with its label map `KEY.png`, or a clip, `KEY.00000.jpg`, `KEY.00000.png`,
    `KEY.00001.jpg`, and so on. Other members are left alone.

    Args:
        folder: where the shards lie, and the index will.
        name: name of the data set; by default that of the index already there, or else the folder's.
        classes: class id -> name, by default those of the index already there and of the samples' JSON.
        progress: show a progress bar.

    Raises:
        UserError: a shard is cut short, damaged or unsafe, or a sample is incomplete; the message names shard and key.
    """
    folder = Path(folder)
    paths = _shard_paths(folder)
    previous = _previous_header(folder)
    builder, shards = IndexBuilder(), list[Shard]()
    named: dict[int, str] = {}
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size, unit="B", unit_scale=True, desc=folder.resolve().name, disable=not progress) as bar:
        for path in paths:
            try:
                _index_shard(path, len(shards), builder, named)
                shards.append(_described(path, shards))
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}.") from error
            bar.update(path.stat().st_size)
    if not len(builder):
        raise UserError(f"no sample of KEY.jpg and KEY.png is in the shards of {folder}. {_endings(paths[0])}")
    named |= {int(number): text for number, text in previous.get("classes", {}).items()}
    named |= valid_class_ids(classes or {})
    try:
        builder.write(folder, name or previous.get("name") or folder.resolve().name, named, shards)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written, and the index must lie beside the shards: {error.strerror}."
        ) from error
    return ShardIndex.open(folder)


def _shard_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder. Give the folder that holds the shards.")
    paths = sorted(path for path in folder.glob("*.tar") if path.is_file())
    if paths:
        return paths
    packed = sorted([*folder.glob("*.tar.*"), *folder.glob("*.tgz")])
    if packed:
        raise UserError(
            f"{packed[0]} is compressed, so that its members cannot be read by their offset: unpack it to .tar."
        )
    raise UserError(f"{folder} holds no .tar shards.")


def _previous_header(folder: Path) -> dict[str, Any]:
    """The header that is there already, so that its names survive; `{}` where there is none or a damaged one."""
    path = folder / index.HEADER
    try:
        return index.parse_header(path) if path.is_file() else {}
    except ValueError:
        return {}


def _described(path: Path, others: list[Shard]) -> Shard:
    shard = Shard(path.name, path.stat().st_size, index.sha256_of_file(path))
    for other in others:
        if other.sha256 == shard.sha256:
            raise UserError(f"{path} and {other.name} are the same shard: remove one of them.")
    return shard


def _index_shard(path: Path, number: int, builder: IndexBuilder, named: dict[int, str]) -> None:
    with path.open("rb") as stream:
        for sample in _samples(path):
            _check_complete(path, sample)
            clip = -1 if set(sample.frames) <= {-1} else builder.add_clip(sample.key)
            for frame in sorted(sample.frames):
                builder.add(_row(path, stream, sample, frame, clip, number))
            if sample.description is not None:
                named |= _class_names(_read(stream, sample.description, MAX_JSON_BYTES, path)) | named


def _row(path: Path, stream: IO[bytes], sample: _Sample, frame: int, clip: int, shard: int) -> Row:
    image, mask = sample.frames[frame]["image"], sample.frames[frame]["mask"]
    key = image.name.rsplit(".", 1)[0]
    jpg, png = (_read(stream, member, MAX_PICTURE_BYTES, path) for member in (image, mask))
    size, pixels = inspect_pair(jpg, png, f"{key} in {path}")
    return Row(key, clip, frame, size, shard, image.span, mask.span, pixels)


def _read(stream: IO[bytes], member: _Member, limit: int, path: Path) -> bytes:
    if member.size > limit:
        raise UserError(f"{member.name} in {path} has {member.size} bytes, more than {limit}: make it smaller.")
    stream.seek(member.offset)
    return stream.read(member.size)


def _class_names(data: bytes) -> dict[int, str]:
    """Names of classes in a `KEY.json` as `ShardWriter` writes it; anything else gives none."""
    try:
        description = json.load(BytesIO(data))
        pairs = zip(description["class_ids"], description["class_names"], strict=True)
        return valid_class_ids({int(number): str(name) for number, name in pairs})
    except (ValueError, KeyError, TypeError, RecursionError, UserError):
        return {}


def _samples(path: Path) -> Iterator[_Sample]:
    """Samples of a shard in the order of its file."""
    samples: dict[str, _Sample] = {}
    for member in _members(path):
        match = _NAME.fullmatch(member.name)
        if not match:
            continue
        key, ending = match["key"], match["ending"]
        picture = _ENDING.fullmatch(ending)
        if picture:
            sample = samples.setdefault(key, _Sample(key))
            frame = -1 if picture["frame"] is None else int(picture["frame"])
            kind = "mask" if picture["kind"].lower() == "png" else "image"
            if kind in sample.frames.setdefault(frame, {}):
                raise UserError(f"{member.name} in {path} is the second {kind} of its sample: keys must differ.")
            sample.frames[frame][kind] = member
        elif ending.lower() == "json":
            samples.setdefault(key, _Sample(key)).description = member
    yield from (sample for sample in samples.values() if sample.frames)


def _check_complete(path: Path, sample: _Sample) -> None:
    if -1 in sample.frames and len(sample.frames) > 1:
        raise UserError(f"{sample.key} in {path} is both an image and a clip: rename one of them.")
    for frame, members in sample.frames.items():
        missing = {"image", "mask"} - set(members)
        if missing:
            what = sample.key if frame < 0 else f"frame {frame} of {sample.key}"
            raise UserError(
                f"{what} in {path} has no {missing.pop()}: every KEY.jpg needs its KEY.png. "
                "Is the shard cut short, or written from an incomplete folder?"
            )


def _members(path: Path) -> Iterator[_Member]:
    """Regular members of a tar, after a check that it is whole and safe.

    `tarfile` alone takes a file that was cut between two members, or whose headers are damaged, for a shorter one.
    """
    size = path.stat().st_size
    last, end = "its beginning", 0
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK * info.isreg()
                if info.isreg() and info.offset_data + info.size > size:
                    raise UserError(f"{path} is cut short inside {info.name}: fetch or write it again.")
                _check_safe(path, info)
                last = info.name
                if info.isreg():
                    yield _Member(info.name, info.offset_data, info.size)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is cut short or damaged after {last} ({error}): fetch or write it again.") from error
    with path.open("rb") as stream:
        stream.seek(end)
        if stream.read(BLOCK) != bytes(BLOCK):
            raise UserError(f"{path} is cut short or damaged after {last} (no end mark): fetch or write it again.")


def _check_safe(path: Path, info: tarfile.TarInfo) -> None:
    if info.issym() or info.islnk():
        raise UserError(f"{info.name} in {path} is a link: shards must hold the files themselves.")
    if not (info.isreg() or info.isdir()) or info.issparse() or info.size < 0:
        raise UserError(f"{info.name} in {path} is no ordinary file: write the shard without it.")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise UserError(f"{info.name} in {path} points outside its folder: such names are refused.")
    if not info.name.isprintable():
        raise UserError(f"{info.name!r} in {path} holds characters that cannot be printed: rename it.")


def _endings(path: Path) -> str:
    endings = {match["ending"] for member in _members(path) if (match := _NAME.fullmatch(member.name))}
    listed = ", ".join(f".{ending}" for ending in sorted(endings)[:8])
    return f"{path.name} holds members that end in {listed}." if listed else f"{path.name} holds no files."
