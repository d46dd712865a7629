"""JPEG pictures and PNG label maps as bytes: what they hold, whether they are whole and whether they fit each other.

Bytes come from elsewhere: each is parsed as the one format it should have, and nothing is unpacked beyond a bound.
"""

import struct
import warnings
import zlib
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image
from zlib_ng import zlib_ng

from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError

MAX_PIXELS = 2**26
"""Larger pictures (8192 x 8192) are refused, because a few bytes of PNG can unpack into gigabytes."""

MID_GREY = 128
"""The uint8 value nearest to 0 in [-1, 1]: what pictures are padded with."""

MAX_CLASS_ID = 2**16 - 2
"""Class ids are 1 to this, without 255: ids above 254 need 16-bit label maps."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
UNREADABLE += (ArithmeticError, AttributeError, LookupError, TypeError)  # found by fuzzing
"""What PIL raises on damaged files."""

END_OF_IMAGE = b"\xff\xd9"  # the last marker of a JPEG
_FRAME_MARKERS = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
PROGRESSIVE = frozenset({0xFFC2, 0xFFC6, 0xFFCA, 0xFFCE})
"""Markers of frames that are sent in several scans."""
MAX_SCANS = 100
"""Passes over the picture that a progressive JPEG may ask for; usual ones have ten."""
_START_OF_SCAN = b"\xff\xda"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SMALL = 2**16  # bytes that, whatever they are, unpack into less than 2**26
_GREY, _PALETTE = 0, 3  # colour types of PNG


def inspect_pair(jpg: bytes, png: bytes, where: str) -> tuple[tuple[int, int], dict[int, int]]:
    """As `inspect_files`, for a picture and a label map that have a name in common: `where`."""
    return inspect_files(jpg, png, f"the image of {where}", f"the mask of {where}")


def inspect_files(jpg: bytes, png: bytes, image: str, mask: str) -> tuple[tuple[int, int], dict[int, int]]:
    """Size (height, width) of a picture and the pixels of each class in its label map, without 0 and 255.

    Args:
        jpg: a JPEG. It is not decoded.
        png: a label map. It is decoded.
        image: what to call the picture in messages.
        mask: what to call the label map.

    Raises:
        UserError: one cannot be read or is not whole, or their sizes differ.
    """
    size = jpeg_size(jpg, image)
    check_whole(jpg, image)
    rows = _read_rows(png)
    labels = rows[:, 1:] if rows is not None else read_label_map(png, mask)
    check_same_size(size, labels.shape, mask)
    return size, class_pixels(labels if rows is None else rows, mask)  # the zeros before each row count nowhere


def check_same_size(image: tuple[int, ...], mask: tuple[int, ...], name: str) -> None:
    """Check that a picture and its mask, called `name`, have the same (height, width).

    Raises:
        UserError: they do not.
    """
    if image != mask:
        raise UserError(
            f"{name} is {mask[1]} x {mask[0]} pixels, but its image {image[1]} x {image[0]}: they must be equal."
        )


def jpeg_size(jpg: bytes, name: str) -> tuple[int, int]:
    """Height and width of a JPEG of grey or RGB colours, from its header.

    Raises:
        UserError: it is no such JPEG or too large.
    """
    frame = frame_of(jpg)
    if too_many_scans(jpg, frame):
        raise UserError(f"{name} is a JPEG of more than {MAX_SCANS} scans: save it anew.")
    if frame is not None and 0 < frame.height * frame.width <= MAX_PIXELS:
        return frame.height, frame.width
    with open_picture(jpg, "JPEG", name) as image:
        if image.mode not in ("RGB", "L"):
            raise UserError(f"{name} is a JPEG of {image.mode} colours: convert it to RGB.")
        return image.height, image.width


class Frame(NamedTuple):
    """What the frame header of a JPEG says."""

    marker: int  # the kind of coding
    height: int
    width: int
    in_one_scan: bool  # decoders pass over the picture once, whatever comes behind


def too_many_scans(jpg: bytes, frame: Frame | None) -> bool:
    """Whether a JPEG asks for more than `MAX_SCANS` passes over the picture, as one of a few kilobytes can.

    Args:
        jpg: the JPEG.
        frame: its `frame_of`.
    """
    return (frame is None or not frame.in_one_scan) and jpg.count(_START_OF_SCAN) > MAX_SCANS


def frame_of(jpg: bytes) -> Frame | None:
    """The frame header of a usual JPEG; None for any other, which a library must look at."""
    if not jpg.startswith(b"\xff\xd8\xff"):
        return None
    place = 2
    try:
        while True:
            marker, length = struct.unpack_from(">HH", jpg, place)
            if marker in _FRAME_MARKERS:
                bits, height, width, channels = struct.unpack_from(">BHHB", jpg, place + 4)
                once = marker not in PROGRESSIVE and _channels_of_scan(jpg, place + 2 + length) == channels
                return Frame(marker, height, width, once) if bits == 8 and channels in (1, 3) else None
            if not 0xFFC0 <= marker < 0xFFFF or 0xFFD0 <= marker < 0xFFDB:  # no segment before the frame header
                return None
            place += 2 + length
    except struct.error:
        return None


def _channels_of_scan(jpg: bytes, place: int) -> int:
    """How many channels are in the first scan behind a place between two segments; 0 if that cannot be told."""
    try:
        while True:
            marker, length, first = struct.unpack_from(">HHB", jpg, place)
            if marker == 0xFFDA or not 0xFFC0 <= marker < 0xFFFF:
                return first if marker == 0xFFDA else 0
            place += 2 + length
    except struct.error:
        return 0


def check_whole(jpg: bytes, name: str) -> None:
    """Check that a JPEG is not cut short, by its last marker.

    Where bytes follow that marker, as some cameras write them, the picture is decoded at an eighth of its size.

    Raises:
        UserError: it is cut short.
    """
    if jpg.endswith(END_OF_IMAGE):
        return
    try:
        with Image.open(BytesIO(jpg), formats=["JPEG"]) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except UNREADABLE as error:
        raise UserError(f"{name} is a damaged JPEG ({error}).") from error


def read_label_map(png: bytes, name: str) -> np.ndarray:
    """Decode a label map: a grey PNG of 8 or 16 bits, a 1-bit one, or one with a palette, whose indices are the labels.

    Returns:
        (H, W) uint8, or uint16 where the PNG has 16 bits; read-only. 0 is none, 255 ignore in both.

    Raises:
        UserError: it is no such PNG or too large.
    """
    rows = _read_rows(png)
    if rows is not None:
        return rows[:, 1:]
    with open_picture(png, "PNG", name) as image:
        bits = png[24]  # bit depth in IHDR, the first chunk of every PNG
        if image.mode not in ("L", "P", "1", "I;16"):
            raise UserError(
                f"{name} is a PNG of {image.mode} colours: save it as a label map, grey of 8 or 16 bits or with a "
                "palette."
            )
        if image.mode == "L" and bits != 8:  # PIL stretches these to 0 .. 255, so that label 1 would become 85 or 17
            raise UserError(f"{name} is a {bits}-bit grey PNG: save it with 8 bits.")
        try:
            return np.asarray(image).astype(np.uint16 if bits == 16 else np.uint8)
        except UNREADABLE as error:
            raise UserError(f"{name} is a damaged PNG ({error}).") from error


def write_label_map(labels: np.ndarray) -> bytes:
    """Encode (H, W) uint8 or uint16 labels as a grey PNG of as many bits, without loss.

    Rows are stored without the filters that PIL would choose, and so are read several times as fast.
    """
    height, width = labels.shape
    rows = np.zeros((height, 1 + width * labels.itemsize), np.uint8)  # a row begins with the number of its filter
    rows[:, 1:] = labels.astype(labels.dtype.newbyteorder(">")).view(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8 * labels.itemsize, _GREY, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes()), b"IEND": b""}
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks.items())


def shrink_pair(jpg: bytes, png: bytes, side: int, image: str, mask: str) -> tuple[bytes, bytes]:
    """Scale a picture and its label map down so that the short side has `side` pixels; smaller ones stay as they are.

    The picture is encoded anew with quality 95; the label map takes the nearest pixel and stays lossless.

    Raises:
        UserError: one cannot be decoded, or their sizes differ.
    """
    height, width = jpeg_size(jpg, image)
    labels = read_label_map(png, mask)
    check_same_size((height, width), labels.shape, mask)
    if min(height, width) <= side:
        return jpg, png
    rows, columns = (max(1, round(length * side / min(height, width))) for length in (height, width))
    stream = BytesIO()
    try:
        with Image.open(BytesIO(jpg), formats=["JPEG"]) as picture:
            picture.resize((columns, rows), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=95)
    except UNREADABLE as error:
        raise UserError(f"{image} is a damaged JPEG ({error}).") from error
    return stream.getvalue(), write_label_map(nearest(labels, (rows, columns)))


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at another (height, width): each pixel takes the label nearest to its centre."""
    rows, columns = ((np.arange(new) + 0.5) * (old / new) for new, old in zip(size, labels.shape, strict=True))
    return labels[rows.astype(np.int64)[:, None], columns.astype(np.int64)]


