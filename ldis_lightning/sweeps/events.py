"""TensorBoard's event files without their pictures.

TensorBoard's own reader computes the checksum of every record in Python: a second for the pictures of one run. Here
only records of the size of scalars are checked and parsed.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 1 << 14
"""Bytes of a record with scalars; what is longer holds pictures."""
HEADER = struct.Struct("<QI")
CHECKSUM = struct.Struct("<I")


class DamagedEvents(Exception):
    """A record whose checksum is wrong."""


def small_events(path: Path) -> Iterator[Any]:
    """The events of a file but for those with pictures; it ends without a word where a record is cut short.

    A record is its length (8 bytes), the masked CRC-32C of these, the event, and its masked CRC-32C (TFRecord).

    Raises:
        DamagedEvents: a checksum is wrong.
        google.protobuf.message.DecodeError: a record is no event.
        OSError: the file cannot be read.
    """
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    read: Any = event_pb2
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                raise DamagedEvents("the length of a record")
            if length > LARGEST:
                file.seek(length + CHECKSUM.size, 1)
                continue
            content = file.read(length + CHECKSUM.size)
            if len(content) < length + CHECKSUM.size:
                return
            if masked_crc32c(content[:length]) != CHECKSUM.unpack(content[length:])[0]:
                raise DamagedEvents("a record")
            yield read.Event.FromString(content[:length])
