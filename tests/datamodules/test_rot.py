"""Rot: shards that are cut, changed, swapped or were packed so. Thousands of cases, with one promise for each.

A sample is read bit by bit as it was packed, or it is an error that names its shard and key. Never half a sample, never
another one's mask. Under `Raise` training gets that error, under `Quarantine` a sound episode of the plan.
"""

import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rotten import member, overwrite
from tiny_sets import CLASSES, encode, picture

from ldis_lightning.datamodules.damage import DamagedSample, Quarantine, Raise, Substitutes
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.fetch import Fetch, Sample, Step
from ldis_lightning.datamodules.geometry import RandomCrop
from ldis_lightning.datamodules.index import Row, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.source import TrainingSource
from ldis_lightning.datamodules.treatment import Intact
from ldis_lightning.errors import UserError

ROWS, PER_SHARD = 32, 4
CONTENTS = [[1 + i % 3, 1 + (i + 1) % 3] for i in range(ROWS)]
Pixels = list[tuple[np.ndarray, np.ndarray]]


def write_set(folder: Path, seed: int = 0) -> ShardIndex:
    """Eight shards of four pictures of 16 x 12 pixels."""
    with ShardWriter(folder, "rot", CLASSES, max_samples_per_shard=PER_SHARD) as writer:
        for number, class_ids in enumerate(CONTENTS):
            writer.add_image(f"i{number:02d}", *picture(class_ids, (16, 12), seed=seed + number))
    return ShardIndex.open(folder)


@dataclass
class Sound:
    """A data set as it was packed, and what each of its rows holds."""

    index: ShardIndex
    rows: Pixels

    def copy(self, folder: Path) -> ShardIndex:
        """A copy to damage."""
        shutil.copytree(self.index.folder, folder)
        return ShardIndex.open(folder)

    def is_row(self, row: int, pixels: tuple[np.ndarray, np.ndarray]) -> bool:
        return all(map(np.array_equal, pixels, self.rows[row]))


def all_rows(index: ShardIndex) -> Pixels:
    reader = FrameReader(index)
    return [reader.read(row) for row in range(len(index))]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    index = write_set(tmp_path_factory.mktemp("sound") / "set")
    rows = all_rows(index)
    everything = {image.tobytes() + labels.tobytes() for image, labels in rows}
    assert len(everything) == ROWS  # so that no row can pass for another
    return Sound(index, rows)


# ---- What is asked of every case


def check_rows(sound: Sound, reader: FrameReader, rows: Iterable[int], damaged: set[int]) -> int:
    """Read some rows: just the damaged ones are errors, which name them; the others are as packed. Their number."""
    count = 0
    for row in rows:
        count += 1
        try:
            pixels = reader.read(row)
        except DamagedSample as error:
            assert row in damaged, error
            assert (error.shard, error.key) == (member(reader.index, row)[0], sound.index.key(row))
        else:
            assert row not in damaged, f"{sound.index.key(row)} was read"
            assert sound.is_row(row, pixels)
    return count


class Training:
    """Episodes of a damaged copy, read as training does under both policies."""

    def __init__(self, sound: Sound, index: ShardIndex) -> None:
        self.sound, self.index, self.reader = sound, index, FrameReader(index)
        self.plan = TrainingPlan(sound.index, TrainingSource(""), 0, batch_size=4)
        self.whole = Fetch([FrameReader(sound.index)], [Intact()], 16, RandomCrop())
        self.episodes = [self.plan.episode(position) for position in range(6 * ROWS)]

    def check(self, row: int) -> None:
        """An episode with this damaged row: an error under `Raise`, another one under `Quarantine`."""
        places = [i for i, episode in enumerate(self.episodes) if row in (episode.query, *episode.references)]
        position = places[row % len(places)]
        step = Step([self.episodes[position]], [True], [position])
        with pytest.raises(DamagedSample) as caught:
            self.fetch(Raise()).read(step)
        read, samples = self.fetch(Quarantine()).read(step)
        keys = {damage.key for damage in read.damaged}
        assert caught.value.key in keys
        (episode,), (sample,) = read.episodes, samples
        assert not {self.index.key(one) for one in (episode.query, *episode.references)} & keys
        assert equal(sample, self.whole.sample(episode))

    def fetch(self, policy: Any) -> Fetch:
        return Fetch([self.reader], [Intact()], 16, RandomCrop(), Substitutes(policy, self.plan))


