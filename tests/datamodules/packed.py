"""What the tests of packers share: pictures to pack, and looking at what was packed."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.source import TrainingSource

SIZE: tuple[int, int] = (24, 20)
"""Height and width of a miniature picture."""


def write_picture(path: Path, size: tuple[int, int] = SIZE, mode: str = "RGB") -> bytes:
    """A picture of noise, of the format that the ending says; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(path.name.encode()))
    Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(path)
    return path.read_bytes()


def write_png(path: Path, pixels: np.ndarray) -> bytes:
    """An array as a PNG; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def stripes(*labels: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(height, width) uint8 in which the labels stand in equal stripes, left to right."""
    columns = np.arange(size[1]) * len(labels) // size[1]
    return np.tile(np.array(labels, np.uint8)[columns], (size[0], 1))


def stored(index: ShardIndex, key: str) -> tuple[bytes, bytes]:
    """Bytes of the picture and of the label map under a key."""
    row = [index.key(row) for row in range(len(index))].index(key)
    data = index.shard_paths[index.shard[row]].read_bytes()
    image, mask = (data[offset : offset + size] for offset, size in (index.image_span[row], index.mask_span[row]))
    return image, mask


def stored_labels(index: ShardIndex, key: str) -> np.ndarray:
    """(H, W) label map under a key, decoded by PIL alone."""
    return np.asarray(Image.open(BytesIO(stored(index, key)[1])))


def check_usable(folder: Path) -> None:
    """The data set is what its index says, and gives a batch to train and one to evaluate."""
    index = ShardIndex.open(folder)
    index.verify()
    for row in range(len(index)):
        FrameReader(index).read(row)
    datamodule = EpisodeDataModule(
        TrainingSource(str(folder)), {"set": EvaluationSource(str(folder))}, image_size=16, batch_size=2
    )
    datamodule.setup()
    for loader in (datamodule.train_dataloader(), datamodule.test_dataloader()[0]):
        batch: Any = next(iter(loader))
        assert (batch["query_mask"] == 1).any() and (batch["reference_mask"] == 1).any()
