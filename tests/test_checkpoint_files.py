"""Checkpoint files: whole or not there, whatever ends the writing; and what is not whole is recognised."""

import errno
import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldis_lightning import checkpoint_files, sharded_files
from ldis_lightning.checkpoint_files import AtomicCheckpointIO, damage, write_whole
from ldis_lightning.errors import UserError
from ldis_lightning.sharded_files import partial_name, put_in_place


def checkpoint(step: int = 1) -> dict[str, Any]:
    weights = {f"layer.{i}": torch.full((40, 5), float(step + i)) for i in range(3)}
    return {
        "state_dict": weights,
        "global_step": step,
        "optimizer_states": [{"state": {0: torch.ones(7)}}],
        "loops": {},
    }


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def same(content: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return isinstance(content, torch.Tensor) and torch.equal(content, other)
    if isinstance(other, dict):
        return content.keys() == other.keys() and all(same(content[key], other[key]) for key in other)
    if isinstance(other, list):
        return len(content) == len(other) and all(map(same, content, other))
    return content == other


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint of step 1."""
    write_whole(checkpoint(), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


# ---- Writing


def test_a_new_checkpoint_takes_the_place_of_the_old(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(checkpoint(2), path)
    assert same(AtomicCheckpointIO().load_checkpoint(path, weights_only=True), checkpoint(2))
    assert damage(path) is None and names(path.parent) == ["last.ckpt"]


def test_a_file_takes_the_place_of_a_folder_and_a_folder_of_a_file(path: Path) -> None:
    sharded_files.write({"state_dict": {"a": torch.ones(2)}}, {"loops": {}}, partial_name(path))
    put_in_place(partial_name(path), path)
    assert path.is_dir() and damage(path) is None
    write_whole(checkpoint(3), path)
    assert step_of(path) == 3 and names(path.parent) == ["last.ckpt"]


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "gone.ckpt")


STAGES = {  # what the writing process calls when it is killed
    "opened": "checkpoint_files.save_to_disk",
    "half written": "checkpoint_files._ErrorKeeper.write",
    "flushed": "checkpoint_files.os.fsync",
    "synchronised": "checkpoint_files.put_in_place",
    "renamed": "sharded_files.sync",
    "done": "sharded_files.delete",
}


def die_writing(path: Path, target: str, call: int) -> int:
    """Write step 2 in a process that dies when it calls something for the n-th time; its exit status."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    module, _, name = target.rpartition(".")
    owner: Any = {"checkpoint_files": checkpoint_files, "sharded_files": sharded_files}[module.partition(".")[0]]
    for part in module.split(".")[1:]:
        owner = getattr(owner, part)
    former, calls = getattr(owner, name), iter(range(1, 1_000_000))
    setattr(owner, name, lambda *args: os._exit(9) if next(calls) == call else former(*args))
    write_whole(checkpoint(2), path)
    os._exit(0)


@pytest.mark.parametrize("stage", STAGES)
def test_a_process_that_dies_while_it_writes(stage: str, path: Path) -> None:
    assert die_writing(path, STAGES[stage], call=20 if stage == "half written" else 1) == 9
    assert damage(path) is None
    assert step_of(path) == (2 if stage in ("renamed", "done") else 1)
    write_whole(checkpoint(3), path)  # what the dead one has left is no hindrance
    assert step_of(path) == 3 and names(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("operation", [1, 2, 3])
def test_a_process_that_dies_between_the_renames_of_a_folder(
    operation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the folder that was and the one that comes, a whole one can be found at any time."""
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        sharded_files.write({"state_dict": {"a": torch.ones(2)}}, {"loops": {}, "step": step}, partial_name(path))
        if step == 1:
            put_in_place(partial_name(path), path)

    class Killed(BaseException):
        pass

    count = 0

    def dies(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == operation + 1:  # the first deletes a `.previous` that is not there
                raise Killed
            return function(*args)

        return wrapped

    monkeypatch.setattr(sharded_files, "delete", dies(sharded_files.delete))
    monkeypatch.setattr(sharded_files.os, "replace", dies(os.replace))
    with pytest.raises(Killed):
        put_in_place(partial_name(path), path)
    monkeypatch.undo()
    found = [one for one in checkpoint_files.checkpoints_in(tmp_path) if damage(one) is None]
    newest = max(found, key=lambda one: one.stat().st_mtime_ns)
    assert sharded_files.read_rest(newest)["step"] == (2 if operation == 3 else 1)
    sharded_files.write({"state_dict": {"a": torch.ones(2)}}, {"loops": {}, "step": 3}, tmp_path / "next")
    put_in_place(tmp_path / "next", path)
    assert sharded_files.read_rest(path)["step"] == 3


# ---- A full disk


class FullDisk:
    """In the place of `_ErrorKeeper`'s file: takes so many bytes."""

    def __init__(self, limit: int, error: int) -> None:
        self.left, self.error = limit, error

    def write(self, content: Any) -> int:
        self.left -= len(content)
        if self.left < 0:
            raise OSError(self.error, os.strerror(self.error))
        return len(content)

    def flush(self) -> None:
        if self.left == 0:
            raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk of {path} is full; the checkpoint before, last.ckpt, is intact; free "),
        (errno.EDQUOT, "the disk of {path} is full; the checkpoint before, last.ckpt, is intact; free "),
        (errno.EIO, "the checkpoint {path} cannot be written (Input/output error); the checkpoint before, last.ckpt"),
    ],
)
def test_a_disk_that_is_full_after_any_number_of_bytes(
    code: int, message: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, kept = path.stat().st_size, path.read_bytes()
    keeper = checkpoint_files._ErrorKeeper
    for limit in [*range(0, size, size // 40), size - 1]:
        monkeypatch.setattr(checkpoint_files, "_ErrorKeeper", lambda _, limit=limit: keeper(FullDisk(limit, code)))  # pyright: ignore
        with pytest.raises(UserError) as caught:
            write_whole(checkpoint(2), path)
        assert str(caught.value).startswith(message.format(path=path)), limit
        assert str(caught.value).endswith("go on with --ckpt_path last")
        assert path.read_bytes() == kept and names(path.parent) == ["last.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    write_whole(checkpoint(1), path)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(80_000))
    with pytest.raises(UserError, match=r"is full; the checkpoint before, last.ckpt, is intact; free \d+ MB and go on"):
        write_whole({**checkpoint(2), "more": torch.zeros(20_000)}, path)
    assert damage(path) is None and step_of(path) == 1
    assert names(small_disk) == ["ballast", "last.ckpt"]
    ballast.unlink()
    write_whole(checkpoint(2), path)
    assert step_of(path) == 2


def test_a_real_disk_that_is_full_of_shards(small_disk: Path) -> None:
    from torch.distributed.checkpoint import CheckpointException

    state = {"state_dict": {"a": torch.zeros(50_000)}}
    with pytest.raises((OSError, CheckpointException)) as caught:
        sharded_files.write(state, {"loops": {}}, small_disk / ".last.ckpt.partial")
    sharded_files.delete(small_disk / ".last.ckpt.partial")
    error = checkpoint_files.disk_error(caught.value)
    said = checkpoint_files.cannot_write(small_disk / "last.ckpt", error, 200_000)
    assert str(said).startswith(f"the disk of {small_disk / 'last.ckpt'} is full; there is no checkpoint before it; ")


# ---- Whole or not


def test_a_whole_checkpoint_is_whole(path: Path) -> None:
    assert damage(path) is None


def test_a_file_that_is_cut_short_anywhere(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    for length in [*range(0, len(content), max(1, len(content) // 300)), len(content) - 1]:
        path.write_bytes(content[:length])
        assert damage(path), length


def test_a_bit_that_has_changed_anywhere(path: Path) -> None:
    """It is recognised, or it lies where nobody reads: between the members, or in a date."""
    content = path.read_bytes()
    harmless = 0
    for place in random.Random(0).sample(range(len(content)), 400):
        for bit in (1, 128):
            changed = bytearray(content)
            changed[place] ^= bit
            path.write_bytes(changed)
            if damage(path) is None:
                assert same(torch.load(path, weights_only=True), checkpoint()), place
                harmless += 1
    assert harmless < 400  # most of a file is weights, or names


def test_bits_of_the_weights_and_of_the_plain_data(path: Path) -> None:
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [(one.header_offset, one.filename, one.file_size) for one in archive.infolist() if one.file_size]
        starts = {name: content.index(archive.read(name), offset) for offset, name, _ in members}
    for _, name, size in members:
        for place in range(starts[name], starts[name] + size, max(1, size // 20)):
            changed = bytearray(content)
            changed[place] ^= 4
            path.write_bytes(changed)
            assert damage(path), (name, place)


def test_what_is_no_checkpoint(path: Path, tmp_path: Path) -> None:
    torch.save([1, 2], path)
    assert damage(path) == "it has no `state_dict`"
    path.write_bytes(b"")
    assert damage(path) == "it is cut short, or no checkpoint"
    path.write_bytes(random.Random(0).randbytes(5000))
    assert damage(path) == "it is cut short, or no checkpoint"
    path.unlink()
    assert damage(path) == "last.ckpt is missing"
    path.mkdir()
    assert damage(path) == "it has no `.metadata`"


def test_a_compressed_member_is_not_unpacked(path: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    assert "is compressed, which torch does not do" in str(damage(tmp_path / "packed.ckpt"))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (f"{os.environ['TRAP']}",)


def test_code_in_a_checkpoint_is_not_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "executed"))
    torch.save({"state_dict": Hostile()}, path)
    assert "weights_only" in str(damage(path)) or "Unsupported" in str(damage(path))
    assert not (tmp_path / "executed").exists()


# ---- Sharded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = {"state_dict": {"a": torch.arange(600.0)}, "optimizer_0": {"groups": [{"lr": 0.5}]}}
    sharded_files.write(state, {"loops": {}}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "meta.pt"])
def test_any_file_of_a_sharded_checkpoint_that_is_not_whole(name: str, folder: Path) -> None:
    assert damage(folder) is None
    content = (folder / name).read_bytes()
    for length in range(0, len(content), max(1, len(content) // 60)):
        (folder / name).write_bytes(content[:length])
        assert damage(folder), length
    for place in random.Random(1).sample(range(len(content)), 60):
        changed = bytearray(content)
        changed[place] ^= 16
        (folder / name).write_bytes(changed)
        if damage(folder) is None:
            assert torch.equal(sharded_files.read_weights(folder)["a"], torch.arange(600.0)), place
    (folder / name).unlink()
    assert damage(folder)


def test_a_shard_may_not_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "__0_0.distcp", tmp_path / "elsewhere")
    (folder / "__0_0.distcp").symlink_to(tmp_path / "elsewhere")
    assert damage(folder) == "__0_0.distcp is missing"
