"""Shards and indexes that something else wrote: indexed, opened, looked at, trained on and evaluated on."""

import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import harm
import numpy as np
import pytest
from confined import Outcome, check_bounded, check_refused, confined, nothing_new, plant
from streams import episodes

from ldis_lightning.datamodules.commands import main as data_command
from ldis_lightning.datamodules.contact_sheet import contact_sheet
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource
from ldis_lightning.datamodules.foreign import index_folder
from ldis_lightning.datamodules.index import HEADER, ShardIndex
from ldis_lightning.datamodules.remote import open_index
from ldis_lightning.datamodules.source import TrainingSource
from ldis_lightning.datamodules.stats import as_text, stats_of

GOOD = {"good.jpg": harm.jpeg(), "good.png": harm.label_map(), "other.jpg": harm.jpeg(), "other.png": harm.label_map()}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return plant(tmp_path, monkeypatch)


def refused(folder: Path, canary: Path, action: Callable[[], object], *names: str) -> Outcome:
    """An action on a folder is refused, and leaves it as it was."""
    with nothing_new(folder, canary):
        outcome = confined(action)
    check_refused(outcome, *names)
    return outcome


# ---- Members that are never opened


def members_with_code(canary: Path) -> dict[str, bytes]:
    """Members that other readers of WebDatasets would decode."""
    pickle, array = harm.pickled(canary), harm.npy_with_pickle(canary)
    plain = {".pkl": pickle, ".pickle": pickle, ".pyd": pickle, ".pth": pickle, ".pt": pickle, ".npy": array}
    plain |= {".npz": harm.zip_of({"a.npy": array}), ".json": pickle, ".cls": pickle, ".index": pickle, ".py": pickle}
    packed = {f"{ending}.gz": harm.gzip_of_zeros(2**20) + data for ending, data in plain.items()}
    return {**plain, **packed, ".eps": harm.postscript(canary), ".sh": b"#!/bin/sh\ntouch canary\n", ".jpg.gz": pickle}


def test_members_with_code_are_left_alone(tmp_path: Path, canary: Path) -> None:
    members = {f"good{ending}": data for ending, data in members_with_code(canary).items()}
    folder = harm.tar(tmp_path / "set" / "x.tar", {**members, **GOOD}).parent

    def all_uses() -> None:
        index = index_folder(folder)
        assert len(index) == 2
        index.verify()
        as_text(stats_of(index))
        contact_sheet(folder, 2, 1, 0, None)
        episodes(folder, training=True)
        episodes(folder, training=False)

    with nothing_new(tmp_path, canary, besides=folder):
        outcome = confined(all_uses, may_write=folder)
    check_bounded(outcome)
    assert outcome.error == "", outcome


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_members_with_code_are_left_alone_by_spawned_workers(tmp_path: Path, canary: Path, training: bool) -> None:
    members = {f"good{ending}": data for ending, data in members_with_code(canary).items()}
    folder = harm.tar(tmp_path / "set" / "x.tar", {**members, **GOOD}).parent
    index_folder(folder)
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: episodes(folder, training, workers=1, start_method="spawn"), watched=False)
    check_bounded(outcome)
    assert outcome.error == "", outcome


# ---- Tars


def special(**attributes: object) -> Callable[[Path], object]:
    """A tar with a member of such attributes."""

    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            harm.add(archive, **{"name": "good.jpg", **attributes})
            for name, data in GOOD.items():
                harm.add(archive, name, data)

    return write


def raw(kind: bytes, size: int, data: bytes) -> Callable[[Path], object]:
    """A tar that begins with such a header."""
    rest = harm.tar

    def write(path: Path) -> None:
        whole = rest(path, GOOD).read_bytes()
        path.write_bytes(harm.raw_member(kind, size, data) + whole)

    return write


def content(data: bytes) -> Callable[[Path], object]:
    """A file of such bytes, and whatever else it is, not a tar."""
    return lambda path: path.write_bytes(data) and None


