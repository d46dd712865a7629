"""Opening an index: what it says of a data set, and its messages where something is wrong."""

import errno
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_samples import jpg, labels, png

from ldis_lightning.datamodules import index_checks
from ldis_lightning.datamodules.decode import FrameReader, concept_mask, reference_mask
from ldis_lightning.datamodules.episodes import EpisodeDataModule
from ldis_lightning.datamodules.evaluation_set import EvaluationSource
from ldis_lightning.datamodules.foreign import index_folder
from ldis_lightning.datamodules.index import COLUMNS, Row, Shard, ShardIndex, sha256_of_file
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.source import TrainingSource
from ldis_lightning.datamodules.synthetic import SyntheticWorld
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import write_label_map


@pytest.fixture
def folder(tmp_path) -> Path:
    with ShardWriter(
        tmp_path / "set", "tiny", {1: "cat", 2: "dog", 9: "never seen"}, max_samples_per_shard=2
    ) as writer:
        writer.add_image("a", jpg(), png((0, 1)))
        writer.add_clip("walk", [(jpg(), png((2, 3))), (jpg(), png((0, 255)))])
        writer.add_image("b", jpg((4, 8)), png((1, 1, 2, 1), (4, 8)))
    return tmp_path / "set"


def header(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def change(folder: Path, **values) -> None:
    (folder / "index.json").write_text(json.dumps(header(folder) | values))


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


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": "mds"}', '{"format": "ldis_lightning index"}'])
def test_headers_that_are_none(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        ShardIndex.open(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"rows": 5},
        {"rows": "4"},
        {"columns": {}},
        {"shards": [{"name": "shard-00000.tar"}]},
        {"shards": None},
        {"classes": {"one": "cat"}},
        {"classes": []},
        {"column_folder": ".."},
        {"shards": [{"name": "../set/shard-00000.tar", "size": 20480, "sha256": ""}]},
        {"rows": True},
        {"rows": -1},
        {"rows": 2**70},
        {"rows": 4.0},
        {"version": 3.0},
        {"name": ""},
        {"name": "\x1b[2J"},
        {"name": 3},
        {"kind": "films"},
        {"kind": "images"},
        {"classes": {"1": 3}},
        {"classes": {"1": "cat", "2": "dog"}},
        {"classes": {"1": "cat", "2": "dog", "3": "", "9": "never seen"}},
        {"classes": {"0": "none", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"255": "ignore", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"65535": "all", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"01": "cat", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"\u0661": "cat", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"9" * 5000: "cat", "1": "cat", "2": "dog", "3": "cow"}},
        {"column_folder": ""},
        {"column_folder": "."},
        {"column_folder": "a/b"},
        {"column_folder": 3},
        {"columns": []},
        {"columns": {name: None for name in COLUMNS}},
        {"shards": {}},
        {"shards": ["shard-00000.tar"]},
        {"shards": [{"name": "shard-00000.tar", "size": "20480", "sha256": ""}]},
        {"shards": [{"name": "shard-00000.tar", "size": 20480, "sha256": None}]},
        {"shards": [{"name": "shard-00000.tar", "size": 20480, "sha256": "", "url": "http://x"}]},
        {"shards": [{"name": "", "size": 20480, "sha256": ""}]},
        {"shards": [{"name": "..", "size": 20480, "sha256": ""}]},
        {"shards": [{"name": "/dev/zero", "size": 0, "sha256": ""}]},
        {"shards": []},
    ],
)
def test_damaged_headers_are_one_message(folder, values):
    change(folder, **values)
    with pytest.raises(UserError, match=r"index"):
        ShardIndex.open(folder)


def test_shards_that_are_listed_twice(folder):
    change(folder, shards=[*header(folder)["shards"], header(folder)["shards"][0]])
    with pytest.raises(UserError, match="a shard is listed twice"):
        ShardIndex.open(folder)


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[" * 10**6, '{"rows": ' + "9" * 10**6 + "}", '"' + "a" * 2**26])
def test_deep_and_large_headers_are_refused(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is (damaged|not an index)"):
        ShardIndex.open(folder)


def test_headers_that_lack_a_key_are_one_message(folder):
    whole = header(folder)
    for key in whole.keys() - {"format"}:
        (folder / "index.json").write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        with pytest.raises(UserError, match="index"):
            ShardIndex.open(folder)


def test_shards_that_are_missing_or_changed(folder):
    path = folder / "shard-00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    with pytest.raises(UserError, match=rf"{path} has {len(data) - 512} bytes where the index says {len(data)}"):
        ShardIndex.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        ShardIndex.open(folder)


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_columns_that_are_missing_cut_or_of_another_shape(folder, name):
    path = folder / header(folder)["column_folder"] / f"{name}.npy"
    whole = path.read_bytes()
    np.save(path, np.zeros(999, np.load(path).dtype))
    with pytest.raises(UserError, match=name):
        ShardIndex.open(folder)
    for data in (whole[:-1], whole[:40], b""):
        path.write_bytes(data)
        with pytest.raises(UserError, match=name):
            ShardIndex.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=name):
        ShardIndex.open(folder)


