"""Files of `torch.save`, looked at before torch reads them.

torch's own reader runs no code (`weights_only=True`), but it does unpack and build whatever a file asks for: compressed
members, arrays of bytes of a length that is merely named, dicts whose keys all have one hash. What these checks let
pass takes no more memory and time than its size gives reason to expect.
"""

import mmap
import pickletools
import zipfile
from pathlib import Path

MOST_PICKLE_BYTES = 2**24
"""Of what describes the tensors: some hundred bytes a tensor."""
MOST_WIDE_NUMBERS = 1000
"""Numbers of more than 64 bits: a state of a random generator holds one or two."""
MOST_VALUES = 2**24
DEEPEST = 100
"""Levels of lists and dicts in each other."""
SIGNATURE = b"PK\x03\x04"
BYTE_ARRAY = b"bytearray\n"
"""As pickles of protocol 2 name it: the only function that torch calls and that allocates as much as it is told."""
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


def is_archive(path: Path) -> bool:
    """Whether torch takes a file for a zip archive: by its beginning, while zipfile looks at its end."""
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def check_stream(path: Path) -> None:
    """Check a file of torch before 1.6, a row of pickles with numbers behind them, for what would allocate at will.

    Raises:
        ValueError: it is there.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(BYTE_ARRAY) >= 0:
                raise ValueError("it asks for an array of bytes")


def check_archive(path: Path) -> None:
    """Check a zip archive of `torch.save`: that nothing in it is compressed, overlaps or has another member's name, and
    that its pickles are plain, see `check_pickle`.

    Raises:
        ValueError: it is no such archive; the message says why.
        OSError: it cannot be read.
    """
    if not is_archive(path):
        raise ValueError("it is no archive of `torch.save`")
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, size)
            for member in members:
                if member.filename.lower().endswith(".pkl"):
                    check_pickle(archive.read(member))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # of zipfile
        raise ValueError(f"it is damaged ({error})") from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member of it is compressed, which `torch.save` never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")
    if len({member.filename.lower() for member in members}) < len(members):  # torch takes `A` and `a` for one
        raise ValueError("two of its members have the same name")
    if any(m.file_size > MOST_PICKLE_BYTES for m in members if m.filename.lower().endswith(".pkl")):
        raise ValueError(f"its description of the tensors has more than {MOST_PICKLE_BYTES} bytes")


def check_pickle(data: bytes) -> None:
    """Check a pickle without building anything of it: that its objects are no larger than itself.

    Whether it names functions that do harm is for its reader to tell.

    Raises:
        ValueError: it is not plain, or damaged; the message says why.
    """
    if BYTE_ARRAY in data:
        raise ValueError("it asks for an array of bytes")
    wide = 0
    try:
        for opcode, argument, place in pickletools.genops(data):
            if opcode.name in MEMO and int(argument or 0) > (place or 0):  # a table of that length would be made
                raise ValueError("it is damaged (a number in its memo)")
            if isinstance(argument, int) and not -(2**64) < argument < 2**64:
                wide += 1
    except (ArithmeticError, LookupError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    if wide > MOST_WIDE_NUMBERS:
        raise ValueError(f"it holds {wide} numbers of more than 64 bits")


def check_extent(content: object) -> None:
    """Check what was loaded: whoever walks through it, or prints it, comes to an end.

    Raises:
        ValueError: lists and dicts lie too deep in each other, or stand for too much where one is in many places.
    """
    if _extent(content, {}, 0)[0] > MOST_VALUES:
        raise ValueError(f"it stands for more than {MOST_VALUES} values")


def _extent(content: object, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Values and levels of some content, with everything that is in several places counted in each of them."""
    if not isinstance(content, dict | list | tuple | set):
        return 1, 0
    if id(content) not in known and depth <= DEEPEST:  # what lies in itself comes down here again and again
        parts = [*content.keys(), *content.values()] if isinstance(content, dict) else content
        extents = [_extent(part, known, depth + 1) for part in parts]
        known[id(content)] = 1 + sum(values for values, _ in extents), 1 + max((n for _, n in extents), default=0)
    values, levels = known.get(id(content), (0, DEEPEST + 1))
    if levels > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return values, levels
