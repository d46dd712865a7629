"""Indexing WebDataset shards that are there already, whoever wrote them, without packing them again.

Shards are untrusted: members are found with `tarfile` and never extracted, only JPEG headers, PNG label maps and small
JSON are read, and everything else is left alone.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm
from zlib_ng.zlib_ng import crc32

from ldis_lightning.datamodules import index
from ldis_lightning.datamodules.index import Row, Shard, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.index_checks import is_class_id, is_name
from ldis_lightning.datamodules.shards import check_name, valid_class_ids
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import inspect_pair

MAX_PICTURE_BYTES = 2**28
MAX_JSON_BYTES = 2**20
MAX_EXTENDED_HEADER = 2**13  # bytes of all headers of a member; Python before 3.11.10 takes time with their square
BLOCK = 512  # a tar is made of such blocks, and ends with two of zeros
_CHUNK = 2**20

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
    folder = index.local_folder(folder)
    if name is not None:
        check_name(name)
    paths = _shard_paths(folder)
    previous_name, previous_classes = _previous_names(folder)
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
    named |= previous_classes | valid_class_ids(classes or {})
    try:
        builder.write(folder, name or previous_name or _name_of(folder), named, shards)
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


def _previous_names(folder: Path) -> tuple[str | None, dict[int, str]]:
    """The names of the data set and its classes in the index that is there already, of whatever version, so that they
    survive; none where there is no index or a damaged one."""
    path = folder / index.HEADER
    try:
        header = index.parse_header(path) if path.is_file() else {}
    except ValueError:
        return None, {}
    name, classes = header.get("name"), header.get("classes")
    named = classes.items() if isinstance(classes, dict) else ()
    kept = {int(number): text for number, text in named if is_class_id(number) and is_name(text)}
    return name if is_name(name) else None, kept


def _name_of(folder: Path) -> str:
    name = folder.resolve().name
    return name if is_name(name) else "data"


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
                for class_id, name in _class_names(_read(stream, sample.description, MAX_JSON_BYTES, path)).items():
                    named.setdefault(class_id, name)


def _row(path: Path, stream: IO[bytes], sample: _Sample, frame: int, clip: int, shard: int) -> Row:
    image, mask = sample.frames[frame]["image"], sample.frames[frame]["mask"]
    key = image.name.rsplit(".", 1)[0]
    jpg, png = (_read(stream, member, MAX_PICTURE_BYTES, path) for member in (image, mask))
    size, pixels = inspect_pair(jpg, png, f"{key} in {path}")
    return Row(key, clip, frame, size, shard, image.span, mask.span, pixels, crc32(jpg), crc32(png))


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
        return valid_class_ids({int(number): str(name) for number, name in pairs if is_class_id(number)})
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
        with _Headers(FileIO(path)) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                _check_safe(path, info)
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK * info.isreg()
                if info.isreg() and info.offset_data + info.size > size:
                    raise UserError(f"{path} is cut short inside {info.name}: fetch or write it again.")
                last = info.name
                if info.isreg():
                    yield _Member(info.name, info.offset_data, info.size)
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]: else it would keep them all
                stream.begin_member(tar.pax_headers)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is cut short or damaged after {last} ({error}): fetch or write it again.") from error
    _check_end(path, end, last)


class _Headers(BufferedReader):
    """A file of which only headers can be read: `tarfile` would read and keep them at any length and number."""

    _left = MAX_EXTENDED_HEADER

    def begin_member(self, kept: Mapping[str, str]) -> None:
        """Allow reading the headers of the next member, except as much as is kept of those before."""
        self._left = MAX_EXTENDED_HEADER - sum(len(name) + len(value) for name, value in kept.items())

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or as many as there are.

        Raises:
            tarfile.ReadError: they are too many for the headers of one member.
        """
        if size is None or not 0 <= size <= self._left:
            raise tarfile.ReadError(f"a header claims {size} bytes, where at most {self._left} can be right")
        self._left -= size
        return super().read(size)


def _check_end(path: Path, end: int, last: str) -> None:
    """A tar ends with two blocks of zeros, after which nothing else may come: readers would never see it."""
    with path.open("rb") as stream:
        stream.seek(end)
        if stream.read(2 * BLOCK) != bytes(2 * BLOCK):
            raise UserError(f"{path} is cut short or damaged after {last} (no end mark): fetch or write it again.")
        while rest := stream.read(_CHUNK):
            if rest.count(0) != len(rest):
                raise UserError(
                    f"{path} goes on after the end mark behind {last}: is it damaged, or several tars joined into one? "
                    "Fetch or write it again."
                )


def _check_safe(path: Path, info: tarfile.TarInfo) -> None:
    if not info.name.isprintable():
        raise UserError(f"{info.name!r} in {path} holds characters that cannot be printed: rename it.")
    if info.issym() or info.islnk():
        raise UserError(f"{info.name} in {path} is a link: shards must hold the files themselves.")
    if not (info.isreg() or info.isdir()) or info.issparse() or info.size < 0:
        raise UserError(f"{info.name} in {path} is no ordinary file: write the shard without it.")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise UserError(f"{info.name} in {path} points outside its folder: such names are refused.")


def _endings(path: Path) -> str:
    endings = {match["ending"] for member in _members(path) if (match := _NAME.fullmatch(member.name))}
    listed = ", ".join(f".{ending}" for ending in sorted(endings)[:8])
    return f"{path.name} holds members that end in {listed}." if listed else f"{path.name} holds no files."