def test_any_changed_byte_of_any_column_is_found(folder):
    tried = 0
    for path in sorted((folder / header(folder)["column_folder"]).iterdir()):
        whole = path.read_bytes()
        for place in {*range(0, 128, 16), *range(128, len(whole), max(1, (len(whole) - 128) // 12)), len(whole) - 1}:
            changed = bytearray(whole)
            changed[place % len(whole)] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(UserError, match="set"):
                ShardIndex.open(folder)
            tried += 1
        path.write_bytes(whole + b"\0")
        with pytest.raises(UserError, match=path.stem):
            ShardIndex.open(folder)
        path.write_bytes(whole)
    ShardIndex.open(folder)
    assert tried > 10 * len(COLUMNS)


def forge(folder: Path, **columns: Any) -> None:
    """Write other columns with the checksums that belong to them, as someone who means harm would."""
    described = header(folder)["columns"]
    for name, values in columns.items():
        path = folder / header(folder)["column_folder"] / f"{name}.npy"
        kind, trailing = COLUMNS[name]
        np.save(path, np.array(values, kind).reshape(-1, *trailing))
        sums = {"sha256": sha256_of_file(path), "crc32": zlib.crc32(path.read_bytes())}
        described[name] = {"dtype": kind, "shape": list(np.load(path).shape), **sums}
    change(folder, columns=described)


END = 2**16 - 3 - 1  # entries of class_offset behind those of classes 0 to 3
HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"shard": [0, 0, 0, 2]}, "a shard that there is not"),
        ({"shard": [-1, 0, 0, 1]}, "a shard that there is not"),
        ({"shard": [0, 1, 0, 1]}, "rows are not in its order"),
        ({"clip": [-1, 1, 0, -1]}, "a clip that there is not"),
        ({"clip": [-2, 0, 0, -1]}, "a clip that there is not"),
        ({"clip": [0, 0, 0, -1]}, "does not agree with clip"),
        ({"frame": [-1, 0, -7, -1]}, "does not agree with clip"),
        ({"clip": [0, 0, 0, 0], "frame": [0, 0, 1, 2]}, "`kind` is not clips"),
        ({"size": [[12, 16], [12, 0], [12, 16], [4, 8]]}, "without pixels"),
        ({"size": [[12, 16], [12, -16], [12, 16], [4, 8]]}, "without pixels"),
        ({"image_span": [[512, 1], [512, 1], [512, 1], [20000, 1000]]}, "image_span: reaches outside"),
        ({"image_span": [[512, 1], [-512, 1], [512, 1], [512, 1]]}, "image_span: reaches outside"),
        ({"mask_span": [[512, 1], [512, -1], [512, 1], [512, 1]]}, "mask_span: reaches outside"),
        ({"mask_span": [[512, 1], [HUGE, HUGE], [512, 1], [512, 1]]}, "mask_span: reaches outside"),
        ({"mask_span": [[512, 1], [512, HUGE], [512, 1], [512, 1]]}, "mask_span: reaches outside"),
        ({"key_offset": [0, 11, 1, 21, 22]}, "key_offset is not sorted"),
        ({"key_offset": [1, 2, 11, 21, 22]}, "key_offset does not begin at 0"),
        ({"key_offset": [0, -5, 11, 21, 22]}, "key_offset is not sorted"),
        ({"key_offset": [0, 0, 11, 21, 22]}, "an empty or endless name"),
        ({"clip_name_offset": [0, 0, 4], "clip": [-1, 1, 1, -1]}, "an empty or endless name"),
        ({"row_offset": [0, 1, 3, 2, 5]}, "row_offset is not sorted"),
        ({"row_offset": [-1, 1, 3, 3, 5]}, "row_offset does not begin at 0"),
        ({"row_offset": [0, HUGE, 3, 3, 5]}, "row_offset is not sorted"),
        ({"row_class": [0, 2, 3, 1, 2]}, "no class id"),
        ({"row_class": [1, 2, 255, 1, 2]}, "no class id"),
        ({"row_class": [1, 2, 65535, 1, 2]}, "no class id"),
        ({"row_class": [1, 3, 2, 1, 2]}, "not sorted"),
        ({"row_class": [1, 2, 2, 1, 2]}, "not sorted"),
        ({"row_pixels": [96, 96, 0, 24, 8]}, "without pixels"),
        ({"row_pixels": [96, 96, -5, 24, 8]}, "without pixels"),
        ({"row_pixels": [97, 96, 96, 24, 8]}, "do not agree"),
        ({"row_class": [2, 2, 3, 1, 2]}, "do not agree"),
        ({"class_row": [0, 3, 1, 4, 1]}, "a row that there is not"),
        ({"class_row": [-1, 3, 1, 3, 1]}, "a row that there is not"),
        ({"class_row": [3, 0, 1, 3, 1]}, "class_row is not sorted"),
        ({"class_row": [0, 3, 1, 3, 2]}, "do not agree"),
        ({"class_pixels": [24, 96, 96, 8, 96]}, "do not agree"),
        ({"class_offset": [0, 0, 2, 4] + [5] * (END + 1), "row_class": [1, 2, 4, 1, 2]}, "do not agree"),
        ({"class_offset": [0, 1, 2, 4] + [5] * (END + 1)}, "class 0 occurs"),
        ({"class_offset": [0, 0, 2, 1] + [5] * (END + 1)}, "class_offset is not sorted"),
        ({"class_offset": [0, 0, 2, 4] + [5] * (END - 100) + [9] * 100 + [5]}, "class_offset is not sorted"),
        ({"class_offset": [0, 0, 2, 4, 4] + [5] * END}, "class 4 occurs"),
    ],
)
def test_values_that_cannot_be_are_refused_even_with_right_checksums(folder, columns, message):
    forge(folder, row_pixels=[96, 96, 96, 24, 8], class_pixels=[96, 24, 96, 8, 96])
    forge(folder, class_offset=[0, 0, 2, 4] + [5] * (END + 1))  # the helper makes what the builder does
    ShardIndex.open(folder)
    forge(folder, **columns)
    with pytest.raises(UserError, match=f"set.* is damaged .*{message}") as error:
        ShardIndex.open(folder)
    assert "ldis data index" in str(error.value)


