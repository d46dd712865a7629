"""Checkpoints and weights that something else wrote: nothing in them runs, and none takes more than its size."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harm
import pytest
import torch
from confined import check_bounded, check_refused, confined, nothing_new, plant
from safetensors.torch import save

from ldis_lightning.conversion.source import read_source
from ldis_lightning.platform import check_checkpoint
from ldis_lightning.sharded_files import read_into, read_rest, read_weights, write
from ldis_lightning.weights.reading import read_state

CONTENT: dict[str, Any] = {"state_dict": {"w": torch.ones(4)}, "epoch": 0, "pytorch-lightning_version": "2.6"}
READERS: dict[str, Callable[[Path], object]] = {
    "--ckpt_path": check_checkpoint,
    "convert": read_source,
    "weights": read_state,
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return plant(tmp_path, monkeypatch)


def saved(content: object, **options: Any) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def with_record(name: str, change: Callable[[bytes], bytes], compressed: bool = False) -> bytes:
    """An archive of torch.save of which one record is another one."""
    with zipfile.ZipFile(io.BytesIO(saved(CONTENT))) as archive:
        records = {member: archive.read(member) for member in archive.namelist()}
    changed = {member: change(data) if member.endswith(name) else data for member, data in records.items()}
    return harm.zip_of(changed, (name,) if compressed else ())


def unpacking(name: str, size: int) -> bytes:
    """An archive of torch.save of which one record unpacks to so many zeros."""
    with zipfile.ZipFile(io.BytesIO(saved(CONTENT))) as archive:
        records = {member: archive.read(member) for member in archive.namelist()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member, data in records.items():
            bomb = member.endswith(name)
            archive.writestr(member, harm.zeros(size)[2:-4] if bomb else data)
            if bomb:
                archive.filelist[-1].compress_type, archive.filelist[-1].file_size = zipfile.ZIP_DEFLATED, size
    return stream.getvalue()


def legacy_tar(canary: Path) -> bytes:
    """The format of torch before 0.1.10, a tar of pickles."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            harm.add(archive, name, harm.pickled(canary))
        harm.add(archive, "../../escaped", b"")
    return stream.getvalue()


def files_with_code(canary: Path) -> dict[str, bytes]:
    """Every place of a file in which a pickle may be, and every way to make one do something."""
    hostile = {how: {**CONTENT, "callbacks": harm.Touches(canary, how)} for how in ("mkdir", "system", "eval")}
    code = harm.pickled(canary)
    archive = zipfile.ZipFile(io.BytesIO(saved(CONTENT)))
    records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).partition("/")[0]
    found = {f"data.pkl, {how}": saved(content) for how, content in hostile.items()}
    found |= {f"old format, {how}": saved(c, _use_new_zipfile_serialization=False) for how, c in hostile.items()}
    found["data.pkl, protocol 4"] = saved(hostile["mkdir"], pickle_protocol=4)
    found["a pickle alone"] = code
    found["a pickle of protocol 5"] = pickle.dumps(harm.Touches(canary), protocol=5)
    found["tar format"] = legacy_tar(canary)
    found["TorchScript"] = harm.zip_of({**records, f"{root}/constants.pkl": code, f"{root}/code/a.py": b"import os"})
    found["two of data.pkl"] = harm.zip_of({**records, f"{root}/DATA.PKL": code})
    found["code before the archive"] = code + saved(CONTENT)
    found["an archive behind the old format"] = found["old format, mkdir"] + saved(CONTENT)
    found["compressed code"] = with_record("data.pkl", lambda _: code, compressed=True)
    found["a pickle in gzip"] = harm.gzip_of_zeros(2**20) + code
    return found


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", files_with_code(Path("canary")))
def test_code_in_files(tmp_path: Path, canary: Path, place: str, reader: str) -> None:
    """It is refused, or, where weights lie beside it, passed over."""
    path = tmp_path / "hostile.pt"
    path.write_bytes(files_with_code(canary)[place])
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: READERS[reader](path))
    check_bounded(outcome)
    if outcome.error or reader == "--ckpt_path":
        check_refused(outcome, "hostile.pt")


# ---- Bombs


def described(data: bytes) -> Callable[[bytes], bytes]:
    return lambda _: data


