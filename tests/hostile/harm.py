"""Hostile pictures, label maps, pickles, tars and indexes, made by code."""

import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldis_lightning.datamodules.index import Row, Shard
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.imaging.pictures import write_label_map

SIZE = (16, 16)


class Touches:
    """Makes a file when it is unpickled in the ordinary way."""

    def __init__(self, path: Path, how: str = "mkdir") -> None:
        self.path, self.how = str(path), how

    def __reduce__(self) -> Any:
        if self.how == "mkdir":
            return os.mkdir, (self.path,)
        if self.how == "system":
            return os.system, (f"touch '{self.path}'",)
        return eval, (f"__import__('os').mkdir({self.path!r})",)


def pickled(canary: Path, how: str = "mkdir") -> bytes:
    """A pickle that makes the canary."""
    return pickle.dumps(Touches(canary, how), protocol=2)


def npy_with_pickle(canary: Path) -> bytes:
    """A .npy file of an object array."""
    stream = BytesIO()
    np.save(stream, np.array([Touches(canary)], object), allow_pickle=True)
    return stream.getvalue()


# ---- Pictures


def jpeg(size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    """A JPEG of (height, width)."""
    stream = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def label_map(size: tuple[int, int] = SIZE) -> bytes:
    """A label map with the class 1 in its left half."""
    labels = np.zeros(size, np.uint8)
    labels[:, : size[1] // 2] = 1
    return write_label_map(labels)


def postscript(canary: Path) -> bytes:
    """An EPS for which PIL, if it took it for one, would start Ghostscript."""
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
    return (text + f"({canary}) (w) file closefile showpage\n%%EOF\n").encode()


def jpeg_of_size(height: int, width: int) -> bytes:
    """A JPEG whose header claims a size."""
    data = jpeg()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of a few bytes a scan, each of which passes over the whole picture."""
    table = b"\xff\xc4" + struct.pack(">HB", 19 + 1, 0x10) + bytes([1] + [0] * 15) + b"\xe0"  # runs of 2**14 blocks
    frame = b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0)
    quantised = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0x00, 1, 63, 0) + bytes(3 * (side // 8) ** 2 // 2**14 + 8)
    return b"\xff\xd8" + quantised + frame + table + scan * scans + b"\xff\xd9"


def jpeg_of_repeated_scans(side: int, scans: int) -> bytes:
    """A plain JPEG of three channels, the first of which is sent again and again, each time empty."""
    tables = b"".join(b"\xff\xc4" + struct.pack(">HB", 20, n) + bytes([1] + [0] * 15) + b"\0" for n in (0x00, 0x10))
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, side, side, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    quantised = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    each = [b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, channel, 0, 0, 63, 0) for channel in (1, 2, 3)]
    return b"\xff\xd8" + quantised + frame + tables + b"".join(each) + each[0] * scans + b"\xff\xd9"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, packed: bytes, *others: bytes, bits: int = 8, colours: int = 0) -> bytes:
    """A PNG of which everything may lie: other chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *others, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def zeros(size: int) -> bytes:
    """So many zeros, a multiple of 2**20, compressed by zlib to a thousandth: the same block again and again."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, wbits=-zlib.MAX_WBITS).flush()
    return b"\x78\xda" + block * (size // 2**20) + end + struct.pack(">HH", size % 65521, 1)


def gzip_of_zeros(size: int) -> bytes:
    """The same as a gzip file, but for its checksum."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + zeros(size)[2:-4] + bytes(4) + struct.pack("<I", size % 2**32)


def label_bombs() -> dict[str, bytes]:
    """PNGs of few bytes that claim or unpack to gigabytes."""
    few, many = zeros(2**20), zeros(2**31)
    return {
        "60,000 x 60,000": png(60_000, 60_000, few),
        "100,000 x 100,000": png(100_000, 100_000, few),
        "the largest that a PNG may be": png(2**31 - 1, 2**31 - 1, few),
        "one row of 2**31 - 1": png(1, 2**31 - 1, few),
        "2 GB of pixels in a small picture": png(*SIZE, many),
        "2 GB of 16-bit pixels in a small picture": png(*SIZE, many, bits=16),
        "2 GB of text": png(*SIZE, few, chunk(b"zTXt", b"Comment\0\0" + many)),
        "2 GB of colours": png(*SIZE, few, chunk(b"iCCP", b"profile\0\0" + many)),
        "2**31 frames": png(*SIZE, few, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        "a chunk of 2**31 bytes": png(*SIZE, few)[:33] + struct.pack(">I4s", 2**31 - 1, b"tEXt"),
    }


def jpeg_bombs() -> dict[str, bytes]:
    """JPEGs of few bytes that claim gigabytes, or take minutes."""
    return {
        "65,535 x 65,535": jpeg_of_size(65_535, 65_535),
        "1 x 65,535": jpeg_of_size(1, 65_535),
        "0 x 16": jpeg_of_size(0, 16),
        "3,000 scans": jpeg_of_many_scans(8192, 3000),
        "3,000 scans and more behind them": jpeg_of_many_scans(8192, 3000) + b"more",
        "3,000 repeated scans": jpeg_of_repeated_scans(8192, 3000),
        "3,000 repeated scans and more behind them": jpeg_of_repeated_scans(8192, 3000) + b"more",
        "2**18 segments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 2**18 + jpeg()[2:],
    }


def strangers(canary: Path) -> dict[str, bytes]:
    """Files of other formats, which are named .jpg and .png."""
    gif, tiff = BytesIO(), BytesIO()
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(gif, "GIF")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tiff, "TIFF")
    dos = b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, 200, 0, 0, 0, 0, 0)
    return {
        "EPS": postscript(canary),
        "EPS behind a DOS header": dos + postscript(canary),
        "GIF": gif.getvalue(),
        "TIFF": tiff.getvalue(),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "HTML": b"<html>404</html>",
        "a pickle": pickled(canary),
        "nothing": b"",
        "a gigabyte of zeros, compressed": gzip_of_zeros(2**30),
    }


# ---- Tars


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of such members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            add(archive, name, data)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **attributes: Any) -> None:
    """Append a member with such attributes of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    archive.addfile(info, BytesIO(data))


def raw_member(kind: bytes, size: int, data: bytes, name: bytes = b"x") -> bytes:
    """A header that says what is wanted, and bytes behind it."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else b"\x80" + (size % 2**88).to_bytes(11, "big")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def record(text: bytes) -> bytes:
    """A record of a pax header, with its length before it."""
    length = len(text) + 2
    while len(b"%d " % length) + len(text) + 1 != length:
        length += 1
    return b"%d " % length + text + b"\n"


