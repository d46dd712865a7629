"""The packing engine: the same bytes for any number of workers and after any interruption, and what it refuses."""

import errno
import fcntl
import filecmp
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shard_samples import jpg, png, png_of

from ldis_lightning.datamodules.packing import engine
from ldis_lightning.datamodules.packing import workers as worker_processes
from ldis_lightning.datamodules.packing.engine import Item, LeaveOut, Packer, Survey, pack, plan_shards
from ldis_lightning.datamodules.shards import ShardFile
from ldis_lightning.errors import UserError


class Numbered(Packer):
    """Files `0.jpg`, `0.png`, ... of a folder as images, and each eight of them, from the second on, as a clip.

    Every read is recorded in `reads`, and a file `trap` in the folder makes picture 7 do what it says.
    """

    def __init__(self, src: Path, count: int = 20) -> None:
        self.src, self.count = src, count

    def survey(self) -> Survey:
        parts = [(self.src / f"{number}.jpg", self.src / f"{number}.png") for number in range(self.count)]
        items = [Item(f"i{number}", (part,), source="made up") for number, part in enumerate(parts)]
        items[4:4] = [Item(f"c{first}", tuple(parts[first : first + 8]), True) for first in range(1, self.count - 8, 8)]
        return Survey(items, {1: "cat"}, Counter({"files without a name": 2}))

    def read(self, part: Any) -> tuple[bytes, bytes]:
        with (self.src / "reads").open("a") as stream:
            stream.write(f"{part[0].stem}\n")
        trap = self.src / "trap"
        if part[0].stem == "7" and trap.exists():
            spring(trap.read_text())
        return part[0].read_bytes(), part[1].read_bytes()


def spring(trap: str) -> None:
    if trap == "interrupt":
        raise KeyboardInterrupt
    if trap == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if trap == "leave out":
        raise LeaveOut("shy samples")
    (Path(trap) / str(os.getpid())).touch()  # wait for what the test does
    time.sleep(60)


@pytest.fixture
def src(tmp_path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.jpg").write_bytes(jpg(seed=number))
        (folder / f"{number}.png").write_bytes(png((0, 1 + number % 3, 255)))
    return folder


def pack_numbered(src: Path, out: Path, **options) -> engine.Packed:
    options = {"name": "numbers", "workers": 1, "max_samples_per_shard": 4} | options
    return pack(Numbered(src), out, **options)


def same(a: Path, b: Path) -> bool:
    """Whether two data sets are equal in every byte."""
    files = sorted(str(path.relative_to(a)) for path in a.rglob("*") if path.is_file())
    assert files == sorted(str(path.relative_to(b)) for path in b.rglob("*") if path.is_file())
    return filecmp.cmpfiles(a, b, files, shallow=False)[1:] == ([], [])


def reads(src: Path) -> Counter[str]:
    text = (src / "reads").read_text()
    (src / "reads").unlink()
    return Counter(text.split())


def test_images_and_clips_are_packed_in_order(src, tmp_path):
    index, skipped = pack_numbered(src, tmp_path / "out")
    keys = [index.key(row) for row in range(len(index))]
    assert keys[:6] == ["i0", "i1", "i2", "i3", "c1.00000", "c1.00001"]
    assert keys[20:] == [f"i{number}" for number in range(4, 20)]
    assert (index.kind, index.clip_names, index.classes) == (
        "mixed",
        ["c1", "c9"],
        {1: "cat", 2: "class 2", 3: "class 3"},
    )
    assert skipped == {"files without a name": 2}
    assert index.shard.tolist() == [0] * 4 + [1] * 8 + [2] * 8 + [3] * 4 + [4] * 4 + [5] * 4 + [6] * 4
    with tarfile.open(index.shard_paths[0]) as tar:
        assert json.load(tar.extractfile("i1.json"))["source"] == "made up"  # pyright: ignore[reportArgumentType]
        assert tar.extractfile("i3.jpg").read() == (src / "3.jpg").read_bytes()  # pyright: ignore[reportOptionalMemberAccess]
    index.verify()


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(src, tmp_path, workers):
    pack_numbered(src, tmp_path / "one")
    pack_numbered(src, tmp_path / "many", workers=workers)
    assert same(tmp_path / "one", tmp_path / "many")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one", "src"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(("trap", "workers"), [("interrupt", 1), ("die", 2)])
def test_interrupted_and_continued(src, tmp_path, trap, workers, exists):
    pack_numbered(src, tmp_path / "whole")
    if exists:
        (tmp_path / "out").mkdir()
    (src / "trap").write_text(trap)
    with pytest.raises((KeyboardInterrupt, UserError)) as stopped:
        pack_numbered(src, tmp_path / "out", workers=workers)
    assert trap == "interrupt" or "a worker process was killed" in str(stopped.value)
    (src / "trap").unlink()
    reads(src)
    index, _ = pack_numbered(src, tmp_path / "out", workers=workers)
    assert same(tmp_path / "whole", tmp_path / "out")
    assert sum(reads(src).values()) < len(index), "finished shards are not packed again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src", "whole"]