def overlapping() -> bytes:
    """An archive of which a thousand members are the same megabyte."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("a/data/0", bytes(2**20))
        first = archive.getinfo("a/data/0")
        for number in range(1, 1000):
            copy = zipfile.ZipInfo(f"a/data/{number}")
            for attribute in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copy, attribute, getattr(first, attribute))
            archive.filelist.append(copy)
    return stream.getvalue()


def longer(data: bytes) -> bytes:
    """A description in which 4 values have become 10**9, of storage and of tensor."""
    many = b"J" + struct.pack("<i", 10**9)
    return data.replace(b"K\x04tq", many + b"tq").replace(b"K\x04\x85", many + b"\x85")


class LongBytes:
    """An array of bytes whose pickle only names its length."""

    def __reduce__(self) -> Any:
        return bytearray, (4 * 2**30,)


HEAD, WIDE = b"\x80\x02", [number * (2**61 - 1) for number in range(1, 30_000)]
NUMBERS = b"".join(b"\x8a\x0b" + number.to_bytes(11, "little") + b"K\x00" for number in WIDE)
ENDLESS = b"\x80\x05\x96" + struct.pack("<Q", 2**62)
BOMBS: dict[str, Callable[[], bytes]] = {
    "an array of 4 GB": lambda: saved({**CONTENT, "callbacks": LongBytes()}),
    "an array of 4 GB in the old format": lambda: saved(LongBytes(), _use_new_zipfile_serialization=False),
    "a description that unpacks to 1 GB": lambda: unpacking("data.pkl", 2**30),
    "weights that unpack to 1 GB": lambda: unpacking("data/0", 2**30),
    "members that overlap": overlapping,
    "a memo of 2**32 entries": lambda: with_record("data.pkl", described(HEAD + b"}r\xff\xff\xff\x7f.")),
    "a memo of 2**32 entries in a pickle": lambda: HEAD + b"}r\xff\xff\xff\x7f.",
    "a text of 2**32 bytes": lambda: with_record("data.pkl", described(HEAD + b"X\xff\xff\xff\xff.")),
    "bytes of 2**62 bytes": lambda: with_record("data.pkl", described(ENDLESS)),
    "a frame of 2**62 bytes": lambda: with_record("data.pkl", described(b"\x80\x04\x95" + struct.pack("<Q", 2**62))),
    "lists in lists": lambda: with_record("data.pkl", described(HEAD + b"]" * 20_000 + b"a" * 19_999 + b".")),
    "pairs of pairs": lambda: with_record("data.pkl", described(HEAD + b")" + b"2\x86" * 60 + b".")),
    "a list of itself": lambda: with_record("data.pkl", described(HEAD + b"]q\x00h\x00a.")),
    "keys of one hash": lambda: with_record("data.pkl", described(HEAD + b"}(" + NUMBERS + b"u.")),
    "an endless number": lambda: with_record("data.pkl", described(HEAD + b"L" + b"9" * 10**6 + b"L\n.")),
    "a tensor longer than its data": lambda: with_record("data.pkl", longer),
    "a tensor before its data": lambda: with_record("data.pkl", lambda data: data.replace(b"QK\x00", b"QJ\0\0\0\x80")),
    "nothing": lambda: b"",
    "half of it": lambda: saved(CONTENT)[:300],
    "zeros": lambda: bytes(10**6),
    "a directory without members": lambda: harm.zip_of({}),
}
HARMLESS = ("lists in lists", "pairs of pairs", "a list of itself", "keys of one hash")
"""What `--ckpt_path` refuses and weights may hold: they are looked at for names and tensors alone."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(tmp_path: Path, canary: Path, bomb: str, reader: str) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(BOMBS[bomb]())
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: READERS[reader](path) and None)
    check_bounded(outcome)
    if outcome.error or (reader == "--ckpt_path" or bomb not in HARMLESS):
        check_refused(outcome, "hostile.pt")


# ---- safetensors


def tensors(header: bytes | dict[str, Any], data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A file of safetensors with such a header, which may claim another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int = 0, end: int = 16, shape: Any = (4,), dtype: str = "F32") -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}}


SAFETENSORS: dict[str, bytes] = {
    "a header of 2**63 bytes": tensors(b"{}", length=2**63),
    "a header of 100 MB": tensors(b"{}", length=10**8),
    "a header that is cut": tensors(tensor(), length=20),
    "a nested header": tensors(b"[" * 10**6),
    "a header nested in a tensor": tensors(b'{"w": ' + b"[" * 10**6),
    "a tensor of 2**60 bytes": tensors(tensor(0, 2**60, (2**58,))),
    "a tensor of 2**70 values": tensors(tensor(0, 16, (2**35, 2**35))),
    "a tensor that ends before it begins": tensors(tensor(16, 0)),
    "a tensor that begins at -16": tensors(tensor(-16, 0)),
    "a tensor of another size": tensors(tensor(0, 16, (5,))),
    "tensors that overlap": tensors({**tensor(), "v": tensor()["w"]}),
    "a tensor of no type": tensors(tensor(dtype="os.system")),
    "an endless number": tensors(b'{"w": ' + b"9" * 10**6 + b"}"),
    "offsets that are none": tensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": ["a", "b"]}}),
    "a pickle": pickle.dumps({"w": 1}),
    "more behind it": save({"w": torch.ones(4)}) + b"more",
}


@pytest.mark.parametrize("data", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_safetensors(tmp_path: Path, canary: Path, data: bytes) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: read_state(path))
    check_refused(outcome, "hostile.safetensors")


def test_code_named_safetensors(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(harm.pickled(canary))
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: read_state(path))
    check_refused(outcome, "hostile.safetensors")


# ---- Sharded checkpoints