def class_pixels(labels: np.ndarray, name: str) -> dict[int, int]:
    """Pixels of each class in a label map, ids ascending, without 0 and 255.

    Raises:
        UserError: a label is no class id.
    """
    counts = label_counts(labels).tolist()
    if len(counts) > MAX_CLASS_ID + 1:
        raise UserError(f"{name} holds the label {len(counts) - 1}: class ids are 1 to {MAX_CLASS_ID}, without 255.")
    return {label: int(count) for label, count in enumerate(counts) if count and label not in (0, IGNORE_INDEX)}


def label_counts(labels: np.ndarray) -> np.ndarray:
    """Pixels of each label 0, 1, ... in a label map of any shape: (256,) float64, or more where there are higher ones.

    Counts runs of equal labels, because label maps are made of few: several times as fast as a histogram of pixels.
    """
    flat = labels.ravel()
    ends = _run_ends(flat)
    lengths = ends.copy()
    lengths[0] += 1
    lengths[1:] -= ends[:-1]
    return np.bincount(flat[ends], lengths, minlength=IGNORE_INDEX + 1)  # float64, exact up to 2**53


def _run_ends(flat: np.ndarray) -> np.ndarray:
    """Positions of the last element of each run of equal ones, int64, ascending.

    Words of eight elements are looked at first, because most hold no end.
    """
    is_end = np.zeros(-(-flat.size // 8) * 8, bool)
    np.not_equal(flat[1:], flat[:-1], out=is_end[: flat.size - 1])
    is_end[flat.size - 1] = True
    words = is_end.view(np.uint64)
    places = np.flatnonzero(words != 0)
    ends = np.flatnonzero(words[places].view(bool))  # as if these words were the only ones
    return ends + (8 * (places - np.arange(len(places))))[ends >> 3]


def _read_rows(png: bytes) -> np.ndarray | None:
    """Unpack the usual label map of 8 bits: grey or palette, not interlaced, rows stored as they are.

    PIL unpacks row by row, which takes several times as long.

    Returns:
        (H, 1 + W) uint8, a zero and the labels of each row; None for any other file, which PIL must look at.
    """
    if not png.startswith(_SIGNATURE + b"\0\0\0\rIHDR") or len(png) < 33:
        return None
    width, height, bits, colours, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    if bits != 8 or colours not in (_GREY, _PALETTE) or interlaced or not 0 < width * height <= MAX_PIXELS:
        return None
    size = height * (1 + width)
    data = _unpacked(png, size)
    if data is None or data[:: 1 + width].count(0) != height:  # a row begins with the number of its filter
        return None
    return np.frombuffer(data, np.uint8).reshape(height, 1 + width)


def _unpacked(png: bytes, size: int) -> bytes | None:
    """What the IDAT chunks of a PNG hold; None where that is damaged or not of this size."""
    try:
        packed = _image_data(png)
        if len(packed) <= _SMALL:  # at once, which is faster
            data, whole = zlib_ng.decompress(packed, bufsize=size), True
        else:
            inflater = zlib_ng.decompressobj()
            data, whole = inflater.decompress(packed, size + 1), inflater.eof
    except (zlib_ng.error, struct.error):  # pyright: ignore[reportGeneralTypeIssues]: its stub is wrong
        return None
    return data if whole and len(data) == size else None


def _image_data(png: bytes) -> bytes:
    """The IDAT chunks of a PNG, joined."""
    parts, place = [], 8
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        if kind == b"IDAT":
            parts.append(png[place + 8 : place + 8 + length])
        place += length + 12
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def open_picture(data: bytes, kind: str, name: str) -> Image.Image:
    """Open a picture of exactly one format, so that bytes from elsewhere cannot choose their decoder.

    Raises:
        UserError: it is damaged, of another format or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is lower
            image = Image.open(BytesIO(data), formats=[kind])
    except UNREADABLE as error:
        raise UserError(f"{name} cannot be read as {kind}: the file is damaged or of another kind.") from error
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}: scale it down.")
    return image
