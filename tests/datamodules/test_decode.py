import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import encode, write_images

from ldis_lightning.datamodules import decode
from ldis_lightning.datamodules.decode import FrameReader, concept_mask, decode_jpeg, reference_mask
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> ShardIndex:
    return write_images(tmp_path / "set", [[1, 2], [2], [3], [1]], per_shard=1)


def damage(index: ShardIndex, row: int, column: np.ndarray, start: int, content: bytes) -> None:
    path = index.shard_paths[index.shard[row]]
    data = bytearray(path.read_bytes())
    offset = int(column[row][0]) + start
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


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


def test_a_grey_jpeg_becomes_rgb() -> None:
    jpg, _ = encode(np.full((8, 8), 90, np.uint8), np.zeros((8, 8), np.uint8))
    assert decode_jpeg(jpg, "it").shape == (8, 8, 3)


def test_broken_members_name_shard_and_key(images: ShardIndex) -> None:
    damage(images, 1, images.image_span, 0, b"%!PS-Adobe-3.0 EPSF-3.0")  # PIL would start Ghostscript on this
    damage(images, 2, images.mask_span, 40, bytes(20))
    reader = FrameReader(images)
    with pytest.raises(UserError, match=r"image of i0001 in .*shard-00001\.tar cannot be read as JPEG"):
        reader.read(1)
    with pytest.raises(UserError, match=r"mask of i0002 in .*shard-00002\.tar"):
        reader.read(2)


def test_a_cut_jpeg_is_an_error(images: ShardIndex) -> None:
    jpg, _ = encode(
        np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), np.zeros((64, 64), np.uint8)
    )
    with pytest.raises(UserError, match="it cannot be read as JPEG"):
        decode_jpeg(jpg[: len(jpg) // 2], "it")


def test_a_cut_shard_is_an_error(images: ShardIndex) -> None:
    path = images.shard_paths[3]
    path.write_bytes(path.read_bytes()[: int(images.mask_span[3][0]) + 10])
    with pytest.raises(UserError, match=r"shard-00003\.tar ends inside i0003"):
        FrameReader(images).read(3)


def test_a_missing_shard_is_an_error(images: ShardIndex) -> None:
    images.shard_paths[3].unlink()
    with pytest.raises(UserError, match=r"shard-00003\.tar cannot be read: No such file"):
        FrameReader(images).read(3)


def test_different_sizes_are_an_error(images: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "read_label_map", lambda png, where: np.zeros((16, 12), np.uint8))
    with pytest.raises(UserError, match=r"mask of i0000 in .*shard-00000\.tar is 12 x 16 pixels, its image 16 x 16"):
        FrameReader(images).read(0)


def test_masks() -> None:
    labels = np.array([[0, 3, 255, 7]], np.uint8)
    assert concept_mask(labels, 3).tolist() == [[0, 1, 255, 0]]
    assert reference_mask(labels, 3).tolist() == [[0, 1, 0, 0]]