def test_many_rows_are_checked_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(index_checks, "_ROWS", 4)
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    builder = IndexBuilder()
    for number in range(50):
        pixels = {int(c): int(rng.integers(1, 9)) for c in rng.choice(np.arange(1, 40), rng.integers(0, 9), False)}
        builder.add(Row(f"k{number}", -1, -1, (4, 4), number // 20, (0, 0), (0, 0), pixels, 0, 0))
    shards = [Shard(f"{number}.tar", 0, "") for number in range(3)]
    for shard in shards:
        (tmp_path / "set" / shard.name).write_bytes(b"")
    builder.write(tmp_path / "set", "any", {}, shards)
    index = ShardIndex.open(tmp_path / "set")
    pixels = np.array(index.row_pixels)
    for place in range(0, len(pixels), 9):
        forge(tmp_path / "set", row_pixels=[*pixels[:place], pixels[place] + 1, *pixels[place + 1 :]])
        with pytest.raises(UserError, match="do not agree"):
            ShardIndex.open(tmp_path / "set")


def test_a_column_that_never_ends_is_not_opened(folder):
    path = folder / header(folder)["column_folder"] / "clip.npy"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"clip\.npy cannot be read"):
        ShardIndex.open(folder)


def test_keys_that_are_no_text_do_not_stop_a_message(folder):
    forge(folder, key_text=[255] * 22)
    assert ShardIndex.open(folder).key(0) == "\\xff"


def test_pickled_columns_are_refused(folder):
    np.save(folder / header(folder)["column_folder"] / "clip.npy", np.array([{}] * 4), allow_pickle=True)
    with pytest.raises(UserError, match=r"clip\.npy"):
        ShardIndex.open(folder)


def test_columns_must_fit_each_other(folder):
    path = folder / header(folder)["column_folder"] / "row_offset.npy"
    offset = np.load(path)
    offset[-1] += 1
    np.save(path, offset)
    with pytest.raises(UserError, match="row_offset"):
        ShardIndex.open(folder)


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