# ---- Data sets with an index that vouches for them


def data_set(folder: Path, samples: Mapping[str, tuple[bytes, bytes, tuple[int, int]]], name: str = "set") -> Path:
    """A folder with a shard of such (JPEG, PNG, size) and an index in which all their sums are right."""
    members = {}
    for key, (jpg, png, _) in samples.items():
        members |= {f"{key}.jpg": jpg, f"{key}.png": png}
    shard = tar(folder / "shard-00000.tar", members)
    builder = IndexBuilder()
    with tarfile.open(shard) as archive:
        spans = {info.name: (info.offset_data, info.size) for info in archive}
    for key, (jpg, png, size) in samples.items():
        sums = zlib.crc32(jpg), zlib.crc32(png)
        builder.add(Row(key, -1, -1, size, 0, spans[f"{key}.jpg"], spans[f"{key}.png"], {1: 10}, *sums))
    builder.write(folder, name, {1: "cat"}, [Shard(shard.name, shard.stat().st_size, "")])
    return folder


def zip_of(members: dict[str, bytes], compressed: tuple[str, ...] = ()) -> bytes:
    """A zip archive; members whose names end so are compressed."""
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            kind = zipfile.ZIP_DEFLATED if name.endswith(compressed) and compressed else zipfile.ZIP_STORED
            archive.writestr(name, data, compress_type=kind)
    return stream.getvalue()
