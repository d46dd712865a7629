"""Opening an index: what it says of a data set, and its messages where something is wrong."""

import errno
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import change, header, write_small
from shard_samples import jpg, labels

from ldis_lightning.datamodules.decode import FrameReader, concept_mask, reference_mask
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource
from ldis_lightning.datamodules.foreign import index_folder
from ldis_lightning.datamodules.index import Row, Shard, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.source import TrainingSource
from ldis_lightning.datamodules.synthetic import SyntheticWorld
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import write_label_map


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_small(tmp_path / "set")


def test_rows_and_classes(folder):
    index = ShardIndex.open(folder)
    assert (len(index), index.name, index.kind, index.folder) == (4, "tiny", "mixed", folder)
    assert [index.key(row) for row in range(4)] == ["a", "walk.00000", "walk.00001", "b"]
    assert index.clip.tolist() == [-1, 0, 0, -1]
    assert index.frame.tolist() == [-1, 0, 1, -1]
    assert (index.clips, index.clip_name(0), index.clip_names) == (1, "walk", ["walk"])
    assert index.size.tolist() == [[12, 16]] * 3 + [[4, 8]]
    assert index.classes == {1: "cat", 2: "dog", 3: "class 3", 9: "never seen"}
    assert index.rows_of_class(1).tolist() == [0, 3]
    assert index.pixels(1).tolist() == [96, 24]
    assert index.rows_of_class(9).tolist() == index.pixels(255).tolist() == []
    assert [array.tolist() for array in index.classes_of_row(1)] == [[2, 3], [96, 96]]
    assert [array.tolist() for array in index.classes_of_row(2)] == [[], []]


def test_types_are_those_of_the_contract(folder):
    index = ShardIndex.open(folder)
    types = {
        name: getattr(index, name).dtype.str for name in ("clip", "frame", "size", "shard", "image_span", "mask_span")
    }
    assert types == dict.fromkeys(("clip", "frame", "size", "shard"), "<i4") | {"image_span": "<i8", "mask_span": "<i8"}
    assert {index.image_crc.dtype.str, index.mask_crc.dtype.str} == {"<u4"}
    arrays = [index.rows_of_class(1), index.pixels(1), *index.classes_of_row(0)]
    assert {array.dtype.str for array in arrays} == {"<i8"}


def test_checksums_are_those_of_the_members(folder):
    index = ShardIndex.open(folder)
    for row in range(len(index)):
        data = index.shard_file(int(index.shard[row])).read_bytes()
        for span, crc in ((index.image_span, index.image_crc), (index.mask_span, index.mask_crc)):
            offset, length = span[row]
            assert zlib.crc32(data[offset : offset + length]) == crc[row]


def test_columns_are_mapped_not_read(folder):
    index = ShardIndex.open(folder)
    for array in (index.clip, index.image_span, index.rows_of_class(1)):
        bases = [array]
        while bases[-1].base is not None and isinstance(bases[-1].base, np.ndarray):
            bases.append(bases[-1].base)
        assert isinstance(bases[-1], np.memmap)
        assert not array.flags.writeable


@pytest.fixture
def wide(tmp_path) -> Path:
    """A data set of classes above 254, whose label maps have 16 bits."""
    with ShardWriter(tmp_path / "wide", "wide", {1: "cat", 1203: "zebra"}, max_samples_per_shard=2) as writer:
        for number in range(4):
            label_map = labels((0, 1, 255, 2)).astype(np.uint16)
            label_map[label_map == 2] = (1203, 256, 65534, 1203)[number]
            writer.add_image(f"i{number}", jpg(seed=number), write_label_map(label_map))
    return tmp_path / "wide"


def test_class_ids_above_254(wide):
    index = ShardIndex.open(wide)
    assert index.classes == {1: "cat", 256: "class 256", 1203: "zebra", 65534: "class 65534"}
    assert index.rows_of_class(1203).tolist() == [0, 3]
    assert index.pixels(65534).tolist() == [48]
    assert [array.tolist() for array in index.classes_of_row(1)] == [[1, 256], [48, 48]]
    assert index.rows_of_class(255).tolist() == index.rows_of_class(65535).tolist() == []
    with pytest.raises(ValueError, match="65536"):
        index.rows_of_class(65536)
    index.verify()


def test_class_ids_above_254_reach_the_episodes(wide):
    index = ShardIndex.open(wide)
    _, label_map = FrameReader(index).read(0)
    assert label_map.dtype == np.uint16
    assert np.unique(concept_mask(label_map, 1203)).tolist() == [0, 1, 255]
    assert int((reference_mask(label_map, 1203) == 1).sum()) == 48
    training = TrainingSource(str(wide), classes=[1203])
    datamodule = EpisodeDataModule(training, {"set": EvaluationSource(str(wide))}, image_size=16, batch_size=2)
    datamodule.setup()
    for loader in (datamodule.train_dataloader(), datamodule.test_dataloader()[0]):
        batch: Any = next(iter(loader))
        assert all((mask == 1).any() for mask in (*batch["query_mask"], *batch["reference_mask"]))
    assert set(next(iter(datamodule.train_dataloader()))["class_id"].tolist()) == {1203}


def test_indexing_shards_again_finds_class_ids_above_254(wide):
    before = ShardIndex.open(wide)
    assert index_folder(wide).hash == before.hash


def test_positions_out_of_range_are_errors(folder):
    index = ShardIndex.open(folder)
    for row in (-1, 4):
        with pytest.raises(IndexError):
            index.key(row)
    for class_id in (-1, 65536):
        with pytest.raises(ValueError, match=str(class_id)):
            index.rows_of_class(class_id)
    for clip in (-1, 1):
        with pytest.raises(IndexError):
            index.clip_name(clip)


