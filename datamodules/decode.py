"""From a row of the index to pixels. Bytes come from elsewhere: they are only ever parsed as JPEG and PNG."""

import os
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pictures import read_label_map
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError

_OPEN_SHARDS = 64  # well below the usual limit of 1024 open files a process


class FrameReader:
    """Reads pictures and label maps of a data set by byte span, without touching the rest of a shard.

    May be forked: reads carry their own position. Pickles as the index alone.
    """

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, least recently used first

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without the open files."""
        return FrameReader, (self.index,)

    def __del__(self) -> None:
        """Close the open shards."""
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture (H, W, 3) uint8 and label map (H, W) uint8, or uint16 (0 none, 255 ignore), of a row.

        Raises:
            UserError: the shard cannot be read, a member is broken, or picture and label map differ in size; the
                message names shard and key.
        """
        where = f"{self.index.key(row)} in {self._path(row)}"
        image = decode_jpeg(self._bytes(row, self.index.image_span[row]), f"the image of {where}")
        labels = read_label_map(self._bytes(row, self.index.mask_span[row]), f"the mask of {where}")
        if image.shape[:2] != labels.shape:
            raise UserError(
                f"the mask of {where} is {labels.shape[1]} x {labels.shape[0]} pixels, its image {image.shape[1]} x "
                f"{image.shape[0]}: they must be equal. Mend the data set and pack it again."
            )
        return image, labels

    def _bytes(self, row: int, span: np.ndarray) -> bytes:
        offset, length = int(span[0]), int(span[1])
        data = os.pread(self._descriptor(row), length, offset)
        if len(data) != length:
            raise UserError(f"{self._path(row)} ends inside {self.index.key(row)}: fetch or pack the shard again.")
        return data

    def _path(self, row: int) -> Path:
        return self.index.shard_paths[self.index.shard[row]]

    def _descriptor(self, row: int) -> int:
        shard = int(self.index.shard[row])
        if shard not in self._files:
            if len(self._files) >= _OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            try:
                self._files[shard] = os.open(self._path(row), os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self._path(row)} cannot be read: {error.strerror}.") from error
        self._files.move_to_end(shard)
        return self._files[shard]


def decode_jpeg(jpg: bytes, where: str) -> np.ndarray:
    """Decode a JPEG.

    Args:
        jpg: its bytes.
        where: what to call it in messages.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: it is broken or no JPEG.
    """
    try:
        with Image.open(BytesIO(jpg), formats=["JPEG"]) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} cannot be read as JPEG ({error}): is the file damaged?") from error


def concept_mask(labels: np.ndarray, class_id: int) -> np.ndarray:
    """Label map, uint8 or uint16 -> mask of one class, uint8: 1 the class, 0 others, 255 ignore. Shape as given."""
    mask = (labels == class_id).astype(np.uint8)
    mask[labels == IGNORE_INDEX] = IGNORE_INDEX
    return mask


def reference_mask(labels: np.ndarray, class_id: int) -> np.ndarray:
    """As `concept_mask`, but ignored pixels are background: whatever a reference does not mark is not the concept."""
    return (labels == class_id).astype(np.uint8)
