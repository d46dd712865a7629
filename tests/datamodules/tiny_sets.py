"""Small data sets for the tests of plans and loaders."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ldis_lightning.datamodules.index import Row, Shard, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.shards import ShardWriter

CLASSES = {1: "cat", 2: "dog", 3: "cow", 4: "hen"}


def encode(image: np.ndarray, labels: np.ndarray) -> tuple[bytes, bytes]:
    """(H, W, 3) and (H, W) uint8 -> JPEG and PNG."""
    jpg, png = BytesIO(), BytesIO()
    Image.fromarray(image).save(jpg, "JPEG", quality=95)
    Image.fromarray(labels).save(png, "PNG")
    return jpg.getvalue(), png.getvalue()


def picture(class_ids: list[int], shape: tuple[int, int] = (16, 16), seed: int = 0) -> tuple[bytes, bytes]:
    """A picture with a stripe of each class, of as many columns as its place in the list, and one column to ignore."""
    generator = np.random.default_rng([seed, *class_ids])
    labels = np.zeros(shape, np.uint8)
    column = 0
    for width, class_id in enumerate(class_ids, start=1):
        labels[:, column : column + width] = class_id
        column += width
    labels[:, -1] = 255
    return encode(generator.integers(0, 255, (*shape, 3), dtype=np.uint8), labels)


def write_images(folder: Path, contents: list[list[int]], per_shard: int = 4) -> ShardIndex:
    """One image for each list of class ids, named i0000, i0001, ..."""
    with ShardWriter(folder, "tiny", CLASSES, max_samples_per_shard=per_shard) as writer:
        for number, class_ids in enumerate(contents):
            writer.add_image(f"i{number:04d}", *picture(class_ids, seed=number))
    return ShardIndex.open(folder)


def write_clips(folder: Path, clips: list[list[list[int]]], per_shard: int = 6) -> ShardIndex:
    """One clip for each list of frames, a frame being a list of class ids."""
    with ShardWriter(folder, "tiny clips", CLASSES, max_samples_per_shard=per_shard) as writer:
        for number, frames in enumerate(clips):
            writer.add_clip(f"c{number}", [picture(ids, seed=100 * number + i) for i, ids in enumerate(frames)])
    return ShardIndex.open(folder)


def mixed_contents(count: int, seed: int = 0) -> list[list[int]]:
    """Class ids of `count` images: one to three of the four classes."""
    generator = np.random.default_rng(seed)
    return [[int(c) for c in generator.permutation([1, 2, 3, 4])[: generator.integers(1, 4)]] for _ in range(count)]


def bare_index(
    folder: Path,
    images: Sequence[list[int]] = (),
    clips: Sequence[list[list[int]]] = (),
    classes: dict[int, str] | None = None,
    per_shard: int | None = None,
) -> ShardIndex:
    """An index of pictures that do not exist, for draws, which never look at one: thousands of rows take no time.

    Image i is named i0000 and holds 10 pixels of the first class in its list, 20 of the second, ...; clips as in
    `write_clips`, their frames numbered from 0. All are in one shard, or so many images in each.
    """
    folder.mkdir(parents=True)
    names = [f"none-{number}.tar" for number in range(-(-len(images) // per_shard))] if per_shard else ["none.tar"]
    for name in names:
        (folder / name).write_bytes(b"")
    builder = IndexBuilder()
    for number, class_ids in enumerate(images):
        shard = number // per_shard if per_shard else 0
        builder.add(_bare_row(f"i{number:04d}", -1, -1, class_ids)._replace(shard=shard))
    for number, frames in enumerate(clips):
        clip = builder.add_clip(f"c{number}")
        for frame, class_ids in enumerate(frames):
            builder.add(_bare_row(f"c{number}.{frame:05d}", clip, frame, class_ids))
    builder.write(folder, "bare", classes or CLASSES, [Shard(name, 0, "") for name in names])
    return ShardIndex.open(folder)


def _bare_row(key: str, clip: int, frame: int, class_ids: list[int]) -> Row:
    pixels = {class_id: 10 * place for place, class_id in enumerate(class_ids, start=1)}
    return Row(key, clip, frame, (16, 16), 0, (0, 0), (0, 0), pixels, 0, 0)