def equal(one: Sample, other: Sample) -> bool:
    arrays = [[s.query_image, s.query_mask, *s.reference_image, s.reference_mask] for s in (one, other)]
    return all(map(np.array_equal, *arrays)) and one.meta == other.meta


# ---- Shards that are cut


def test_a_cut_shard_is_refused_at_opening(sound: Sound, tmp_path: Path) -> None:
    index = sound.copy(tmp_path / "set")
    count = 0
    for path in index.shard_paths:
        size = path.stat().st_size
        for end in range(size - 512, -1, -512):
            os.truncate(path, end)
            with pytest.raises(UserError, match=rf"{path.name} has {end} bytes where the index says {size}"):
                ShardIndex.open(index.folder)
            count += 1
        shutil.copyfile(sound.index.folder / path.name, path)
    ShardIndex.open(index.folder)
    assert count == sum(path.stat().st_size for path in index.shard_paths) // 512 >= 300


def test_a_shard_that_is_cut_while_it_is_read(sound: Sound, tmp_path: Path) -> None:
    index = sound.copy(tmp_path / "set")
    training, cuts, reads = Training(sound, index), 0, 0
    check_rows(sound, training.reader, range(ROWS), set())  # all shards are open
    for number, path in enumerate(index.shard_paths[:3]):
        rows = np.flatnonzero(index.shard == number).tolist()
        for end in range(path.stat().st_size - 512, -1, -512):
            os.truncate(path, end)
            now = {row for row in rows for kind in ("image", "mask") if sum(member(index, row, kind)[1:]) > end}
            reads += check_rows(sound, training.reader, range(ROWS), now)
            for row in now:
                training.check(row)
            cuts += 1
        shutil.copyfile(sound.index.folder / path.name, path)
    assert cuts == sum(shard.size for shard in index.shards[:3]) // 512 >= 100
    assert reads == cuts * ROWS


# ---- Bytes that are changed


@dataclass
class Places:
    """What the bytes of a shard belong to."""

    owner: np.ndarray  # (size,) the row whose image or mask it is, -1 for headers and padding
    path: Path

    @classmethod
    def of(cls, index: ShardIndex, number: int) -> "Places":
        owner = np.full(index.shards[number].size, -1)
        for row in np.flatnonzero(index.shard == number).tolist():
            for kind in ("image", "mask"):
                _, offset, length = member(index, row, kind)
                owner[offset : offset + length] = row
        return cls(owner, index.shard_paths[number])

    def changed(self, changes: Iterable[tuple[int, int]]) -> Iterator[int]:
        """One change after the other, each undone before the next: a byte's place and what it is XORed with. Yields its
        owner."""
        data = self.path.read_bytes()
        for place, flipped in changes:
            overwrite(self.path, place, bytes([data[place] ^ flipped]))
            yield int(self.owner[place])
            overwrite(self.path, place, data[place : place + 1])


def test_every_byte_of_a_shard(sound: Sound, tmp_path: Path) -> None:
    """Each byte once, changed to a seeded other value: its sample is an error, or, where it is no sample's, all are as
    they were."""
    index = sound.copy(tmp_path / "set")
    places, reader = Places.of(index, 1), FrameReader(index)
    generator = np.random.default_rng(0)
    rows = np.flatnonzero(index.shard == 1).tolist()
    others = generator.choice(rows, len(places.owner)).tolist()
    in_members, elsewhere = 0, 0
    changes = zip(range(len(places.owner)), generator.integers(1, 256, len(places.owner)).tolist(), strict=True)
    for other, owner in zip(others, places.changed(changes), strict=True):
        check_rows(sound, reader, {other, owner} - {-1}, {owner} - {-1})
        in_members, elsewhere = in_members + (owner >= 0), elsewhere + (owner < 0)
    assert in_members + elsewhere == index.shards[1].size >= 10_000
    assert in_members >= 3_000 and elsewhere >= 3_000
    check_rows(sound, reader, range(ROWS), set())  # all was undone


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_single_bits(sound: Sound, tmp_path: Path, seed: int) -> None:
    """Seeded single bits of all shards, where most bytes belong to a sample; training under both policies."""
    index = sound.copy(tmp_path / "set")
    training = Training(sound, index)
    generator = np.random.default_rng([seed, 1])
    in_members, cases = 0, 400
    for number in range(len(index.shards)):
        places = Places.of(index, number)
        weights = np.where(places.owner >= 0, 6.0, 1.0)
        chosen = generator.choice(len(weights), cases, p=weights / weights.sum()).tolist()
        changes = zip(chosen, (1 << generator.integers(0, 8, cases)).tolist(), strict=True)
        for case, owner in enumerate(places.changed(changes)):
            damaged = {owner} - {-1}
            check_rows(sound, training.reader, {owner if damaged else case % ROWS}, damaged)
            if damaged and case % 4 == 0:
                training.check(owner)
            in_members += len(damaged)
    assert len(index.shards) * cases == 3_200 and in_members > 1_800


