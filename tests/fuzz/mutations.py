"""Mutations that know the formats, so that what comes out is wrong in one place and passes the checks before it.

Every mutator takes a random generator and bytes and gives bytes; what it cannot parse it mutates as plain bytes.
"""

import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from random import Random
from typing import Any

import numpy as np

Mutator = Callable[[Random, bytes], bytes]

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 254, 255, 256, 257, 1000, 4095, 4096, 2**15, 2**16 - 1, 2**16, 2**31 - 1)
LARGE = (2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
BLOCK = 512  # of a tar


def join(*parts: bytes) -> bytes:
    """Parts as one input, for `split`."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def split(data: bytes, count: int) -> list[bytes]:
    """The parts of an input; what is missing is empty, and what is too much is left out."""
    parts = []
    for _ in range(count):
        length = int.from_bytes(data[:4], "little")
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return parts


def plain(random: Random, data: bytes) -> bytes:
    """Flip, change, insert, repeat or remove some bytes anywhere."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(changed) + 1)
        count = random.choice((1, 1, 2, 4, 16, 100))
        kind = random.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[place : place + count] = random.randbytes(min(count, len(changed) - place))
        elif kind == 2:
            changed[place:place] = random.randbytes(count)
        elif kind == 3:
            changed[place:place] = changed[place : place + count]
        elif kind == 4:
            del changed[place : place + count]
        else:
            del changed[place:]
    return bytes(changed)


def _shuffled(random: Random, items: list[Any]) -> None:
    """Repeat, remove or swap one of some items."""
    if not items:
        return
    a, b = random.randrange(len(items)), random.randrange(len(items))
    kind = random.randrange(3)
    if kind == 0:
        items.insert(b, items[a])
    elif kind == 1:
        del items[a]
    else:
        items[a], items[b] = items[b], items[a]


def _length(random: Random) -> int:
    return random.choice(NUMBERS) if random.random() < 0.8 else random.randrange(2**16)


# ---- JPEG: markers with segments, then the scan


def jpeg(random: Random, data: bytes) -> bytes:
    """Change the sizes or components in the frame header, a segment, their order, or the scan."""
    segments, rest = segments_of(data)
    if not segments or random.random() < 0.1:
        return plain(random, data)
    kind = random.randrange(6)
    place = random.randrange(len(segments))
    marker, payload = segments[place]
    if kind == 0:
        _shuffled(random, segments)
    elif kind == 1:
        segments[place] = (marker, plain(random, payload))
    elif kind == 2:
        segments[place] = (random.randrange(0xFFC0, 0xFFFF), payload)
    elif kind == 3:
        segments = [(m, _frame(random, p) if 0xFFC0 <= m <= 0xFFC2 else p) for m, p in segments]
    elif kind == 4:
        end = rest.rfind(b"\xff\xd9")
        rest = random.choice((plain(random, rest), rest[:end], rest + random.randbytes(9), rest[:end] * 2 + rest[end:]))
    else:
        segments.insert(place, (random.choice((0xFFE0, 0xFFE1, 0xFFE2, 0xFFEE, 0xFFFE, 0xFFDD)), random.randbytes(8)))
    written = b"".join(struct.pack(">HH", m, min(len(p) + 2, 65535)) + p[:65533] for m, p in segments)
    return b"\xff\xd8" + written + rest


def segments_of(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Segments before the first scan, and the rest."""
    segments, place = [], 2
    while place + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, place)
        if marker == 0xFFDA or marker < 0xFFC0 or length < 2:
            break
        segments.append((marker, data[place + 4 : place + 2 + length]))
        place += 2 + length
    return segments, data[place:]


def _frame(random: Random, payload: bytes) -> bytes:
    if len(payload) < 6:
        return payload
    changed = bytearray(payload)
    kind = random.randrange(4)
    if kind < 2:
        struct.pack_into(">H", changed, 1 + 2 * kind, _length(random) % 2**16)  # height, width
    elif kind == 2:
        changed[random.choice((0, 5))] = random.choice((0, 1, 2, 3, 4, 8, 12, 16, 255))  # bits, components
    else:
        changed[random.randrange(6, len(changed) + 1) - 1] = random.randrange(256)
    return bytes(changed)


# ---- PNG: chunks with checksums


def png(random: Random, data: bytes) -> bytes:
    """Change the header's fields, the pixels below the compression, a chunk or the order, mostly with right sums."""
    chunks = _chunks(data)
    if not chunks or random.random() < 0.1:
        return plain(random, data)
    kind = random.randrange(7)
    place = random.randrange(len(chunks))
    name, payload = chunks[place]
    if kind == 0:
        _shuffled(random, chunks)
    elif kind == 1:
        chunks[place] = (name, plain(random, payload))
    elif kind == 2:
        chunks = [(n, _header(random, p) if n == b"IHDR" else p) for n, p in chunks]
    elif kind in (3, 4):
        chunks = _other_pixels(random, chunks)
    elif kind == 5:
        names = (b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"acTL", b"fcTL", b"PLTE", b"gAMA", b"eXIf", b"IDAT", b"IEND")
        packed = random.choice((random.randbytes(9), b"x\0\0" + zlib.compress(bytes(10**6)), b""))
        chunks.insert(place, (random.choice(names), packed))
    else:
        chunks[place : place + 1] = [(name, payload[:1]), (name, payload[1:])]
    wrong = random.random() < 0.1
    written = [
        struct.pack(">I", len(p)) + n + p + struct.pack(">I", zlib.crc32(n + p) ^ (wrong and i == place))
        for i, (n, p) in enumerate(chunks)
    ]
    return data[:8] + b"".join(written)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        chunks.append((name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def _header(random: Random, payload: bytes) -> bytes:
    if len(payload) < 13:
        return payload
    changed = bytearray(payload)
    kind = random.randrange(4)
    if kind < 2:
        struct.pack_into(">I", changed, 4 * kind, random.choice((_length(random), random.choice(LARGE))) % 2**32)
    else:
        changed[random.randrange(8, 13)] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return bytes(changed)


def _other_pixels(random: Random, chunks: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The same file with other rows, all in the first IDAT."""
    try:
        rows = zlib.decompressobj().decompress(b"".join(p for n, p in chunks if n == b"IDAT"), 2**20)
    except zlib.error:
        return chunks
    packed = zlib.compress(plain(random, rows), random.choice((0, 1, 9)))
    first = next((i for i, (n, _) in enumerate(chunks) if n == b"IDAT"), 0)
    kept = [(n, p) for n, p in chunks if n != b"IDAT"]
    return [*kept[:first], (b"IDAT", packed), *kept[first:]]


# ---- tar: headers of a block, data in whole blocks


def tar(random: Random, data: bytes) -> bytes:
    """Change a field of a header, a member's data, the members, their order, or the end; checksums are mostly right."""
    members = _members(data)
    if not members or random.random() < 0.05:
        return plain(random, data)
    kind = random.randrange(7)
    place = random.randrange(len(members))
    header, content = members[place]
    if kind == 0:
        _shuffled(random, members)
    elif kind == 1:
        members[place] = (_tar_header(random, header), content)
    elif kind in (2, 3):
        members[place] = _other_content(random, header, content)
    elif kind == 4:
        members.insert(place, _special_member(random))
    elif kind == 5:
        members[place] = (header, content[: random.randrange(len(content) + 1)])  # its blocks do not come out even
    end = random.choice((b"", bytes(BLOCK), random.randbytes(BLOCK))) if kind == 6 else bytes(2 * BLOCK)
    return b"".join(h + c for h, c in members) + end


def _members(data: bytes) -> list[tuple[bytes, bytes]]:
    """Headers and the blocks behind them, as far as sizes can be read."""
    members, place = [], 0
    while place + BLOCK <= len(data) and data[place]:
        header = data[place : place + BLOCK]
        blocks = -(-_size(header) // BLOCK) * BLOCK
        members.append((header, data[place + BLOCK : place + BLOCK + blocks]))
        place += BLOCK + blocks
    return members


def _size(header: bytes) -> int:
    """What a header says of its member's size; 0 where it says nothing."""
    try:
        return max(0, int(header[124:136].strip(b"\0 "), 8))
    except ValueError:
        return 0


def _with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _tar_header(random: Random, header: bytes) -> bytes:
    changed = bytearray(header)
    kind = random.randrange(6)
    if kind == 0:
        changed[156] = random.choice(b"0\x001234567LKSxgXVDM")
    elif kind == 1:
        size = random.choice(NUMBERS)
        packed = random.choice(
            (b"%011o\0" % size, b"\x80" + random.choice(LARGE[:-1]).to_bytes(11, "big"), b"\xff" * 12)
        )
        changed[124:136] = packed
    elif kind == 2:
        names = (b"../a.jpg", b"/a.jpg", b"a.jpg", b"a.0.jpg", b"a.0.png", b"a.json", b"a.pkl", b"\xff.jpg", b"a\n.png")
        changed[0:100] = random.choice(names).ljust(100, b"\0")
    elif kind == 3:
        changed[345:500] = random.choice((b"..", b"/x", b"x" * 155, b"\x80")).ljust(155, b"\0")[:155]
    else:
        changed = bytearray(plain(random, header)[:BLOCK].ljust(BLOCK, b"\0"))
    return _with_checksum(changed) if random.random() < 0.9 else bytes(changed)


def _other_content(random: Random, header: bytes, content: bytes) -> tuple[bytes, bytes]:
    """A member whose bytes are another picture, label map or JSON, with the right size in its header."""
    name = header[:100].rstrip(b"\0")
    mutate = jpeg if name.endswith(b"jpg") else png if name.endswith(b"png") else json_text
    changed = mutate(random, content[: _size(header)])
    written = bytearray(header)
    written[124:136] = b"%011o\0" % len(changed)
    return _with_checksum(written), changed + bytes(-len(changed) % BLOCK)


def _special_member(random: Random) -> tuple[bytes, bytes]:
    records = (
        b"30 path=../../x/y/z/somewhere\n",
        b"19 size=8589934592\n",
        b"11 size=-1\n",
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n31 GNU.sparse.realsize=99999999\n",
        b"25 GNU.sparse.size=99999\n36 GNU.sparse.numblocks=1\n22 GNU.sparse.map=0,9\n",
        b"9" * 40 + b" path=a\n",
        b"0 =\n",
        b"21 hdrcharset=BINARY\n12 path=\xff\xfe\n",
    )
    content = random.choice((random.choice(records), plain(random, random.choice(records)), random.randbytes(20)))
    info = tarfile.TarInfo(random.choice(("a.jpg", "././@LongLink", "a.png", "x")))
    info.size, info.linkname = len(content), random.choice(("", "a.jpg", "/etc/passwd"))
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[156] = random.choice(b"xgLKSX12345678")
    return _with_checksum(block), content + bytes(-len(content) % BLOCK)


# ---- JSON


def json_text(random: Random, data: bytes) -> bytes:
    """Replace, remove or repeat a value somewhere in the document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return plain(random, data)
    if random.random() < 0.1:
        return plain(random, data)
    places = list(_places(document)) if isinstance(document, dict | list) else []
    if not places:
        return json.dumps(_value(random, document)).encode()
    container, key = random.choice(places)
    kind = random.randrange(4)
    if kind == 0 and isinstance(container, list):
        container.insert(key, container[key])
    elif kind == 1:
        del container[key]
    else:
        container[key] = _value(random, container[key])
    return json.dumps(document).encode()


def _places(document: Any) -> Any:
    """Every (container, key) in a document."""
    items = list(document.items()) if isinstance(document, dict) else list(enumerate(document))
    for key, value in items:
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _value(random: Random, value: Any) -> Any:
    if isinstance(value, int) and random.random() < 0.7:
        return random.choice((value + 1, value - 1, -value, random.choice(NUMBERS), random.choice(LARGE)))
    texts = ("", "../x", "/etc/passwd", "a\0b", "a\nb", "\ud800", "x" * 5000, "0", "255", "65535", "<i8", "|O", "..")
    others = (None, True, False, [], {}, -1, 0, 1, 0.5, 1e308, float("nan"), [[[]]], {"a": 1})
    return random.choice((random.choice(texts), random.choice(others), random.choice(NUMBERS), random.choice(LARGE)))


# ---- Columns of an index: .npy files


def packed(data: bytes) -> bytes:
    """A column as inputs hold it: one of them is half a megabyte of almost nothing."""
    return zlib.compress(data, 1)


def unpacked(data: bytes) -> bytes:
    """What `packed` packed; anything else as it is."""
    try:
        return zlib.decompressobj().decompress(data, 2**21)
    except zlib.error:
        return data


def column(random: Random, data: bytes) -> bytes:
    """Change some values, the length, the type or the header of a .npy file."""
    try:
        values = np.load(BytesIO(data), allow_pickle=False)
    except Exception:  # numpy takes its header for Python, and fails in all the ways that Python has
        return plain(random, data)
    kind = random.randrange(8)
    if kind == 0:
        return plain(random, data)
    if kind == 1:
        values = values.astype(random.choice(("<i4", "<i8", "|u1", "<u2", ">i8", "<f8", "<U4")), copy=True)
    elif kind == 2 and len(values):
        values = np.concatenate([values, values[-random.randrange(1, len(values) + 1) :]])
    elif kind == 3:
        values = values[: random.randrange(len(values) + 1)]
    elif values.size:
        flat = values.reshape(-1)
        for _ in range(random.choice((1, 1, 2))):
            place, other = random.randrange(flat.size), random.randrange(flat.size)
            near = int(flat[place]) + random.choice((-1, 1))
            wanted = random.choice((int(flat[other]), near, random.choice(NUMBERS), random.choice(LARGE), -1))
            info = np.iinfo(flat.dtype)
            flat[place] = min(max(wanted, info.min), info.max)
    return npy(values)


def npy(values: np.ndarray) -> bytes:
    """An array as a .npy file."""
    stream = BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
