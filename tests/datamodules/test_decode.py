import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_sets import encode, picture, write_images

from ldis_lightning.datamodules import decode
from ldis_lightning.datamodules.damage import DamagedSample
from ldis_lightning.datamodules.decode import FrameReader, concept_mask, reference_mask
from ldis_lightning.datamodules.index import HEADER, ShardIndex, parse_header
from ldis_lightning.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> ShardIndex:
    return write_images(tmp_path / "set", [[1, 2], [2], [3], [1]], per_shard=1)


def member(index: ShardIndex, row: int, span: np.ndarray) -> bytes:
    offset, length = span[row].tolist()
    return index.shard_paths[index.shard[row]].read_bytes()[offset : offset + length]


def overwrite(index: ShardIndex, row: int, place: int, content: bytes) -> None:
    """Change bytes of a row's shard, behind the index's back."""
    path = index.shard_paths[index.shard[row]]
    data = path.read_bytes()
    path.write_bytes(data[:place] + content + data[place + len(content) :])


def indexed(index: ShardIndex, row: int, jpg: bytes, png: bytes) -> ShardIndex:
    """The same data set with a sample that was as it is when it was indexed."""
    columns = {name: np.array(values) for name, values in index._columns.items()}
    columns["image_span"][row] = 0, len(jpg)
    columns["mask_span"][row] = len(jpg), len(png)
    columns["image_crc"][row], columns["mask_crc"][row] = zlib.crc32(jpg), zlib.crc32(png)
    index.shard_paths[index.shard[row]].write_bytes(jpg + png)
    return ShardIndex(index.folder, parse_header(index.folder / HEADER), columns)


def test_reads_what_was_written(images: ShardIndex) -> None:
    image, labels = FrameReader(images).read(0)
    assert image.shape == (16, 16, 3)
    assert image.dtype == labels.dtype == np.uint8
    assert labels[0].tolist() == [1, 2, 2] + 12 * [0] + [255]


def test_keeps_few_shards_open(images: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_OPEN_SHARDS", 2)
    reader = FrameReader(images)
    first = [reader.read(row)[1].tolist() for row in range(4)]
    assert len(reader._files) == 2
    assert [reader.read(row)[1].tolist() for row in range(4)] == first
    assert pickle.loads(pickle.dumps(reader)).read(2)[1].tolist() == first[2]


def test_a_picture_is_decoded_when_it_is_wanted(images: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = FrameReader(images).read(0)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    jpeg, labels = FrameReader(images).read_lazily(0)
    assert jpeg.shape == expected[0].shape and np.array_equal(labels, expected[1])
    monkeypatch.undo()
    assert np.array_equal(jpeg.decode(), expected[0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_bit_is_found_before_anything_is_parsed(images: ShardIndex, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["image", "mask"]))
    offset, length = getattr(images, f"{name}_span")[1].tolist()
    place, bit = offset + data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 7))
    old = images.shard_paths[1].read_bytes()[place]
    overwrite(images, 1, place, bytes([old ^ 1 << bit]))
    with pytest.raises(DamagedSample, match=rf"^i0001 in .*shard-00001\.tar: its {name} is not what was indexed"):
        FrameReader(images).read(1)
    overwrite(images, 1, place, bytes([old]))
    FrameReader(images).read(1)


def test_another_samples_bytes_are_not_taken(images: ShardIndex) -> None:
    offset, _ = images.mask_span[1].tolist()
    overwrite(images, 1, offset, member(images, 2, images.mask_span))
    with pytest.raises(DamagedSample, match="its mask is not what was indexed"):
        FrameReader(images).read(1)


NOISE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
JPG, PNG = picture([1])


@pytest.mark.parametrize(
    ("jpg", "png", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0", PNG, "its image cannot be read as JPEG"),  # PIL would start Ghostscript on this
        (PNG, PNG, "its image cannot be read as JPEG"),
        (b"", PNG, "its image cannot be read as JPEG"),
        (JPG[:-9], PNG, r"its image cannot be read as JPEG \(Premature end"),
        (encode(NOISE[:12], np.zeros((12, 16), np.uint8))[0], PNG, "its image is 16 x 12 pixels, where the index says"),
        (JPG, picture([1], (16, 12))[1], "its mask is 12 x 16 pixels, its image 16 x 16"),
        (JPG, PNG[:40], "its mask"),
        (JPG, JPG, "its mask cannot be read as PNG"),
        (JPG, b"", "its mask cannot be read as PNG"),
        (JPG, encode(NOISE, NOISE)[1], "its mask is a PNG of RGB colours"),
    ],
)
def test_what_was_damaged_when_it_was_indexed_is_found(images: ShardIndex, jpg: bytes, png: bytes, reason: str) -> None:
    index = indexed(images, 2, jpg, png)
    with pytest.raises(DamagedSample, match=reason) as caught:
        FrameReader(index).read(2)
    damage = pickle.loads(pickle.dumps(caught.value))
    assert (damage.shard, damage.key) == (index.shard_paths[2], "i0002")
    assert len(str(damage).splitlines()) == 1
    FrameReader(index).read(1)


def test_a_second_size_in_a_label_map_is_found(images: ShardIndex) -> None:
    """PIL takes the last header of a PNG, whatever the first one says."""
    other = picture([1], (20, 20))[1]
    png = PNG[:33] + other[8:]
    with pytest.raises(DamagedSample, match="its mask"):
        FrameReader(indexed(images, 2, JPG, png)).read(2)


def test_nothing_larger_than_the_index_says_is_unpacked(images: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    large = picture([1], (400, 400))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(decode, "read_label_map", None)
    for jpg, png in ((large[0], PNG), (JPG, large[1])):
        with pytest.raises(DamagedSample, match="400 x 400 pixels"):
            FrameReader(indexed(images, 0, jpg, png)).read(0)


@pytest.mark.parametrize("kept", [0, 1, 511, 512, 700])
def test_a_cut_shard_is_an_error(images: ShardIndex, kept: int) -> None:
    path = images.shard_paths[3]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedSample, match=r"^i0003 in .*shard-00003\.tar: the file ends inside its image"):
        FrameReader(images).read(3)


def test_a_missing_shard_is_no_damaged_sample(images: ShardIndex) -> None:
    images.shard_paths[3].unlink()
    with pytest.raises(UserError, match=r"shard-00003\.tar cannot be read: No such file") as caught:
        FrameReader(images).read(3)
    assert not isinstance(caught.value, DamagedSample)


def test_a_disk_that_fails_is_a_damaged_sample(images: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def pread(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", pread)
    with pytest.raises(DamagedSample, match=r"i0000 in .* its image cannot be read: Input/output error"):
        FrameReader(images).read(0)


def test_masks() -> None:
    labels = np.array([[0, 3, 255, 7]], np.uint8)
    for label_map in (labels, labels.astype(np.uint16), np.repeat(labels, 2, axis=1)[:, ::2]):
        assert concept_mask(label_map, 3).tolist() == [[0, 1, 255, 0]]
        assert reference_mask(label_map, 3).tolist() == [[0, 1, 0, 0]]