# ---- Whole files


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda data: bytes(len(data)),
    "ones": lambda data: b"\xff" * len(data),
    "noise": lambda data: np.random.default_rng(0).bytes(len(data)),
    "text": lambda data: (b"<html>404 Not Found</html>" * len(data))[: len(data)],
    "reversed": lambda data: data[::-1],
    "shifted by a block": lambda data: data[512:] + data[:512],
    "shifted by a byte": lambda data: data[1:] + data[:1],
    "its first half twice": lambda data: data[: len(data) // 2] * 2,
    "bytes in pairs": lambda data: bytes(np.frombuffer(data, np.uint8).reshape(-1, 2)[:, ::-1].tobytes()),
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("before", [True, False])
def test_a_shard_of_garbage_of_the_right_size(sound: Sound, tmp_path: Path, kind: str, before: bool) -> None:
    """Of two shards, before they are opened or while they are."""
    index = sound.copy(tmp_path / "set")
    training = Training(sound, index)
    if not before:
        check_rows(sound, training.reader, range(ROWS), set())
    for path in index.shard_paths[:2]:
        data = path.read_bytes()
        overwrite(path, 0, GARBAGE[kind](data))
        assert path.stat().st_size == len(data) and path.read_bytes() != data
    ShardIndex.open(index.folder)  # this asks for the size alone
    changed = [(row, kind) for row in range(ROWS) for kind in ("image", "mask") if has_changed(sound, index, row, kind)]
    damaged = {row for row, _ in changed}
    assert len(damaged) >= PER_SHARD
    assert check_rows(sound, training.reader, range(ROWS), damaged) == ROWS
    for row in damaged:
        training.check(row)


def has_changed(sound: Sound, index: ShardIndex, row: int, kind: str) -> bool:
    return bytes_of(index, row, kind) != bytes_of(sound.index, row, kind)


def bytes_of(index: ShardIndex, row: int, kind: str) -> bytes:
    path, offset, length = member(index, row, kind)
    return path.read_bytes()[offset : offset + length]


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 512, b"PK\x03\x04" * 9000])
def test_a_shard_of_another_size_is_refused(sound: Sound, tmp_path: Path, data: bytes) -> None:
    index = sound.copy(tmp_path / "set")
    index.shard_paths[1].write_bytes(data)
    with pytest.raises(UserError, match=rf"{index.shard_paths[1].name} has {len(data)} bytes where the index says"):
        ShardIndex.open(index.folder)