def test_a_pickle_holds_the_folder_alone(folder):
    index = ShardIndex.open(folder)
    again = pickle.loads(pickle.dumps(index))
    assert (again.hash, again.key(3)) == (index.hash, "b")
    assert len(pickle.dumps(index)) < 400


def test_a_worker_does_not_check_columns_again_but_refuses_another_header(folder):
    pickled = pickle.dumps(ShardIndex.open(folder))
    path = folder / header(folder)["column_folder"] / "frame.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert pickle.loads(pickled).frame[3] != -1
    change(folder, name="other")
    with pytest.raises(UserError, match="replaced while it was in use"):
        pickle.loads(pickled)


def test_the_hash_is_of_the_content_not_of_its_place_or_spacing(folder):
    before = ShardIndex.open(folder).hash
    change(folder)  # other spacing
    assert ShardIndex.open(folder.rename(folder.parent / "elsewhere")).hash == before
    change(folder.parent / "elsewhere", classes=header(folder.parent / "elsewhere")["classes"] | {"1": "cow"})
    assert ShardIndex.open(folder.parent / "elsewhere").hash != before


def test_verify_finds_a_changed_byte(folder):
    index = ShardIndex.open(folder)
    index.verify()
    path = index.shard_paths[1]
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00001\.tar"):
        ShardIndex.open(folder).verify()


def test_missing_folders_and_indices(tmp_path, folder):
    with pytest.raises(UserError, match="no such folder"):
        ShardIndex.open(tmp_path / "typo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither index\.json nor"):
        ShardIndex.open(tmp_path / "empty")
    with pytest.raises(UserError, match=r"below it: .*set"):
        ShardIndex.open(tmp_path)
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match=f"ldis data index {folder}"):
        ShardIndex.open(folder)


def test_a_newer_version_is_named(folder):
    change(folder, version=7)
    with pytest.raises(UserError, match=r"format 7.*update ldis_lightning"):
        ShardIndex.open(folder)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_version_is_made_again_by_the_command_that_is_named(folder, version):
    before = ShardIndex.open(folder)
    old = {name: column for name, column in header(folder)["columns"].items() if not name.endswith("_crc")}
    change(folder, version=version, columns=old)
    with pytest.raises(UserError, match=f"format {version}.*run `ldis data index {folder}` once") as error:
        ShardIndex.open(folder)
    assert len(str(error.value).splitlines()) == 1
    assert index_folder(folder).hash == before.hash


def test_a_world_of_an_earlier_version_is_indexed_again(tmp_path, capsys):
    world = SyntheticWorld(str(tmp_path), train_images=3, test_images=0, train_clips=1, test_clips=0, frames=2)
    world.prepare()
    before = {name: ShardIndex.open(tmp_path / name).hash for name in ("images/train", "clips/train")}
    world.prepare()
    assert not capsys.readouterr().out
    for name in before:
        change(tmp_path / name, version=1, columns={})
    world.prepare()
    assert capsys.readouterr().out.count("is made again") == 2
    assert {name: ShardIndex.open(tmp_path / name).hash for name in before} == before


def test_writing_again_replaces_the_old_columns(folder):
    before = ShardIndex.open(folder)
    builder = IndexBuilder()
    builder.add(Row("only", -1, -1, (1, 1), 0, (0, 1), (1, 1), {5: 1}, 0, 0))
    builder.write(folder, "new", {}, before.shards)
    after = ShardIndex.open(folder)
    assert (len(after), after.name, after.hash != before.hash) == (1, "new", True)
    assert len(list(folder.glob("index-*"))) == 1
    assert before.key(3) == "b", "an index that is open keeps its columns"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("full_at", ["column", "header"])
def test_a_full_disk_leaves_the_index_that_was_there(folder, monkeypatch, full_at):
    before = ShardIndex.open(folder)

    def fail(path: Path, *args, **kwargs) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        if full_at == "column":
            patch.setattr(np, "save", fail)
        else:
            patch.setattr(Path, "write_text", fail)
        with pytest.raises(UserError, match=f"{folder} cannot be written.*No space left"):
            index_folder(folder, name="other")
    assert ShardIndex.open(folder).hash == before.hash
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert index_folder(folder, name="other").name == "other"
    assert len(list(folder.glob("index-*"))) == 1


pixel_counts = st.dictionaries(st.integers(1, 254), st.integers(1, 2**40), max_size=5)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(st.text("aé/字", min_size=1), pixel_counts), min_size=1, max_size=8))
def test_both_directions_say_what_was_added(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("set")
    (folder / "shard-00000.tar").write_bytes(bytes(100))
    builder = IndexBuilder()
    for number, (key, pixels) in enumerate(rows):
        builder.add(Row(key, -1, -1, (1, 2), 0, (number, 1), (number, 2), pixels, number, 0))
    builder.write(folder, "any", {}, [Shard("shard-00000.tar", 100, "")])
    index = ShardIndex.open(folder)
    for number, (key, pixels) in enumerate(rows):
        assert index.key(number) == key
        ids, counts = index.classes_of_row(number)
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == pixels
    for class_id in range(256):
        expected = [(number, pixels[class_id]) for number, (_, pixels) in enumerate(rows) if class_id in pixels]
        found = zip(index.rows_of_class(class_id).tolist(), index.pixels(class_id).tolist(), strict=True)
        assert list(found) == expected