def test_a_full_disk_is_one_message_and_packing_continues(src, tmp_path, monkeypatch):
    put, puts = ShardFile._put, []

    def full_at_last(self, data):
        puts.append(len(data))
        if len(puts) > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, data)

    monkeypatch.setattr(ShardFile, "_put", full_at_last)
    with pytest.raises(UserError, match=r"No space left on device: free some space, and the same command continues"):
        pack_numbered(src, tmp_path / "out")
    monkeypatch.undo()
    reads(src)
    pack_numbered(src, tmp_path / "out")
    assert "0" not in reads(src)
    pack_numbered(src, tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "out")


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have it ignored
sys.path.insert(0, {tests!r})
from pathlib import Path
from ldis_lightning import cli
from ldis_lightning.datamodules import commands
from test_packing import pack_numbered
def run(args):
    pack_numbered(Path(args[0]), Path(args[1]), workers=2, progress=True)
    return 0
commands.COMMANDS["numbers"] = ("", run)
if __name__ == "__main__":
    sys.exit(cli.main(["data", "numbers", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_leaves_no_process_and_continues(src, tmp_path, stop):
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    (src / "trap").write_text(str(waiting))
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(tmp_path / "script.py"), str(src), str(tmp_path / "out")]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    soon(lambda: any(waiting.iterdir()))
    workers = [int(path.name) for path in waiting.iterdir()]
    os.killpg(started.pid, stop) if stop == signal.SIGINT else started.send_signal(stop)
    _, text = started.communicate(timeout=30)
    assert started.returncode == (130 if stop == signal.SIGINT else -stop)
    assert "Traceback" not in text
    assert stop != signal.SIGINT or re.search(r"\d of 7 shards are finished: the same command continues", text)
    soon(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    (src / "trap").unlink()
    pack_numbered(src, tmp_path / "out")
    pack_numbered(src, tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "out")


def soon(happens) -> None:
    """Wait until it does."""
    for _ in range(600):
        if happens():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def interrupted(src: Path, out: Path, **options) -> None:
    (src / "trap").write_text("interrupt")
    with pytest.raises(KeyboardInterrupt):
        pack_numbered(src, out, **options)
    (src / "trap").unlink()
    reads(src)


def test_another_job_starts_anew(src, tmp_path):
    interrupted(src, tmp_path / "out", name="old")
    index, _ = pack_numbered(src, tmp_path / "out", name="new")
    assert index.name == "new"
    assert sum(reads(src).values()) == len(index)


def test_what_has_changed_since_an_interruption_is_packed_again(src, tmp_path):
    interrupted(src, tmp_path / "out")
    time.sleep(0.02)  # clocks of file systems are coarse
    (src / "1.png").write_bytes(png((5, 6)))
    index, _ = pack_numbered(src, tmp_path / "out")
    assert index.classes_of_row(1)[0].tolist() == [5, 6]
    index.verify()


def test_nobody_else_packs_into_the_same_folder(src, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.time, "sleep", lambda _: None)
    (tmp_path / ".out.packing").mkdir()
    with (tmp_path / ".out.packing" / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process packs into it"):
            pack_numbered(src, tmp_path / "out")
        assert (tmp_path / ".out.packing").exists()
    pack_numbered(src, tmp_path / "out")


def test_damaged_samples_are_named_or_left_out(src, tmp_path):
    (src / "2.jpg").write_bytes(jpg((64, 64))[:-300])
    (src / "18.png").write_bytes(png()[:50])
    (src / "19.png").write_bytes(png(size=(9, 9)))
    with pytest.raises(UserError) as error:
        pack_numbered(src, tmp_path / "out", workers=2)
    lines = str(error.value).splitlines()
    assert lines[0] == "numbers was not packed, because of 4 of its frames:"
    assert [Path(line.split()[0]).name for line in lines[1:]] == [
        "2.jpg",
        "2.jpg",
        "18.png",
        "19.png",
    ]  # as image and in a clip
    assert lines[4].endswith("19.png is 9 x 9 pixels, but its image 16 x 12: they must be equal.")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
    index, skipped = pack_numbered(src, tmp_path / "out", skip_damaged=True)
    assert index.clip_names == ["c9"], "the other clip would have its frames renumbered"
    assert len(index) == 17 + 8
    ((reason, count),) = [entry for entry in skipped.items() if "damaged" in entry[0]]
    assert count == 4
    assert reason.startswith(f"samples that are damaged or do not fit, first of all: {src / '2.jpg'} is a damaged JPEG")


def test_packing_stops_once_there_is_enough_to_say(src, tmp_path):
    for number in range(20):
        (src / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be read as PNG(.|\n)*and \d+ more"):
        pack_numbered(src, tmp_path / "out")
    assert "19" not in reads(src)


def test_missing_files_are_named(src, tmp_path):
    (src / "3.png").unlink()
    with pytest.raises(UserError, match=rf"{src / '3.png'} cannot be read: No such file or directory\."):
        pack_numbered(src, tmp_path / "out")


def test_samples_that_a_packer_leaves_out_are_counted(src, tmp_path):
    (src / "trap").write_text("leave out")
    index, skipped = pack_numbered(src, tmp_path / "out", workers=2, max_samples_per_shard=1)
    assert (len(index), index.clip_names) == (36 - 9, ["c9"])
    assert skipped == {"files without a name": 2, "shy samples": 2}
    assert [shard.name for shard in index.shards] == sorted(path.name for path in index.folder.glob("*.tar"))


class Few(Packer):
    """Samples that a test gives."""

    unlabelled_hint = " Have a rest."

    def __init__(
        self, samples: dict[str, tuple[bytes, bytes]], totals: dict[str, tuple[int, int]] | None = None
    ) -> None:
        self._samples, self.totals = samples, totals or {}

    def survey(self) -> Survey:
        return Survey([Item(key, (key,)) for key in self._samples], {}, Counter(nothing=3), self.totals)

    def read(self, part: Any) -> tuple[bytes, bytes]:
        return self._samples[part]


def test_totals_are_compared_with_those_published(tmp_path):
    packer = Few({"a": (jpg(), png())}, {"pictures": (1, 2), "clips": (0, 0)})
    with pytest.raises(UserError, match=r"few is not complete: 1 pictures were found, 2 published\. .*--allow_partial"):
        pack(packer, tmp_path / "out", name="few")
    assert len(pack(packer, tmp_path / "out", name="few", allow_partial=True).index) == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "nothing to pack. Left out: 3 nothing"),
        ({"a": (jpg(), png((0, 255)))}, "shows a class.* Have a rest"),
        ({"a.b": (jpg(), png())}, "holds a dot"),
        ({"a": (jpg(), jpg())}, "the mask of a cannot be read as PNG"),
        ({"a": (png(), png())}, "the image of a cannot be read as JPEG"),
        ({"a": (jpg(), png((0, 1), (9, 9)))}, "the mask of a is 9 x 9 pixels"),
    ],
)
def test_sources_that_are_refused(samples, message, tmp_path):
    with pytest.raises(UserError, match=message):
        pack(Few(samples), tmp_path / "out", name="few")
    assert not list(tmp_path.iterdir())


def test_keys_must_differ(src, tmp_path, monkeypatch):
    monkeypatch.setattr(Numbered, "survey", lambda self: Survey([Item("a", ()), Item("a", ())], {}, Counter()))
    with pytest.raises(UserError, match="a occurs twice"):
        pack_numbered(src, tmp_path / "out")


def test_an_occupied_folder_is_said_before_the_source_is_read(src, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    with pytest.raises(UserError, match="notes"):
        pack(Numbered(tmp_path / "typo"), tmp_path / "out", name="numbers")
    index, _ = pack_numbered(src, tmp_path / "set")
    with pytest.raises(UserError, match="--overwrite"):
        pack_numbered(src, tmp_path / "set")
    assert pack_numbered(src, tmp_path / "set", overwrite=True).index.hash == index.hash


def test_larger_pictures_are_scaled_down(tmp_path):
    large = np.zeros((40, 60), np.uint8)
    large[:, 30:] = 7
    samples = {"large": (jpg((40, 60)), png_of(large, palette=True)), "small": (jpg((12, 16)), png())}
    index, _ = pack(Few(samples), tmp_path / "out", name="few", resize=20, workers=1)
    assert index.size.tolist() == [[20, 30], [12, 16]]
    assert index.pixels(7).tolist() == [300]
    data = index.shard_paths[0].read_bytes()
    spans = [data[offset : offset + size] for offset, size in index.image_span]
    assert Image.open(BytesIO(spans[0])).size == (30, 20)
    assert spans[1] == samples["small"][0], "a picture that is small already keeps its bytes"
    with pytest.raises(UserError, match="image of large is a damaged JPEG"):
        pack(Few({"large": (jpg((40, 60))[:-900], png_of(large))}), tmp_path / "cut", name="few", resize=20)


def test_class_names_of_the_caller_go_first(src, tmp_path):
    assert pack_numbered(src, tmp_path / "out", classes={1: "dog", 9: "cow"}).index.classes[1] == "dog"
    with pytest.raises(UserError, match="class ids are 1 to 65534"):
        pack_numbered(src, tmp_path / "set", classes={255: "ignore"})


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=60), most=st.integers(1, 60))
def test_every_item_is_in_one_shard_and_shards_are_not_too_large(counts, most):
    items = [Item(str(number), tuple(range(count))) for number, count in enumerate(counts)]
    plan = plan_shards(items, most)
    assert [position for shard in plan for position in shard] == list(range(len(items)))
    for shard in plan:
        assert len(shard) == 1 or sum(counts[position] for position in shard) <= most


def test_a_packer_travels_to_processes_that_are_not_forked(src, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_processes.sys, "platform", "darwin")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    pack_numbered(src, tmp_path / "spawned", workers=2)
    monkeypatch.undo()
    pack_numbered(src, tmp_path / "here")
    assert same(tmp_path / "spawned", tmp_path / "here")