def metadata(**changes: Any) -> Callable[[Path], None]:
    """A `.metadata` in which bytes are replaced by others of the same length."""

    def change(folder: Path) -> None:
        from torch.distributed.checkpoint.filesystem import _StorageInfo

        content = pickle.loads((folder / ".metadata").read_bytes())
        for key, info in list(content.storage_data.items()):
            new = {"relative_path": info.relative_path, "offset": info.offset, "length": info.length, **changes}
            content.storage_data[key] = _StorageInfo(**new)
        (folder / ".metadata").write_bytes(pickle.dumps(content))

    return change


def large(folder: Path) -> None:
    """Tensors that are said to have 10**13 values."""
    content = pickle.loads((folder / ".metadata").read_bytes())
    for entry in content.state_dict_metadata.values():
        if hasattr(entry, "size"):
            entry.size = torch.Size([10**13])
            entry.chunks[0].sizes = torch.Size([10**13])
    (folder / ".metadata").write_bytes(pickle.dumps(content))


def pipe(folder: Path) -> None:
    shard = next(folder.glob("*.distcp"))
    shard.unlink()
    os.mkfifo(shard)


def device(folder: Path) -> None:
    shard = next(folder.glob("*.distcp"))
    shard.unlink()
    shard.symlink_to("/dev/zero")


SHARDED: dict[str, Callable[[Path], object]] = {
    "a memo of 2**32 entries": lambda folder: (folder / ".metadata").write_bytes(HEAD + b"}r\xff\xff\xff\x7f."),
    "an array of 4 GB": lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(LongBytes())),
    "bytes of 2**62 bytes": lambda folder: (folder / ".metadata").write_bytes(ENDLESS),
    "a list": lambda folder: (folder / ".metadata").write_bytes(pickle.dumps([])),
    "nothing": lambda folder: (folder / ".metadata").write_bytes(b""),
    "tensors of 10**13 values": large,
    "a shard above": metadata(relative_path="../../etc/passwd"),
    "a shard that is absolute": metadata(relative_path="/etc/passwd"),
    "a shard that is a device": metadata(relative_path="/dev/zero", length=2**40),
    "a link to a device": device,
    "a shard that is a pipe": pipe,
    "a shard of 2**60 bytes": metadata(length=2**60),
    "a place behind the shard": metadata(offset=2**60),
    "a place before the shard": metadata(offset=-(2**60)),
}


def sharded_with_code(canary: Path) -> dict[str, Callable[[Path], object]]:
    """Every file of a sharded checkpoint in which a pickle may be."""
    code = harm.pickled(canary)

    def in_shards(folder: Path) -> None:
        write({"state_dict": {"w": torch.ones(4)}, "extra": harm.Touches(canary)}, CONTENT, folder)

    def everywhere(folder: Path) -> None:
        for path in folder.iterdir():
            path.write_bytes(code)

    def as_tensor(folder: Path) -> None:
        (folder / "__0_0.distcp").write_bytes(saved(harm.Touches(canary)).ljust(10**4, b"\0"))

    return {
        ".metadata": lambda folder: (folder / ".metadata").write_bytes(code),
        ".metadata, system": lambda folder: (folder / ".metadata").write_bytes(harm.pickled(canary, "system")),
        ".metadata, eval": lambda folder: (folder / ".metadata").write_bytes(harm.pickled(canary, "eval")),
        "an entry of bytes": in_shards,
        "an entry of a tensor": as_tensor,
        "meta.pt": lambda folder: torch.save(harm.Touches(canary), folder / "meta.pt"),
        "meta.pt, a pickle": lambda folder: (folder / "meta.pt").write_bytes(code),
        "all files": everywhere,
    }


def read_all(folder: Path) -> None:
    """Whatever reads a sharded checkpoint: `ldis convert`, and a run that goes on from it."""
    errors = []
    state: dict[str, Any] = {"state_dict": {"w": torch.zeros(4)}, "extra": 0}
    for read in (read_weights, read_rest, read_source, lambda folder: read_into(state, folder)):
        try:
            read(folder)
        except Exception as error:
            errors.append(error)
    if errors:
        raise next((error for error in errors if type(error).__name__ != "UserError"), errors[0])


@pytest.mark.parametrize("place", [*SHARDED, *sharded_with_code(Path("canary"))])
def test_sharded(tmp_path: Path, canary: Path, place: str) -> None:
    folder = tmp_path / "hostile.ckpt"
    folder.mkdir()
    write({"state_dict": {"w": torch.ones(4)}, "extra": 1}, dict(CONTENT), folder)
    {**SHARDED, **sharded_with_code(canary)}[place](folder)
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: read_all(folder))
    check_refused(outcome, "hostile.ckpt")


def test_the_number_of_cases() -> None:
    """As docs/reliability.md states it."""
    code = len(files_with_code(Path("canary"))), len(sharded_with_code(Path("canary")))
    assert (*code, len(BOMBS), len(SAFETENSORS) + 1, len(SHARDED)) == (16, 8, 21, 17, 14)
