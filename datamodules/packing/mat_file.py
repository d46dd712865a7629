"""MATLAB's format 5, as far as SBD's annotations need it: a field of a struct.

A library for all of the format would make whatever a file of a few bytes claims to hold, gigabytes of it. Here the file
is walked through, and what is not wanted is passed over by its length.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MOST_BYTES = 2**24
"""What a compressed variable may unpack to."""
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_STRUCT, _BYTES = 2, 9  # classes of arrays


class Element(NamedTuple):
    """A piece of a file: its type and its bytes."""

    kind: int
    data: bytes


def field_of_struct(data: bytes, variable: str, field: str) -> Element | None:
    """The array in a field of a variable that is a struct of one element; None where there is none.

    Raises:
        ValueError: this is no such file, or it is damaged.
    """
    if data[124:128] != b"\x00\x01IM" or data.startswith(b"MATLAB 7.3"):
        raise ValueError("it is not of format 5")
    for element in _variables(data[_HEADER:]):
        parts = _elements(element.data)
        if _class_of(parts) != _STRUCT:
            continue
        dimensions, name, length, names = (next(parts, Element(0, b"")).data for _ in range(4))
        if name != variable.encode() or dimensions != struct.pack("<ii", 1, 1):
            continue
        width = int.from_bytes(length, "little")
        if not 0 < width <= len(names):
            raise ValueError("a struct has no names of fields")
        fields = [names[place : place + width].split(b"\0")[0] for place in range(0, len(names), width)]
        return next((part for found, part in zip(fields, parts, strict=False) if found == field.encode()), None)
    return None


def as_bytes(element: Element) -> np.ndarray | None:
    """An array of bytes of two dimensions, (H, W) uint8; None for any other.

    Raises:
        ValueError: it is damaged.
    """
    parts = _elements(element.data)
    if element.kind != _MATRIX or _class_of(parts) != _BYTES:
        return None
    dimensions, _, values = (next(parts, Element(0, b"")).data for _ in range(3))
    if len(dimensions) != 8:
        return None
    height, width = struct.unpack("<ii", dimensions)
    if min(height, width) < 1 or height * width != len(values):
        return None
    return np.frombuffer(values, np.uint8).reshape(height, width, order="F")


def _variables(data: bytes) -> Iterator[Element]:
    for element in _elements(data):
        if element.kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                unpacked = unpacker.decompress(element.data, MOST_BYTES)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            if unpacker.unconsumed_tail:
                raise ValueError(f"a variable has more than {MOST_BYTES} bytes")
            element = next(_elements(unpacked), Element(0, b""))
        if element.kind == _MATRIX:
            yield element


def _class_of(parts: Iterator[Element]) -> int:
    """Class of an array, from the first of its parts."""
    flags = next(parts, Element(0, b"")).data
    if len(flags) != 8:
        raise ValueError("an array says nothing of its class")
    return flags[0]


def _elements(data: bytes) -> Iterator[Element]:
    """The elements that lie one after the other in some bytes."""
    place = 0
    while place < len(data):
        kind, length = struct.unpack("<II", data[place : place + 8].ljust(8, b"\0"))
        start = place + 8
        if kind >> 16:  # a small element: its length beside its type, its bytes in the place of the length
            kind, length, start = kind & 0xFFFF, kind >> 16, place + 4
            end = place + 8
        else:
            end = start + (length if kind == _COMPRESSED else -(-length // 8) * 8)
        if start + length > min(len(data), end):
            raise ValueError("it is cut short")
        yield Element(kind, data[start : start + length])
        place = end
