"""Writing shards: what is stored, what is refused, and that nothing half-written stays."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_samples import jpg, labels, png

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.shards import ShardFile, ShardWriter
from ldis_lightning.errors import UserError


def write(out: Path, images: int = 3, clips: int = 2, **settings) -> ShardIndex:
    with ShardWriter(out, "tiny", {1: "cat"}, **settings) as writer:
        for number in range(images):
            writer.add_image(f"image{number}", jpg(seed=number), png((0, 1 + number, 255)), source="made up")
        for number in range(clips):
            writer.add_clip(f"clip{number}", [(jpg(seed=frame), png((0, 1))) for frame in range(3)])
    return ShardIndex.open(out)


def test_plain_webdataset_reads_images_and_clips(tmp_path):
    from webdataset.compat import WebDataset

    index = write(tmp_path / "set")
    urls = [str(path) for path in index.shard_paths]
    dataset: Any = WebDataset(urls, shardshuffle=False)
    samples = list(dataset.decode("pil"))
    assert [sample["__key__"] for sample in samples] == ["image0", "image1", "image2", "clip0", "clip1"]
    assert np.array_equal(np.asarray(samples[1]["png"].convert("L")), labels((0, 2, 255)))
    assert samples[1]["jpg"].size == (16, 12)
    expected = {"dataset": "tiny", "class_ids": [2], "class_names": ["class 2"], "size": [12, 16], "source": "made up"}
    assert samples[1]["json"] == expected
    assert samples[4]["json"]["frames"] == 3
    assert np.array_equal(np.asarray(samples[4]["00002.png"].convert("L")), labels((0, 1)))


KEYS = ["a", "dir/größe 1", "k" * 96, "k" * 97, "k" * 180, f"{'d' * 60}/{'k' * 80}", "ü" * 60]


def test_shards_are_byte_for_byte_those_of_webdatasets_own_writer(tmp_path):
    from webdataset.writer import TarWriter

    with ShardWriter(tmp_path / "set", "tiny", {}) as writer:
        for number, key in enumerate(KEYS):
            writer.add_image(key, jpg(seed=number), png(), source="ü")
        writer.add_clip("clip", [(jpg(), png()), (jpg(seed=1), png())])
    shard = ShardIndex.open(tmp_path / "set").shard_paths[0]
    with (tmp_path / "again.tar").open("wb") as stream, tarfile.open(shard) as tar:
        again = TarWriter(stream, user="ldis", group="ldis", mtime=0, encoder=False)
        for member in tar:
            key, ending = member.name.split(".", 1)
            again.write({"__key__": key, ending: tar.extractfile(member).read()})  # pyright: ignore[reportOptionalMemberAccess]
        again.close()
    assert (tmp_path / "again.tar").read_bytes() == shard.read_bytes()


def test_bytes_are_stored_as_given_and_found_by_their_spans(tmp_path):
    index = write(tmp_path / "set", max_samples_per_shard=2)
    picture = index.shard_paths[index.shard[2]].read_bytes()
    offset, length = index.image_span[2]
    assert picture[offset : offset + length] == jpg(seed=2)
    offset, length = index.mask_span[2]
    assert picture[offset : offset + length] == png((0, 3, 255))


def test_shards_roll_and_clips_are_never_split(tmp_path):
    index = write(tmp_path / "set", images=3, clips=3, max_samples_per_shard=2)
    assert index.shard.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [shard.name for shard in index.shards] == [f"shard-{number:05d}.tar" for number in range(4)]


def test_same_content_gives_same_bytes_and_hash(tmp_path):
    first, second, other = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", images=2)
    assert first.hash == second.hash != other.hash
    assert first.shard_paths[0].read_bytes() == second.shard_paths[0].read_bytes()
    with tarfile.open(first.shard_paths[0]) as tar:
        assert {(member.mtime, member.uname, member.uid) for member in tar} == {(0, "ldis", 0)}


@pytest.mark.parametrize("existing", [False, True])
def test_an_exception_leaves_nothing_and_changes_nothing(tmp_path, existing):
    if existing:
        before = write(tmp_path / "set", images=1).hash
    with (
        pytest.raises(RuntimeError, match="halfway"),
        ShardWriter(tmp_path / "set", "new", {}, overwrite=True) as writer,
    ):
        writer.add_image("a", jpg(), png())
        raise RuntimeError("halfway")
    assert [path.name for path in tmp_path.iterdir()] == (["set"] if existing else [])
    if existing:
        assert ShardIndex.open(tmp_path / "set").hash == before


def test_overwrite_replaces_only_data_sets_of_ours(tmp_path):
    write(tmp_path / "set", images=1)
    with pytest.raises(UserError, match="--overwrite"):
        write(tmp_path / "set")
    assert len(write(tmp_path / "set", overwrite=True)) == 9
    (tmp_path / "set" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex"):
        write(tmp_path / "set", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder"):
        write(tmp_path / "file", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    with pytest.raises(UserError, match="no folder"):
        write(tmp_path / "link", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "set"]


def test_parents_are_made(tmp_path):
    assert len(write(tmp_path / "x" / "y")) == 9


def test_an_empty_folder_is_filled_and_stays_itself(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    before = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    assert len(write(Path("."))) == len(ShardIndex.open(tmp_path / "here")) == 9
    assert (tmp_path / "here").stat().st_ino == before, "it may be mounted, or somebody's current folder"
    names = sorted(path.name.partition("-")[0] for path in (tmp_path / "here").iterdir())
    assert names == ["index", "index.json", "shard"]


def test_an_empty_folder_stays_empty_after_an_exception(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "new", {}) as writer:
        writer.add_image("a", jpg(), png())
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_the_first_of_two_writers_wins(tmp_path, exists):
    if exists:
        (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set"), ShardWriter(tmp_path / "set", "slow", {}) as slow:
        slow.add_image("a", jpg(), png())
        first = write(tmp_path / "other").hash
        for path in (tmp_path / "other").iterdir():
            (tmp_path / "set").mkdir(exist_ok=True)
            path.rename(tmp_path / "set" / path.name)
    assert ShardIndex.open(tmp_path / "set").hash == first


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "set")


def test_a_full_disk_is_one_message(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardFile, "_write", fails)
    with pytest.raises(UserError, match="No space left"), ShardWriter(tmp_path / "set", "full", {}) as writer:
        writer.add_image("a", jpg(), png())
    assert not list(tmp_path.iterdir())


def test_writing_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no sample"), ShardWriter(tmp_path / "set", "none", {}):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["a.b", "", "a/", "/a", "a//b", "__meta__", "a/../b", "a\nb", "a\udcff"])
def test_keys_that_webdataset_would_garble_are_refused(tmp_path, key):
    with pytest.raises(UserError, match="key"), ShardWriter(tmp_path / "set", "keys", {}) as writer:
        writer.add_image(key, jpg(), png())


@pytest.mark.parametrize("key", ["a", "dir/a", "größe-1", "k" * 180, "with space"])
def test_other_keys_come_back(tmp_path, key):
    from webdataset.compat import WebDataset

    with ShardWriter(tmp_path / "set", "keys", {}) as writer:
        writer.add_image(key, jpg(), png())
    index = ShardIndex.open(tmp_path / "set")
    assert index.key(0) == key
    (sample,) = WebDataset(str(index.shard_paths[0]), shardshuffle=False)
    assert sample["__key__"] == key
    assert sample["png"] == png()


def test_a_key_may_occur_once(tmp_path):
    with pytest.raises(UserError, match="twice"), ShardWriter(tmp_path / "set", "keys", {}) as writer:
        writer.add_image("a", jpg(), png())
        writer.add_clip("a", [(jpg(), png())])


def test_clips_need_frames_of_one_size(tmp_path):
    with ShardWriter(tmp_path / "set", "clips", {}) as writer:
        with pytest.raises(UserError, match="no frames"):
            writer.add_clip("a", [])
        with pytest.raises(UserError, match="different sizes"):
            writer.add_clip("b", [(jpg(), png()), (jpg((6, 6)), png(size=(6, 6)))])
        writer.add_image("c", jpg(), png())


@pytest.mark.parametrize("classes", [{0: "none"}, {255: "ignore"}, {65535: "too high"}, {1: " "}])
def test_class_ids_and_names_are_checked(tmp_path, classes):
    with pytest.raises(UserError, match="class"):
        ShardWriter(tmp_path / "set", "classes", classes)


def test_labelled_frames_are_counted(tmp_path):
    with ShardWriter(tmp_path / "set", "tiny", {}) as writer:
        writer.add_image("a", jpg(), png((0, 255)))
        assert writer.labelled_frames == 0
        writer.add_clip("b", [(jpg(), png((0, 255))), (jpg(), png((0, 9)))])
        assert writer.labelled_frames == 1


def test_readers_need_no_access_rights_of_the_writer(tmp_path):
    index = write(tmp_path / "set")
    folders = [index.folder, index.folder / json.loads((index.folder / "index.json").read_text())["column_folder"]]
    (tmp_path / "usual").mkdir()
    assert {folder.stat().st_mode for folder in folders} == {(tmp_path / "usual").stat().st_mode}