def test_a_shard_that_is_gone_is_no_damage(sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = sound.copy(tmp_path / "set")
    training, path = Training(sound, index), index.shard_paths[0]
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} is missing, but the index lists it"):
        ShardIndex.open(index.folder)

    def no_permission(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    for reason in ("No such file", "Permission denied"):
        with pytest.raises(UserError, match=rf"cannot be read: {reason}") as caught:
            for position, episode in enumerate(training.episodes):
                training.fetch(Quarantine()).read(Step([episode], [True], [position]))
        assert type(caught.value) is UserError  # and not DamagedSample
        training.reader = FrameReader(index)
        monkeypatch.setattr(os, "open", no_permission)


# ---- Samples that were packed so


def scans() -> Iterator[bytes]:
    """JPEGs whose header and last marker are right and whose pixels are not there: cut in the scan, or zeros in it."""
    jpg, _ = picture([1, 2], (64, 64))
    start = jpg.index(b"\xff\xda") + 14
    for end in np.linspace(start + 2, len(jpg) - 200, 40).astype(int).tolist():
        yield jpg[:end] + jpg[-2:]
    for place in np.linspace(start, len(jpg) - 600, 20).astype(int).tolist():
        yield jpg[:place] + b"\xff\xd8\xff\xd9" * 50 + jpg[place + 200 :]


def test_pictures_that_do_not_decode(tmp_path: Path) -> None:
    broken = list(scans())
    _, png = picture([1, 2], (64, 64))
    whole = [picture([1, 2], (64, 64), seed=number) for number in range(len(broken))]
    with ShardWriter(tmp_path / "set", "broken", CLASSES) as writer:
        for number, jpg in enumerate(broken):
            writer.add_image(f"broken{number:02d}", jpg, png)
            writer.add_image(f"whole{number:02d}", *whole[number])
    index = ShardIndex.open(tmp_path / "set")
    index.verify()  # they are what was packed
    reader, count = FrameReader(index), 0
    for row in range(len(index)):
        if index.key(row).startswith("whole"):
            assert reader.read(row)[0].shape == (64, 64, 3)
            continue
        count += 1
        with pytest.raises(DamagedSample, match=rf"{index.key(row)} in .*JPEG"):
            reader.read(row)
    assert count == len(broken) == 60
    plan = TrainingPlan(index, TrainingSource(""), 0, batch_size=4, references=2)
    for policy, outcome in ((Raise(), UserError), (Quarantine(), tuple)):
        fetch = Fetch([reader], [Intact()], 64, RandomCrop(), Substitutes(policy, plan))
        found = [*fetch(Step([plan.episode(p)], [True], [p]) for p in range(40))]
        assert sum(isinstance(one, outcome) for one in found) > 20
        for one in found:
            if isinstance(one, UserError):  # the policy raised, or ten substitutes were broken too
                assert "broken" in str(one)
            else:
                meta = one[1][0].meta
                assert all(key.startswith("whole") for key in (meta["query_key"], *meta["reference_keys"]))


def rewritten(index: ShardIndex, change: Callable[[Row], Row]) -> ShardIndex:
    """The same shards under an index of other rows."""
    builder = IndexBuilder()
    for number in range(len(index)):
        classes, pixels = index.classes_of_row(number)
        values = [getattr(index, name)[number] for name in ("size", "image_span", "mask_span")]
        size, image_span, mask_span = (tuple(value.tolist()) for value in values)
        counts = dict(zip(classes.tolist(), pixels.tolist(), strict=True))
        shard, crcs = int(index.shard[number]), (int(index.image_crc[number]), int(index.mask_crc[number]))
        row = Row(index.key(number), -1, -1, size, shard, image_span, mask_span, counts, *crcs)
        builder.add(change(row))
    builder.write(index.folder, index.name, index.classes, index.shards)
    return ShardIndex.open(index.folder)


def test_masks_of_another_size(tmp_path: Path) -> None:
    """Each picture with the masks of all others, whose CRCs fit."""
    sizes = [(16, 12), (12, 16), (16, 16), (8, 8), (17, 12), (16, 13)]
    count = 0
    for shift in range(1, len(sizes)):
        with ShardWriter(tmp_path / f"set{shift}", "sizes", CLASSES) as writer:
            for number, size in enumerate(sizes):
                writer.add_image(f"i{number}", *picture([1, 2], size, seed=number))
        index = ShardIndex.open(tmp_path / f"set{shift}")
        masks = [(tuple(span.tolist()), int(crc)) for span, crc in zip(index.mask_span, index.mask_crc, strict=True)]
        others = iter(masks[shift:] + masks[:shift])

        def with_mask(row: Row, others: Any = others) -> Row:
            span, crc = next(others)
            return row._replace(mask_span=span, mask_crc=crc)

        reader = FrameReader(rewritten(index, with_mask))
        for row in range(len(sizes)):
            count += 1
            with pytest.raises(DamagedSample, match=rf"i{row} in .*mask is"):
                reader.read(row)
    assert count == len(sizes) * (len(sizes) - 1) == 30


# ---- An index that does not fit


def test_shards_that_were_swapped(sound: Sound, tmp_path: Path) -> None:
    index = sound.copy(tmp_path / "set")
    one, other = index.shard_paths[:2]
    sizes = [one.stat().st_size, other.stat().st_size]
    one.rename(tmp_path / "one")
    other.rename(one)
    (tmp_path / "one").rename(other)
    if sizes[0] != sizes[1]:
        with pytest.raises(UserError, match="bytes where the index says"):
            ShardIndex.open(index.folder)
        longest = max(sizes)
        for path, size in ((one, sizes[0]), (other, sizes[1])):
            os.truncate(path, longest)
            os.truncate(path, size)
    ShardIndex.open(index.folder)
    training, damaged = Training(sound, index), set(range(2 * PER_SHARD))
    assert check_rows(sound, training.reader, range(ROWS), damaged) == ROWS
    for row in damaged:
        training.check(row)


def of_length(jpg: bytes, length: int) -> bytes:
    """The same picture with a comment, so that it has so many bytes."""
    extra = length - len(jpg) - 4
    return jpg[:2] + b"\xff\xfe" + (extra + 2).to_bytes(2, "big") + bytes(extra) + jpg[2:]


def test_another_sample_in_its_place(tmp_path: Path) -> None:
    """Pictures and masks of equal sizes and lengths, each a whole sample, at the places of others: image, mask or both,
    for all pairs."""
    with ShardWriter(tmp_path / "set", "equal", CLASSES) as writer:
        pairs = [equally_long([1 + number % 3], number) for number in range(6)]
        for number, (jpg, png) in enumerate(pairs):
            writer.add_image(f"i{number}", jpg, png)
    index = ShardIndex.open(tmp_path / "set")
    rows, count = all_rows(index), 0
    data = index.shard_paths[0].read_bytes()
    for row in range(6):
        for other in set(range(6)) - {row}:
            for kinds in (("image",), ("mask",), ("image", "mask")):
                reader = FrameReader(index)
                for kind in kinds:
                    (path, offset, length), (_, start, same) = (member(index, one, kind) for one in (row, other))
                    assert length == same
                    overwrite(path, offset, data[start : start + length])
                with pytest.raises(DamagedSample, match=rf"i{row} in .*is not what was indexed"):
                    reader.read(row)
                assert all(map(np.array_equal, reader.read(other), rows[other]))
                overwrite(index.shard_paths[0], 0, data)
                count += 1
    assert count == 6 * 5 * 3


def equally_long(class_ids: list[int], seed: int) -> tuple[bytes, bytes]:
    """A picture of 2000 bytes, and a mask with its square somewhere, of the same number of bytes wherever that is."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (16, 16), dtype=np.uint8) * class_ids[0]
    jpg, _ = encode(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8), labels)
    return of_length(jpg, 2000), stored_png(labels)


def stored_png(labels: np.ndarray) -> bytes:
    """A label map whose rows are not compressed, so that its length follows from its size."""
    rows = np.zeros((labels.shape[0], 1 + labels.shape[1]), np.uint8)
    rows[:, 1:] = labels
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(rows.tobytes(), 0),
        b"IEND": b"",
    }
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_the_index_of_another_data_set(sound: Sound, tmp_path: Path) -> None:
    """Equal names, other pictures: refused by its sizes, or, where these are made to fit, sample by sample."""
    index, other = sound.copy(tmp_path / "set"), write_set(tmp_path / "other", seed=100)
    for path, right in zip(other.shard_paths, index.shards, strict=True):
        shutil.copyfile(path, index.folder / path.name)
        if path.stat().st_size != right.size:
            with pytest.raises(UserError, match="bytes where the index says"):
                ShardIndex.open(index.folder)
            os.truncate(index.folder / path.name, right.size)
    reader = FrameReader(ShardIndex.open(index.folder))
    assert check_rows(sound, reader, range(ROWS), set(range(ROWS))) == ROWS