def of_kind(mode: str) -> Callable[[Path], object]:
    """A compressed tar of a gigabyte."""

    def write(path: Path) -> None:
        with tarfile.open(path, f"w:{mode}", **({"compresslevel": 1} if mode == "gz" else {})) as archive:  # pyright: ignore
            harm.add(archive, "a.jpg", bytes(2**25))

    return write


DIGITS = b"9" * 60_000
DEEP = harm.record(b"path=" + b"a/" * 30_000 + b"good.jpg")
MAP = harm.record(b"GNU.sparse.map=" + b"1,0," * 10_000 + b"1,0")
SPARSE = harm.record(b"GNU.sparse.major=1") + harm.record(b"GNU.sparse.minor=0")
REAL_SIZE = SPARSE + harm.record(b"GNU.sparse.realsize=%d" % 2**60)
TARS: dict[str, Callable[[Path], object]] = {
    "a symbolic link": special(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a link to itself": special(type=tarfile.SYMTYPE, linkname="good.jpg"),
    "a hard link": special(type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
    "a character device": special(type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a block device": special(type=tarfile.BLKTYPE, devmajor=8),
    "a pipe": special(type=tarfile.FIFOTYPE),
    "a name above": special(name="../good.jpg"),
    "a name far above": special(name="a/../../../../../../etc/good.jpg"),
    "an absolute name": special(name="/etc/good.jpg"),
    "a name with a line break": special(name="a\nerror: b.jpg"),
    "a name with an escape": special(name="\x1b]0;title\x07.jpg"),
    "a pax header of 8 GB": raw(b"x", 8 * 2**30 - 1, b""),
    "a pax header of 2**80 bytes": raw(b"x", 2**80, b""),
    "a pax header of -1 bytes": raw(b"x", -1, b""),
    "a global header of 8 GB": raw(b"g", 8 * 2**30 - 1, b""),
    "a long name of 8 GB": raw(b"L", 8 * 2**30 - 1, b""),
    "a long link of 2**62 bytes": raw(b"K", 2**62, b""),
    "a pax header of digits": raw(b"x", len(DIGITS), DIGITS),
    "a pax header of digits behind a line": raw(b"x", len(DIGITS) + 1, b"\n" + DIGITS),
    "a path of 30,000 folders": raw(b"x", len(DEEP), DEEP),
    "a sparse file of 2**60 bytes": raw(b"x", len(REAL_SIZE), REAL_SIZE),
    "a sparse map": raw(b"x", len(MAP), MAP),
    "an old sparse file": raw(b"S", 0, b""),
    "a member of 2**62 bytes": raw(b"0", 2**62, b""),
    "a member of 2**87 bytes": raw(b"0", 2**87, b""),
    "a member of -512 bytes": raw(b"0", -512, b""),
    "a size in a pax header": raw(b"x", 31, harm.record(b"size=%d" % 2**62)),
    "gzip": of_kind("gz"),
    "bzip2": of_kind("bz2"),
    "xz": of_kind("xz"),
    "a gigabyte of zeros as gzip": content(harm.gzip_of_zeros(2**30)),
    "a zip": content(harm.zip_of(GOOD)),
    "a pickle": lambda path: path.write_bytes(harm.pickled(path.parent / "canary")) and None,
    "a tar in a tar": lambda path: harm.tar(path, {"x.tar": b"", "y.tar": b"\0" * 512}) and None,
}


@pytest.mark.parametrize("write", TARS.values(), ids=TARS.keys())
def test_tars(tmp_path: Path, canary: Path, write: Callable[[Path], object]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "x.tar")
    refused(tmp_path, canary, lambda: index_folder(folder), "x.tar")


BOMBS = {f"label map: {name}": (harm.jpeg(), data) for name, data in harm.label_bombs().items()}
BOMBS |= {f"picture: {name}": (data, harm.label_map()) for name, data in harm.jpeg_bombs().items()}
STRANGERS = [*harm.strangers(Path("canary"))]


@pytest.mark.parametrize(("jpg", "png"), BOMBS.values(), ids=BOMBS.keys())
def test_bombs_in_a_shard(tmp_path: Path, canary: Path, jpg: bytes, png: bytes) -> None:
    """Indexing refuses them, or finds that they are no bombs to it: it does not decode pictures."""
    folder = harm.tar(tmp_path / "set" / "x.tar", {"bomb.jpg": jpg, "bomb.png": png}).parent
    with nothing_new(tmp_path, canary, besides=folder):
        outcome = confined(lambda: index_folder(folder), may_write=folder)
    check_bounded(outcome)
    if outcome.error:
        check_refused(outcome, "x.tar")


@pytest.mark.parametrize("kind", STRANGERS)
def test_other_formats_in_a_shard(tmp_path: Path, canary: Path, kind: str) -> None:
    data = harm.strangers(canary)[kind]
    for members in ({"a.jpg": data, "a.png": harm.label_map()}, {"a.jpg": harm.jpeg(), "a.png": data}):
        folder = harm.tar(tmp_path / "set" / "x.tar", members).parent
        refused(tmp_path, canary, lambda folder=folder: index_folder(folder), "a in ", "x.tar")


HUGE = [number * (2**61 - 1) for number in range(1, 30_000)]  # all of one hash
DESCRIPTIONS = {
    "nested": b"[" * 500_000,
    "closed": b"[" * 400_000 + b"]" * 400_000,
    "too large": b" " * 2**20 + b"{}",
    "numbers of one hash": json.dumps({"class_ids": HUGE, "class_names": ["a"] * len(HUGE)}).encode(),
    "endless number": b'{"class_ids": [' + b"9" * 10**6 + b'], "class_names": ["a"]}',
    "infinite": b'{"class_ids": [Infinity], "class_names": ["a"]}',
    "a class that is not": b'{"class_ids": [-1], "class_names": ["a"]}',
}


@pytest.mark.parametrize("description", DESCRIPTIONS.values(), ids=DESCRIPTIONS.keys())
def test_descriptions(tmp_path: Path, canary: Path, description: bytes) -> None:
    folder = harm.tar(tmp_path / "set" / "x.tar", {"good.json": description, **GOOD}).parent
    with nothing_new(tmp_path, canary, besides=folder):
        outcome = confined(lambda: index_folder(folder), may_write=folder)
    check_bounded(outcome)
    if outcome.error:
        check_refused(outcome, "x.tar")


# ---- Indexes


def edited(**changes: object) -> Callable[[Path], object]:
    """An index with other values in its header."""

    def write(folder: Path) -> None:
        header = json.loads((folder / HEADER).read_text())
        (folder / HEADER).write_text(json.dumps({**header, **changes}))

    return write


def with_column(name: str, data: bytes | Callable[[Path], object]) -> Callable[[Path], object]:
    """An index with another file as a column."""

    def write(folder: Path) -> None:
        path = next(folder.glob(f"index-*/{name}.npy"))
        path.unlink()
        path.write_bytes(data) if isinstance(data, bytes) else data(path)

    return write


def with_values(name: str, *values: int) -> Callable[[Path], object]:
    """An index with other values in a column, and with the sums of that column."""

    def write(folder: Path) -> None:
        import zlib

        from ldis_lightning.datamodules.index import sha256_of_file

        path = next(folder.glob(f"index-*/{name}.npy"))
        column = np.load(path)
        column.reshape(-1)[: len(values)] = values
        np.save(path, column)
        header = json.loads((folder / HEADER).read_text())
        header["columns"][name] |= {"crc32": zlib.crc32(path.read_bytes()), "sha256": sha256_of_file(path)}
        (folder / HEADER).write_text(json.dumps(header))

    return write


def npy(header: bytes, version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with such a header."""
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + bytes(64)


def shard_of(name: str) -> dict[str, object]:
    return {"shards": [{"name": name, "size": 0, "sha256": ""}]}


SHAPE = b"{'descr': '<i4', 'fortran_order': False, 'shape': (%d,), }\n"
INDEXES: dict[str, Callable[[Path], object]] = {
    "a header nested 10**6 times": lambda folder: (folder / HEADER).write_text("[" * 10**6) and None,
    "a header that is a pickle": lambda folder: (folder / HEADER).write_bytes(harm.pickled(folder / "x")) and None,
    "a shard above": edited(**shard_of("../../etc/passwd")),
    "a shard that is absolute": edited(**shard_of("/etc/passwd")),
    "a shard that is a command": edited(**shard_of("pipe:touch canary")),
    "shards that are no list": edited(shards="pipe:touch canary"),
    "columns above": edited(column_folder=".."),
    "columns far above": edited(column_folder="../../.."),
    "absolute columns": edited(column_folder="/etc"),
    "2**60 rows": edited(rows=2**60),
    "a number of rows without end": edited(rows=10**4000),
    "a version that is none": edited(version=True),
    "a class without end": edited(classes={"9" * 10**6: "cat"}),
    "a class of another hash": edited(classes={str(number): "cat" for number in HUGE[:20_000]}),
    "a name with an escape": edited(name="\x1b]0;title\x07"),
    "a column that is a pickle": lambda folder: with_column("clip", harm.pickled(folder / "x"))(folder),
    "a column of objects": lambda folder: with_column("clip", harm.npy_with_pickle(folder / "x"))(folder),
    "a column of 2**60 values": with_column("clip", npy(SHAPE % 2**60)),
    "a column of 10**30 values": with_column("clip", npy(SHAPE % 10**30)),
    "a column of -1 values": with_column("clip", npy(SHAPE % -1)),
    "a column with code in its header": with_column("clip", npy(b"__import__('os').mkdir('canary')\n")),
    "a column with a nested header": with_column("clip", npy(b"-" * 9000 + b"1\n")),
    "a column with a deep header": with_column("clip", npy(b"(" * 9000 + b"\n")),
    "a column with a header of 4 GB": with_column("clip", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
    "a column in a zip": with_column("clip", harm.zip_of({"clip.npy": bytes(2**20)}, (".npy",))),
    "a column that is a pipe": with_column("clip", os.mkfifo),
    "a column that is a device": with_column("clip", lambda path: path.symlink_to("/dev/zero")),
    "a column that is a folder": with_column("clip", Path.mkdir),
    "a span behind the shard": with_values("image_span", 10**9, 10),
    "a span of 2**60 bytes": with_values("image_span", 0, 2**60),
    "a span before the shard": with_values("mask_span", -(10**9), 10),
    "a span of -1 bytes": with_values("mask_span", 0, -1),
    "a shard that there is not": with_values("shard", 0, 10**6),
    "a row that there is not": with_values("class_row", 10**12),
    "a row before the first": with_values("class_row", -5),
    "a clip that there is not": with_values("clip", 10**6),
    "keys that overlap": with_values("key_offset", 0, 10**9),
    "entries that overlap": with_values("row_offset", 0, 10**12),
    "classes that overlap": with_values("class_offset", 0, 10**12),
}


@pytest.mark.parametrize("write", INDEXES.values(), ids=INDEXES.keys())
def test_indexes(tmp_path: Path, canary: Path, write: Callable[[Path], object]) -> None:
    sample = (harm.jpeg(), harm.label_map(), harm.SIZE)
    folder = harm.data_set(tmp_path / "set", {"a": sample, "b": sample})
    write(folder)
    refused(tmp_path, canary, lambda: ShardIndex.open(folder), "set")


# ---- Samples for which an index vouches


def of_sample(jpg: bytes, png: bytes) -> dict[str, tuple[bytes, bytes, tuple[int, int]]]:
    """A sample as its headers claim it to be, as far as an index can say that."""
    claimed = harm.SIZE
    if jpg[:2] == b"\xff\xd8":
        frame = next((place for mark in (b"\xff\xc0", b"\xff\xc2") if (place := jpg.find(mark)) > 0), 0)
        claimed = struct.unpack(">HH", jpg[frame + 5 : frame + 9])
    if claimed == harm.SIZE and png[:4] == b"\x89PNG":
        claimed = struct.unpack(">II", png[16:24])
    height, width = (max(1, min(2**31 - 1, side)) for side in claimed)
    return {"bomb": (jpg, png, (height, width))}


@pytest.mark.parametrize(("jpg", "png"), BOMBS.values(), ids=BOMBS.keys())
def test_bombs_that_are_indexed(tmp_path: Path, canary: Path, jpg: bytes, png: bytes) -> None:
    for samples in (of_sample(jpg, png), {"bomb": (jpg, png, harm.SIZE)}):
        folder = harm.data_set(tmp_path / "set", samples)
        with nothing_new(tmp_path, canary):
            outcome = confined(lambda folder=folder: FrameReader(ShardIndex.open(folder)).read(0))
        check_bounded(outcome)
        if outcome.error:
            check_refused(outcome, "bomb in ")


@pytest.mark.parametrize("kind", STRANGERS)
def test_other_formats_that_are_indexed(tmp_path: Path, canary: Path, kind: str) -> None:
    data = harm.strangers(canary)[kind]
    for number, pair in enumerate(((data, harm.label_map()), (harm.jpeg(), data))):
        folder = harm.data_set(tmp_path / f"set{number}", {"a": (*pair, harm.SIZE)})
        refused(tmp_path, canary, lambda folder=folder: FrameReader(ShardIndex.open(folder)).read(0), "a in ")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("kind", "workers"),
    [("EPS", (0, None)), ("100,000 x 100,000", (0, None)), ("a pickle", (0, None)), ("EPS", (1, "spawn"))],
)
def test_streams(tmp_path: Path, canary: Path, kind: str, workers: tuple[int, str | None], training: bool) -> None:
    """What a stream says about a hostile sample is what reading says."""
    bad = {**harm.strangers(canary), **harm.label_bombs()}[kind]
    pair = (harm.jpeg(), bad) if kind in harm.label_bombs() else (bad, harm.label_map())
    folder = harm.data_set(tmp_path / "set", {"a": (*pair, harm.SIZE), "b": (*pair, harm.SIZE)})
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: episodes(folder, training, *workers), watched=not workers[0])
    check_refused(outcome, "a in ", "b in ")


# ---- What `shards:` may be

ADDRESSES = [
    "pipe:touch canary",
    "pipe: touch canary #",
    "PIPE:touch canary",
    "file://x.tar::pipe:touch canary",
    "pipe:curl http://127.0.0.1:1/x | sh",
    "simplecache::http://127.0.0.1:1/x",
    "zip://x.zip::file:///etc",
    "filecache::pipe:touch canary",
    "reference://::file:///etc/passwd",
    "file:///etc",
    "local:///etc",
    "ssh://127.0.0.1:1/etc",
    "sftp://127.0.0.1:1/etc",
    "git://x:main@y",
    "github://x:y@main/z",
    "ftp://127.0.0.1:1/x",
    "data:text/plain,canary",
    "memory://x",
    "http://127.0.0.1:1/x::pipe:touch canary",
    "https://[::1",
    "-",
    "$(touch canary)",
    "`touch canary`",
    "~/../../../etc",
    "x\0y",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    uses: list[Callable[[], object]] = [
        lambda: episodes(address, training=True),
        lambda: EpisodeDataModule(TrainingSource(address)).setup("fit"),
        lambda: EpisodeDataModule(evaluation={"set": EvaluationSource(address)}).setup("test"),
        lambda: data_command(["show", address]),
        lambda: data_command(["index", address]),
        lambda: open_index(address, None),
    ]
    for use in uses:
        outcome = refused(tmp_path, canary, use, address, repr(address), address.partition("/")[0])
        assert not list(tmp_path.rglob("*canary*")), outcome


def test_the_number_of_cases() -> None:
    """As docs/reliability.md states it."""
    members, pictures = len(members_with_code(Path("canary"))), len(BOMBS) + len(STRANGERS)
    assert (members, len(TARS), pictures, len(DESCRIPTIONS)) == (25, 34, 27, 7)
    assert (len(INDEXES), len(ADDRESSES)) == (39, 25)
